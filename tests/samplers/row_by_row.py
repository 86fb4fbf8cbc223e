"""A request decoded on its own in plain Python and doubles, for decision rules written a second time in the tests."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fakes import SpikeModel, keyed_gumbel

from dlm_samplers import DreamSampler, LLaDASampler

VOCAB = 23

every_setting = pytest.mark.parametrize(
    ("block_length", "dream", "temperature"),
    [(None, False, 0.0), (1, False, 0.0), (7, False, 0.0), (7, True, 0.0), (32, False, 0.8), (None, True, 0.0)],
)


class Drifting(SpikeModel):
    """Most of a position's logits stays what it was, whatever else commits: something to remember."""

    def __init__(self, seed, drift=0.15, **kwargs):
        super().__init__(seed, vocab=VOCAB, **kwargs)
        self.drift = drift

    def __call__(self, tokens, attention_mask=None, position_ids=None):
        output = super().__call__(tokens, attention_mask)
        still = self.table[torch.arange(tokens.shape[1]) * 37 % self.table.shape[0]]
        output.logits = (1 - self.drift) * still + self.drift * output.logits
        return output


@dataclass
class Step:
    """What a rule sees of one forward."""

    masked: list  # open columns, ascending
    block: tuple  # first column and the one after the last
    prompt: int
    new_block: bool
    logits: np.ndarray  # [L, V], aligned with positions
    probs: np.ndarray  # [L, V], temperature 1, without the mask token
    token: list
    """[L]: the token drawn, the likeliest at temperature 0."""

    @property
    def confidence(self):
        return [float(self.probs[i, t]) for i, t in enumerate(self.token)]

    def best(self, positions=None, score=None, count=1):
        score = self.confidence if score is None else score
        return sorted(self.masked if positions is None else positions, key=lambda i: (-score[i], i))[:count]


def decode(model, prompt, new, block_length, rule, *, shift=0, temperature=0.0, seed=0, request=0, by_step=True):
    """The canvases after every forward. `rule(step)` says what commits, {column: token} or columns."""
    tokens = [*prompt.tolist(), *[model.mask] * new]
    length, canvases, block, fresh = len(tokens), [], None, True
    while model.mask in tokens[len(prompt) :]:
        first = tokens.index(model.mask, len(prompt))
        if block is None or not first < block[1]:
            start = 0 if block_length is None else len(prompt) + (first - len(prompt)) // block_length * block_length
            block, fresh = (start, length if block_length is None else min(start + block_length, length)), True
        logits = model(torch.tensor([tokens])).logits[0].double()
        logits = logits[[max(i - shift, 0) for i in range(length)]]
        open_logits = logits.clone()
        open_logits[:, model.mask] = -torch.inf
        drawn = open_logits
        if temperature:
            noise = keyed_gumbel(seed, torch.tensor([request]), length, model.vocab, by_step)
            drawn = open_logits / temperature + noise(len(canvases), (1, length, model.vocab))[0]
        step = Step(
            masked=[i for i in range(len(prompt), block[1]) if tokens[i] == model.mask],
            block=block,
            prompt=len(prompt),
            new_block=fresh,
            logits=logits.numpy(),
            probs=open_logits.softmax(-1).numpy(),
            token=drawn.argmax(-1).tolist(),
        )
        fresh = False
        chosen = rule(step)
        assert chosen
        for i in chosen:
            assert i in step.masked
            tokens[i] = chosen[i] if isinstance(chosen, dict) else step.token[i]
        canvases.append(list(tokens))
    return canvases


def assert_same_path(policy, rule, *, model, block_length, rows=6, temperature=0.0, seed=0, dream=False, longest=20):
    """A batch of ragged rows takes, row by row and step by step, the path of `rule()`, made anew for every row."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [
        torch.randint(VOCAB - 1, (int(n),), generator=generator)
        for n in torch.randint(0, 6, (rows,), generator=generator)
    ]
    budgets = torch.randint(1, longest + 1, (rows,), generator=generator).tolist()
    sampler = (DreamSampler if dream else LLaDASampler)(model, policy=policy)
    out = sampler.generate(
        prompts,
        max_new_tokens=budgets,
        block_length=block_length,
        temperature=temperature,
        seed=seed,
        return_history=True,
    )
    for row, (prompt, new) in enumerate(zip(prompts, budgets, strict=True)):
        expected = decode(
            *(model, prompt, new, block_length, rule()),
            shift=1 if dream else 0,
            temperature=temperature,
            seed=seed,
            request=row,
            by_step=policy.keyed_by_step,
        )
        got = [canvas[row, : len(prompt) + new].tolist() for canvas in out.history[1 : 1 + len(expected)]]
        assert got == expected, row
        assert int(out.nfe[row]) == len(expected)
    return out
