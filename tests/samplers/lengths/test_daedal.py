"""DAEDAL against its algorithm in plain Python, and what inserted masks do to the rest of the sampler."""

import math

import pytest
import torch
from fakes import SpikeModel, TableModel
from plain import log_probs
from test_sampler import Recorder

from dlm_kernels import InvalidArgumentError
from dlm_samplers import (
    DAEDAL,
    DreamSampler,
    EndOfText,
    EntropyBound,
    FixedQuota,
    Guarantee,
    LLaDASampler,
    ModelSpec,
    ReMDM,
    SchED,
    StableAndConfident,
    Threshold,
)


class Ending(SpikeModel):
    """Says end of text with growing certainty from a place on that the row's first token decides; unsure here and there."""

    def __init__(self, seed, vocab=40, sure=9.0, never=False):
        super().__init__(seed, vocab=vocab, height=10.0, eos=3)
        self.sure, self.never = sure, never
        self.table[::5] *= 0.02  # hardly any preference: at a loss

    def __call__(self, tokens, attention_mask=None, position_ids=None):
        output = super().__call__(tokens, attention_mask, position_ids)
        end = tokens[:, :1] * 5 % 29 + 6
        beyond = (torch.arange(tokens.shape[1]) - end).clamp(min=0)
        if self.never:
            output.logits[:, :, 3] = -torch.inf
        else:
            output.logits[:, :, 3] += self.sure * (beyond > 0) + 0.1 * beyond
        return output


