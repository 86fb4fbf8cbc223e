"""Guesses of the states that a sampler's walk will come through, from what the model said of the last one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_kernels import TokenScores
from dlm_samplers.policies.base import Outlook
from dlm_samplers.state import SamplerState
from dlm_samplers.verify.memory import recall
from dlm_samplers.verify.patterns import Chain, Graph, Learned, Patterns, Prefixes
from dlm_samplers.verify.walk import advance, skip_idle

if TYPE_CHECKING:
    from dlm_samplers.loop import Loop

UNFORESEEN = 2**40
"""Place of a position that no draft may fill."""


class Drafter(ABC):
    """Lays out `width` states a row, the row's own state first. Guesses cost time when they are wrong, never tokens."""

    exact = False
    """True when a node is a state in all its fields; else it is a canvas, and the walk tells the step it is reached in."""
    compared: tuple[str, ...] = ("step",)
    """What makes a node a state of the walk, beside its canvas and what the policy remembers."""

    @abstractmethod
    def nodes(self, state: SamplerState, width: int) -> SamplerState:
        """B * width states, those of one row together."""

    @abstractmethod
    def learn(self, canvases: Tensor, reached: Tensor) -> None:
        """What became of the last draft: canvases [B, W, L] the walk came to, bool [B, W] which of them it did come to."""


def drafter_for(loop: Loop, outlook: Outlook | None) -> Drafter:
    """The drafter for a policy with such an outlook."""
    if outlook is None:
        return Rehearsal(loop)
    if outlook.tokens_per_step is None:
        return Rehearsal(loop) if loop.noisy else Foreseen(loop, Prefixes(), compared=())
    if outlook.settled or outlook.tokens_per_step > 1:
        return Foreseen(loop, Chain())
    return Foreseen(loop, Graph())


class Foreseen(Drafter):
    """The row's canvas with the tokens last proposed filled in, for sets of positions given as patterns over their order."""

    def __init__(self, loop: Loop, patterns: Patterns, compared: tuple[str, ...] = ("step",)) -> None:
        self.policy = loop.sampler.policy
        self.patterns = patterns
        self.compared = compared
        self.place = self.proposal = self.canvas = torch.empty(0)

    def nodes(self, state: SamplerState, width: int) -> SamplerState:
        scores = recall(state)
        outlook = self.policy.outlook(scores, state)
        assert outlook is not None
        patterns, steps = self.patterns.widest(width, state.tokens.device)
        self.canvas, self.proposal = state.tokens, scores.token
        self.place = places(outlook.order, state, outlook.tokens_per_step or 1)
        filled = patterns.T[self.place.clamp(max=len(patterns.T) - 1)].movedim(-1, 1)  # [B, width, L]
        nodes = expanded(state, width)
        nodes.tokens = torch.where(filled, scores.token[:, None], state.tokens[:, None]).flatten(0, 1)
        nodes.step = nodes.step + steps.repeat(state.live.numel())
        foretold = {} if outlook.memory is None else outlook.memory(self.place, steps)
        nodes.position_memory.update({name: value.flatten(0, 1) for name, value in foretold.items()})
        nodes.enter_blocks()
        return alive(nodes, width)

    def learn(self, canvases: Tensor, reached: Tensor) -> None:
        if not isinstance(self.patterns, Learned):
            return
        changed = canvases != self.canvas[:, None]
        foreseen = (canvases == self.proposal[:, None]) & (self.place < self.patterns.reach)[:, None]
        self.patterns.learn(changed, self.place[:, None], reached & (~changed | foreseen).all(-1))


class Rehearsal(Drafter):
    """The policy itself, asked again and again as if the model's opinion stayed what it was: for any policy and schedule."""

    exact = True
    compared = ("step", "block_start", "block_end", "block_step", "block_masks")

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def nodes(self, state: SamplerState, width: int) -> SamplerState:
        scores, policy = recall(state), self.loop.sampler.policy
        rehearsed = [state]
        for _ in range(width - 1):
            now = rehearsed[-1].take(torch.arange(state.live.numel(), device=state.live.device))
            chosen = policy.select(TokenScores(*scores), now) & policy.candidates(now)
            now.tokens = torch.where(chosen, scores.token, now.tokens)
            advance(now)
            now.enter_blocks()
            skip_idle(now, policy)
            rehearsed.append(now)
        nodes = rehearsed[0]._map(lambda *values: torch.stack(values, dim=1).flatten(0, 1), *rehearsed[1:])
        return alive(nodes, width)

    def learn(self, canvases: Tensor, reached: Tensor) -> None:
        """Nothing: the policy itself is asked."""


def expanded(state: SamplerState, width: int) -> SamplerState:
    """Every row `width` times."""
    return state.take(torch.arange(state.live.numel(), device=state.live.device).repeat_interleave(width))


def alive(nodes: SamplerState, width: int) -> SamplerState:
    """Nodes without work left, of which there is nothing to ask the model, become copies of their row's first one."""
    here = torch.arange(nodes.live.numel(), device=nodes.live.device)
    return nodes.take(torch.where(nodes.live, here, here - here % width))


def places(order: Tensor, state: SamplerState, per_step: int) -> Tensor:
    """int64 [B, L]: in which of the steps to come each masked position commits, 0 the next one, if the order holds.

    Blocks follow one another, the last step of a block may be a short one; UNFORESEEN at all other positions.
    """
    column = state.column
    foreseen = state.masked() & (order > -torch.inf)
    block, block_length = torch.zeros_like(state.tokens), state.block_length
    if block_length is not None:

        def number(offset: Tensor) -> Tensor:
            return torch.div(offset - state.prompt_length[:, None], block_length, rounding_mode="floor")

        block = torch.maximum(number(column), number(state.block_end[:, None] - 1))
    by_order = order.masked_fill(~foreseen, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    sorted_block = block.masked_fill(~foreseen, UNFORESEEN).gather(1, by_order)
    sorted_block, by_block = sorted_block.sort(dim=-1, stable=True)
    queue = by_order.gather(1, by_block)  # columns in the order in which they commit
    place = column.expand_as(queue)
    if per_step > 1:
        first = torch.ones_like(foreseen)
        first[:, 1:] = sorted_block[:, 1:] != sorted_block[:, :-1]
        within = place - torch.where(first, place, 0).cummax(-1).values
        place = (within % per_step == 0).cumsum(-1) - 1
    return torch.empty_like(queue).scatter_(1, queue, place).masked_fill_(~foreseen, UNFORESEEN)
