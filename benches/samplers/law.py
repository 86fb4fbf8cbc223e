"""A sampler's law without sampling error: all outcomes of a tiny canvas, by running the sampler and by its definition.

A law is fp64 [V^L]: probabilities of the outcomes, the first position the most significant digit.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from dlm_kernels import TokenScores
from dlm_samplers import EventDriven, FixedQuota, LLaDASampler, ModelSpec, Policy, SamplerState
from dlm_samplers.evaluation import Evaluation

Choices = Sequence[tuple[float, Tensor]]
"""All ways a policy's uniform numbers may fall that make a difference: the probability, and numbers [L] or [L, steps]."""

DRAWING_MODULES = ("ancestral", "event_driven", "fixed_quota")


class CanvasTable:
    """A model without any structure: every canvas of L positions over V tokens and the mask (V) has its own logits."""

    def __init__(self, seed: int, vocabulary: int, length: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocabulary, self.length, self.mask = vocabulary, length, vocabulary
        base = vocabulary + 1
        self.table = 1.5 * torch.randn(base**length, length, base, generator=generator)
        self.place = base ** torch.arange(length - 1, -1, -1)

    def __call__(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.table[(tokens * self.place).sum(-1)]

    def probabilities(self, logits: Tensor) -> Tensor:
        """fp64 [..., V]."""
        return logits[..., : self.vocabulary].double().softmax(-1)


def ancestral_law(model: CanvasTable, shares: Sequence[float], block_length: int | None = None) -> Tensor:
    """By definition: in step k of a block each of its masks flips by itself, with probability shares[k]."""

    def moves(
        canvas: tuple[int, ...], p: list[list[float]], block: range, k: int
    ) -> list[tuple[tuple[int, ...], float]]:
        options = [
            [(model.mask, 1 - shares[k])] + [(v, shares[k] * q) for v, q in enumerate(p[i])]
            if i in block and canvas[i] == model.mask
            else [(canvas[i], 1.0)]
            for i in range(model.length)
        ]
        return [
            (tuple(v for v, _ in flips), torch.tensor([q for _, q in flips], dtype=torch.float64).prod().item())
            for flips in itertools.product(*options)
        ]

    return _by_states(model, moves, len(shares), block_length)


def one_by_one_law(model: CanvasTable, block_length: int | None = None) -> Tensor:
    """By definition: each step commits one of the block's masks, all equally likely."""

    def moves(
        canvas: tuple[int, ...], p: list[list[float]], block: range, k: int
    ) -> list[tuple[tuple[int, ...], float]]:
        masks = [i for i in block if canvas[i] == model.mask]
        if not masks:
            return [(canvas, 1.0)]
        return [((*canvas[:i], v, *canvas[i + 1 :]), q / len(masks)) for i in masks for v, q in enumerate(p[i])]

    return _by_states(model, moves, model.length if block_length is None else block_length, block_length)


def _by_states(model: CanvasTable, moves: Callable[..., Any], steps: int, block_length: int | None) -> Tensor:
    """The law after `steps` steps in each block of a Markov chain over canvases."""
    canvases = {(model.mask,) * model.length: 1.0}
    for start in range(0, model.length, block_length or model.length):
        block = range(start, min(start + (block_length or model.length), model.length))
        for k in range(steps):
            following: dict[tuple[int, ...], float] = defaultdict(float)
            for canvas, weight in canvases.items():
                p = model.probabilities(model(torch.tensor([canvas])))[0].tolist()
                for after, q in moves(canvas, p, block, k):
                    following[after] += weight * q
            canvases = {canvas: weight for canvas, weight in following.items() if weight > 0}
    return torch.tensor(
        [canvases[outcome] for outcome in itertools.product(range(model.vocabulary), repeat=model.length)],
        dtype=torch.float64,
    )


def grid_choices(policy: EventDriven, length: int) -> Choices:
    """The steps in which `length` positions flip, with the probabilities that the policy's own code gives them."""
    assert policy.grid is not None
    low, high = torch.zeros(policy.grid - 1, dtype=torch.float64), torch.ones(policy.grid - 1, dtype=torch.float64)
    step = torch.arange(policy.grid - 1)
    for _ in range(60):  # bisection for the least uniform number that flips in step k or before
        middle = (low + high) / 2
        early = policy.event(middle[None])[0] <= step
        low, high = torch.where(early, low, middle), torch.where(early, middle, high)
    ends = torch.cat([torch.ones(1, dtype=torch.float64), high, torch.zeros(1, dtype=torch.float64)])
    cells = [(float(a - b), float(a + b) / 2) for a, b in itertools.pairwise(ends) if a - b > 1e-15]
    return [
        (
            float(torch.tensor([p for p, _ in flips], dtype=torch.float64).prod()),
            torch.tensor([u for _, u in flips]).double(),
        )
        for flips in itertools.product(cells, repeat=length)
    ]


def order_choices(length: int) -> Choices:
    """All orders of `length` positions."""
    orders = list(itertools.permutations(range(length)))
    return [(1 / len(orders), (torch.tensor(order) + 0.5) / length) for order in orders]


def flip_choices(shares: Sequence[float], length: int) -> Choices:
    """The steps in which `length` positions flip when a fresh number decides in every step, with probability shares[k]."""
    never, at_once = 1 - 2.0**-24, 2.0**-24
    choices = []
    for steps in itertools.product(range(len(shares)), repeat=length):
        weight = 1.0
        for k in steps:
            for share in shares[:k]:
                weight *= 1 - share
            weight *= shares[k]
        u = torch.full((length, len(shares)), never)
        u[torch.arange(length), torch.tensor(steps)] = at_once
        choices.append((weight, u))
    return choices


class Enumerated(NamedTuple):
    """What a sampler does, over all that may happen."""

    law: Tensor
    nfe: float  # mean forwards a row


class Forced(LLaDASampler):
    """Runs every pair of a choice and an outcome as a row of one batch.

    The policy finds the choice's uniform numbers, the tokens drawn are the outcome's, and a row's weight is the probability of
    both. All else is the sampler itself.
    """

    def __init__(self, model: CanvasTable, policy: Policy) -> None:
        assert not policy.keyed_by_step, "the choice must not look at a sampled token"
        super().__init__(model, policy=policy, spec=ModelSpec(mask_id=model.mask))
        self.table = model

    def enumerate(self, choices: Choices, **settings: Any) -> Enumerated:
        table, length = self.table, self.table.length
        outcomes = torch.tensor(list(itertools.product(range(table.vocabulary), repeat=length)))
        uniforms = torch.stack([u for _, u in choices]).repeat_interleave(len(outcomes), 0)
        self.target = outcomes.repeat(len(choices), 1)
        self.seen = torch.full(self.target.shape, torch.nan, dtype=torch.float64)
        self.weight = torch.tensor([p for p, _ in choices], dtype=torch.float64).repeat_interleave(len(outcomes))
        self.open = torch.ones_like(self.target, dtype=torch.bool)

        def keyed_uniform(seed: Tensor, row_ids: Tensor, step: Tensor | int, stream: int = 1) -> Tensor:
            u = uniforms[row_ids >> 32, row_ids & 0xFFFFFFFF]
            return u if u.ndim == 2 else u.gather(-1, torch.as_tensor(step).expand(row_ids.shape)[..., None])[..., 0]

        with ExitStack() as stack:
            for module in DRAWING_MODULES:
                stack.enter_context(patch(f"dlm_samplers.policies.{module}.keyed_uniform", keyed_uniform))
            out = self.generate(
                torch.zeros(len(self.target), 0, dtype=torch.int64),
                max_new_tokens=length,
                temperature=1.0,
                callback_on_step_end=Forced._account,
                **{"block_length": None, **settings},
            )
        assert torch.equal(out.sequences, self.target)
        return Enumerated(self.weight.view(len(choices), -1).sum(0), float(self.weight @ out.nfe.double()))

    def score(self, evaluation: Evaluation, state: SamplerState, scoring: dict[str, Any]) -> TokenScores:
        target = self.target[state.index]
        p = self.table.probabilities(evaluation.output).gather(-1, target[..., None])[..., 0]
        # NaN where nothing was asked for: a position committed all the same would spoil the law.
        self.seen[state.index] = torch.where(evaluation.scored, p, torch.nan)
        return super().score(evaluation, state, scoring)._replace(token=target)

    def _account(self, step: int, state: SamplerState) -> None:
        filled = self.open[state.index] & (state.tokens != state.mask_id)
        self.weight[state.index] *= torch.where(filled, self.seen[state.index], 1.0).prod(-1)
        self.open[state.index] &= ~filled


def linear_shares(steps: int, eps: float = 0.0) -> list[float]:
    """Of the masks left, the share that an ancestral step from t to s flips: 1 - s/t on linspace(1, eps), the last all."""
    t = torch.linspace(1, eps, steps + 1, dtype=torch.float64)
    return [*(1 - t[1:-1] / t[:-2]).tolist(), 1.0]


def distinct_steps(steps: int, length: int) -> float:
    """Mean number of steps with a flip, when each of `length` positions flips in one of `steps` equally likely steps."""
    return steps * (1 - (1 - 1 / steps) ** length)


def law_differences(seed: int = 0) -> list[dict[str, Any]]:
    """How far the code of the samplers is from their definitions, on one random table: greatest differences of probability."""
    vocabulary, length, steps = 3, 4, 4
    model = CanvasTable(seed, vocabulary, length)
    cases: list[tuple[str, Policy, Choices, Tensor, int | None]] = []
    for eps, block in ((0.0, None), (0.0, 2), (1e-3, None)):
        policy = EventDriven(steps, eps=eps)
        law = ancestral_law(model, linear_shares(steps, eps), block)
        cases.append(("ancestral", policy, grid_choices(policy, length), law, block))
    for one in (EventDriven(), FixedQuota("random", tokens_per_step=1)):
        cases.append(("one by one in any order", one, order_choices(length), one_by_one_law(model), None))
    rows = []
    for definition, policy, choices, law, block in cases:
        got = Forced(model, policy).enumerate(choices, block_length=block)
        rows.append(
            {
                "policy": repr(policy),
                "definition": definition,
                "vocabulary": vocabulary,
                "length": length,
                "block_length": block,
                "paths": len(choices) * vocabulary**length,
                "difference": float((got.law - law).abs().max()),
                "nfe": got.nfe,
            }
        )
    return rows