def plain_daedal(model, prompt, rule, limit, tau=0.9, block=8):
    """(canvas, forwards, insertions while denoising) of one row, after the paper's two stages."""
    start, canvas = len(prompt), list(prompt) + [model.mask] * min(rule.l_init, limit)
    forwards = insertions = 0

    def forward():
        nonlocal forwards
        forwards += 1
        best = []
        for row in model(torch.tensor([canvas])).logits[0].double().tolist():
            row[model.mask] = -math.inf
            token = max(range(len(row)), key=lambda v, row=row: row[v])
            best.append((token, math.exp(log_probs(row)[token])))
        ends = [c for token, c in reversed(best[start:]) if token == 3][: rule.w_eos]
        return best, sum(ends) / rule.w_eos

    while len(canvas) - start < limit:
        _, sure = forward()
        if sure >= rule.tau_eos:
            canvas += [model.mask] * min(rule.w_eos // 2, limit - len(canvas) + start)
            break
        canvas += [model.mask] * min(rule.e_factor, limit - len(canvas) + start)

    at = start
    while model.mask in canvas:
        while model.mask not in canvas[at : at + block]:
            at += block
        best, sure = forward()
        masked = [i for i in range(at, min(at + block, len(canvas))) if canvas[i] == model.mask]
        chosen = [i for i in masked if best[i][1] > tau] or [max(masked, key=lambda i: (best[i][1], -i))]
        for i in chosen:
            canvas[i] = best[i][0]
        lost = [i for i in masked if i not in chosen and best[i][1] < rule.tau_low]
        if lost and sure < rule.tau_expand and len(canvas) - start < limit:
            weakest = min(lost, key=lambda i: (best[i][1], i))
            more = min(rule.e_factor - 1, limit - len(canvas) + start)
            canvas[weakest:weakest] = [model.mask] * more
            insertions += 1
    return canvas, forwards, insertions


RULES = [DAEDAL(8, 4, w_eos=6), DAEDAL(5, 8, 0.7, 0.15, 1.0, 8), DAEDAL(12, 2, 0.0, 0.2, 0.9, 4), DAEDAL(64, 8)]


def some_prompts(vocab, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (rows,), generator=generator).tolist()
    return [torch.randint(vocab - 1, (n,), generator=generator) for n in lengths]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rows_grow_and_fill_as_the_plain_algorithm_has_it(rule):
    inserted, lengths = 0, set()
    for seed in range(3):
        model = Ending(seed)
        prompts = some_prompts(model.vocab, 16, seed)
        limits = [(7 * row) % 60 + 1 for row in range(16)]
        if seed == 0:  # nothing to pad until the rows have grown apart
            prompts, limits = [prompt.repeat(5)[:5] for prompt in prompts], [40] * 16
        sampler = LLaDASampler(model, policy=Threshold(0.9, strict=True), length=rule)
        out = sampler.generate(prompts, max_new_tokens=limits, block_length=8, batch_size=(None, 5)[seed % 2])
        for row, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            canvas, forwards, insertions = plain_daedal(model, prompt.tolist(), rule, limit)
            assert out.sequences[row, : len(canvas)].tolist() == canvas
            assert (out.sequences[row, len(canvas) :] == 3).all(), "padding"
            assert out.nfe[row] == forwards
            inserted += insertions
            lengths.add(len(canvas) - len(prompt))
    assert inserted > 10 or rule.l_init == 64
    assert len(lengths) > 10


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("policy", "stopping"),
    [
        (Threshold(0.9, strict=True), [EndOfText()]),
        (EntropyBound(0.3), [SchED(tau_high=5.0, tau_low=1.0)]),
        (FixedQuota("random", tokens_per_step=2), [StableAndConfident(1, 1.0), EndOfText()]),
    ],
    ids=str,
)
@pytest.mark.parametrize("sampler_class", [LLaDASampler, DreamSampler])
def test_rows_get_in_a_batch_what_they_get_alone(sampler_class, policy, stopping, temperature):
    model = Ending(1)
    prompts = some_prompts(model.vocab, 12, 1)
    prompts[4][-1:] = model.mask
    limits = [(11 * row) % 50 for row in range(12)]
    sampler = sampler_class(model, policy=policy, stopping=stopping, length=RULES[1])
    settings = {"block_length": 8, "seed": 5, "temperature": temperature}
    batch = sampler.generate(prompts, max_new_tokens=limits, return_history=True, **settings)
    assert batch.history[-1].shape == batch.sequences.shape
    few = sampler.generate(prompts, max_new_tokens=limits, batch_size=3, **settings)
    assert torch.equal(batch.sequences, few.sequences)
    assert torch.equal(batch.nfe, few.nfe)
    assert not (batch.sequences == model.mask).any()
    assert len({len(c) for c in batch.completions}) > 4
    for row in range(0, 12, 2):
        alone = sampler.generate([prompts[row]], max_new_tokens=limits[row], request_ids=[row], **settings)
        assert torch.equal(alone.completions[0], batch.completions[row])
        assert torch.equal(alone.sequences[0], batch.sequences[row, : alone.sequences.shape[1]])
        assert alone.nfe[0] == batch.nfe[row]
        assert alone.generated[0] == batch.generated[row]
        given = prompts[row] != model.mask
        assert torch.equal(alone.sequences[0, : len(given)][given], prompts[row][given])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_stays_on_the_callers_side(side):
    model = Ending(2)
    prompts = some_prompts(model.vocab, 6, 2)
    sampler = LLaDASampler(model, policy=Threshold(0.9, strict=True), length=RULES[0])
    plain = sampler.generate(prompts, max_new_tokens=40, block_length=8)
    width = max(map(len, prompts)) + 2
    ids, mask = torch.full((6, width), 7), torch.zeros(6, width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        columns = slice(width - len(prompt), None) if side == "left" else slice(0, len(prompt))
        ids[row, columns], mask[row, columns] = prompt, 1
    padded = sampler.generate(ids, attention_mask=mask, max_new_tokens=40, block_length=8)
    for row, prompt in enumerate(prompts):
        canvas, _, _ = plain_daedal(model, prompt.tolist(), RULES[0], 40)
        assert plain.sequences[row, : len(canvas)].tolist() == canvas
        got = padded.sequences[row].tolist()
        pads = [7] * (len(got) - len(canvas))
        assert got == (pads + canvas if side == "left" else canvas + pads)


@pytest.mark.parametrize("policy", [Threshold(), FixedQuota(tokens_per_step=3)], ids=repr)
def test_models_that_never_end_or_are_never_sure_fill_the_limit_and_end(policy):
    lost = TableModel(2, eos=3)
    lost.table[:, lost.mask] = 100.0
    lost.table[:, :22] *= 1e-3  # 22 tokens alike: no confidence above 0.1
    for model in (Ending(0, never=True), lost):
        out = LLaDASampler(model, policy=policy, length=DAEDAL(4, 3, w_eos=2)).generate(
            torch.zeros(3, 2, dtype=torch.long), max_new_tokens=[30, 5, 0], block_length=8
        )
        assert (out.sequences[0] != model.mask).all()
        assert out.sequences.shape == (3, 32)
        assert out.generated.tolist()[2] == 0
    assert out.nfe[0] < 2 * 30


def test_everything_remembered_moves_with_its_position():
    """A state of three rows, compared with lists into which masks were put."""
    sampler = LLaDASampler(TableModel(2, eos=3), policy=Threshold(0.99), length=DAEDAL(9, 2, tau_eos=0.0))
    states = []
    sampler.generate(
        [torch.arange(2), torch.arange(4), torch.arange(3)],
        max_new_tokens=9,
        block_length=6,
        callback_on_step_end=lambda _, step, state: states.append(state.take(torch.arange(3))) if step == 3 else None,
    )
    state = states[0]
    numbers = torch.arange(3 * state.width * 2).reshape(3, state.width, 2)
    state.position_memory["test.numbers"] = numbers.clone()
    rows = [
        (int(n), t[:n].tolist(), numbers[b, :n].tolist())
        for b, (n, t) in enumerate(zip(state.length, state.tokens, strict=True))
    ]
    column = state.masked().int().argmax(-1)
    state.insert_masks(column, torch.tensor([4, 0, 1]))
    assert state.width == max(n + more for (n, _, _), more in zip(rows, (4, 0, 1), strict=True))
    for b, ((n, tokens, memory), more) in enumerate(zip(rows, (4, 0, 1), strict=True)):
        at = int(column[b])
        tokens[at:at] = [state.mask_id] * more
        memory[at:at] = [memory[at]] * more
        assert state.length[b] == n + more
        assert state.tokens[b].tolist() == tokens + [state.mask_id] * (state.width - n - more)
        assert state.position_memory["test.numbers"][b, : n + more].tolist() == memory
        assert state.valid[b].tolist() == [i < n + more for i in range(state.width)]
        assert state.editable[b].tolist() == [int(state.prompt_length[b]) <= i < n + more for i in range(state.width)]
        assert (state.row_ids[b] & 0xFFFFFFFF).tolist() == list(range(state.width))


def test_streaming_and_progress_follow_the_growing_canvas():
    model = Ending(3)
    for seed in range(4):
        recorder = Recorder()
        prompt = some_prompts(model.vocab, 1, seed)
        out = LLaDASampler(model, policy=Threshold(0.9, strict=True), length=RULES[0]).generate(
            prompt, max_new_tokens=40, block_length=8, streamer=recorder, progress=True
        )
        assert torch.equal(torch.cat(recorder.pieces, dim=1), out.sequences)


def test_compositions_that_make_no_sense_are_refused():
    model = TableModel(0, eos=3)
    rule = DAEDAL()
    assert rule == DAEDAL(64, 8, 0.5, 0.1, 0.9, 32), "the published numbers"
    assert LLaDASampler(model, policy=Threshold(), length=rule).guarantee is Guarantee.APPROXIMATE
    assert "DAEDAL(" in LLaDASampler(model, policy=Threshold(), length=rule).explain()
    for arguments, message in (
        ({}, "use a policy that decides in every step, such as Threshold"),
        ({"remask": ReMDM("cap")}, "such as Threshold"),
        ({"policy": Threshold(), "spec": ModelSpec(mask_id=22)}, "pass eos_id="),
        ({"policy": Threshold(), "spec": ModelSpec(mask_id=22, eos_id=3, suppressed_ids=(3,))}, "do not suppress it"),
        ({"policy": Threshold(), "spec": ModelSpec(mask_id=22, eos_id=3, attention_mask="none")}, "leave length out"),
        ({"policy": Threshold(), "length": 64}, "length must be a LengthRule"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            LLaDASampler(model, **{"length": rule, **arguments})
    for name, value in (("l_init", 0), ("e_factor", 1), ("w_eos", 0), ("tau_low", 1.5), ("tau_eos", -0.1)):
        with pytest.raises(InvalidArgumentError, match=name):
            DAEDAL(**{name: value})
