"""BD3-LM's swap against its law, enumerated in plain Python."""

import itertools

import pytest
import torch
from laws import FALSE_ALARM, Table, fits

from dlm_kernels import InvalidArgumentError
from dlm_samplers import ModelSpec
from dlm_samplers.compat import bd3lm

ROWS, BLOCK, BOS = 20_000, 2, 1


class Blocks(Table):
    """A table in which a column sees its own block and those before it."""

    def __call__(self, tokens):
        self.rows += len(tokens)
        out = []
        for start in range(0, tokens.shape[1], BLOCK):
            seen = torch.nn.functional.pad(tokens[:, : start + BLOCK], (0, self.length - start - BLOCK))
            out.append(self.table[0, self.number(seen), start : start + BLOCK])
        return torch.cat(out, dim=1)

    def at(self, canvas, column, nucleus=1.0):
        """{token: probability} of a column, the most likely ones with at least `nucleus` of the mass."""
        logits = self(torch.tensor([canvas]))[0, column].double()
        logits[self.mask] = -torch.inf
        p = logits.softmax(-1).tolist()
        kept, mass = {}, 0.0
        for token in sorted(range(len(p)), key=lambda v: -p[v]):
            if mass < nucleus and p[token] > 0:
                kept[token] = p[token]
                mass += p[token]
        return {token: value / mass for token, value in kept.items()}


def spec(model, **more):
    return ModelSpec(mask_id=model.mask, vocab_size=model.vocabulary, attention_mask="none", block_length=BLOCK, **more)


def law(model, start, groups, nucleus=1.0):
    """Of the blocks filled one after the other; groups(open positions) are (probability, positions filled together)."""
    states = {tuple(start): 1.0}
    for block in range(0, len(start), BLOCK):
        done = {}
        while states:
            canvas, mass = states.popitem()
            open_ = [i for i in range(block, block + BLOCK) if canvas[i] == model.mask]
            if not open_:
                done[canvas] = done.get(canvas, 0.0) + mass
                continue
            for share, positions in groups(open_):
                choices = [model.at(canvas, i, nucleus).items() for i in positions]
                for choice in itertools.product(*choices):
                    after, p = list(canvas), mass * share
                    for i, (token, q) in zip(positions, choice, strict=True):
                        after[i] = token
                        p *= q
                    states[tuple(after)] = states.get(tuple(after), 0.0) + p
        states = done
    return states


def one_at_random(open_):
    return [(1 / len(open_), [i]) for i in open_]


def grid_of_two(open_):
    """Two steps of half the way each: a position is filled in the first with probability a half, so both together or apart."""
    if len(open_) == 1:
        return [(1.0, open_)]
    return [(0.5, open_), (0.25, open_[:1]), (0.25, open_[1:])]


@pytest.mark.parametrize("nucleus", [1.0, 0.7])
@pytest.mark.parametrize("bos", [None, BOS])
def test_one_token_a_forward_has_the_published_law(bos, nucleus):
    model = Blocks(vocabulary=4, length=4, seed=3)
    settings = {"seqlen": 4, "bos_token_id": bos, "nucleus_p": nucleus, "spec": spec(model), "seed": 2}
    got, forwards = bd3lm.semi_ar_sampler(model, ROWS, **settings)
    start = [model.mask] * 4 if bos is None else [bos, *[model.mask] * 3]
    assert forwards == (4 if bos is None else 3)
    assert fits(got, law(model, start, one_at_random, nucleus), model.vocabulary) > FALSE_ALARM
    assert fits(got, law(model, start, lambda open_: [(1.0, open_)], nucleus), model.vocabulary) < FALSE_ALARM


def test_a_grid_of_two_levels_has_its_law():
    model = Blocks(vocabulary=4, length=4, seed=3)
    settings = {"seqlen": 4, "num_steps": 2, "first_hitting": False, "spec": spec(model), "seed": 2}
    model.rows = 0
    got, forwards = bd3lm.semi_ar_sampler(model, ROWS, **settings)
    assert model.rows < 3.1 * ROWS, "steps without a flip cost no forward: 1.5 of 2 a block"
    assert forwards == 4
    assert fits(got, law(model, [model.mask] * 4, grid_of_two), model.vocabulary) > FALSE_ALARM
    assert fits(got, law(model, [model.mask] * 4, one_at_random), model.vocabulary) < FALSE_ALARM


def test_a_row_of_variable_length_ends_at_its_end_of_text():
    model = Blocks(vocabulary=4, length=8, seed=5)
    settings = {"num_strides": 4, "bos_token_id": 0, "seed": 4}
    whole, _ = bd3lm.semi_ar_sampler(model, 50, spec=spec(model, eos_id=0), **settings)
    model.rows = 0
    ended, _ = bd3lm.semi_ar_sampler(model, 50, spec=spec(model, eos_id=0), var_length=True, **settings)
    assert model.rows < 50 * 7
    for row, other in zip(ended.tolist(), whole.tolist(), strict=True):
        end = row.index(0, 1) if 0 in row[1:] else len(row)
        assert row[: end + 1] == other[: end + 1]
        assert set(row[end:]) <= {0}


def test_bad_input_is_named():
    model = Blocks()
    for changes, message in (
        ({"seqlen": 3}, "seqlen must be num_strides blocks of 2 tokens, got seqlen=3"),
        ({"seqlen": 4, "num_strides": 3}, "num_strides=3"),
        ({"seqlen": 2048}, "seqlen must be at most context_size = 1024, got 2048"),
        ({"seqlen": 4, "mask_index": 3}, "mask_index belongs inside spec"),
        ({}, "seqlen is missing"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            bd3lm.semi_ar_sampler(model, **{"spec": spec(model), **changes})
    with pytest.raises(InvalidArgumentError, match="not block-causal"):
        bd3lm.semi_ar_sampler(model, seqlen=4, spec=ModelSpec(mask_id=3, attention_mask="none"))
