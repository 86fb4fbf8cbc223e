"""Drafts later canvases from this one's scores and checks them all in one forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from dlm_kernels import InvalidArgumentError, TokenScores, commit_
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.parts import Part
from dlm_samplers.policies import Policy
from dlm_samplers.state import SamplerState
from dlm_samplers.verify.base import Verify
from dlm_samplers.verify.drafters import Drafter, drafter_for
from dlm_samplers.verify.guard import Guard
from dlm_samplers.verify.memory import fresh, recall, remember, reserve
from dlm_samplers.verify.walk import advance, keep_books, on_path, skip_idle, successors, until_stopped, walk
from dlm_samplers.verify.width import MOST, Width

if TYPE_CHECKING:
    from torch import Tensor

    from dlm_samplers.loop import Loop
    from dlm_samplers.sampler import Sampler


@dataclass(frozen=True)
class DraftVerify(Verify):
    """Several steps of the policy's own walk in one forward, token for token (after FreeDave, arXiv:2510.00294, and Spiffy,
    arXiv:2509.18085; at temperature > 0 by keyed noise).

    All noise is keyed, so a step is a function of the canvas, and a canvas that was guessed can be recognised. One forward
    evaluates the true canvas of a row and width - 1 guesses of later ones; the policy makes its step from each; the walk
    then goes from the true canvas to its successor for as long as that is among the guesses. The last node's step gives the
    next true canvas, so no forward is spent on checking alone, and at least one step is made.

    Guesses fill in the tokens that the last canvas proposed, in the order the policy is expected to take: known beforehand
    for random, left-to-right and frozen orders (a chain), a draft graph for confidence orders, prefixes of the order for
    policies that decide how many to commit.

    width: canvases evaluated for a row in one forward. "auto" times the model at widths 1, 2, 4, 8 and 16 on first use and
        takes the width with the most expected steps per second, often 1 where the model is not bound by its weights. No
        width changes a token. How much is left and how drafts fared is read from the device, every fourth forward.
    guard: at temperature 0, a step on the walk that a change of this much in a probability or an order score could turn is
        computed again for the row alone, as a batch of one without padding. A model whose arithmetic depends on the batch's
        shape then gives the tokens of that shape, in any batch, if its shapes differ by less. One look at the device a
        forward, and one small forward for each such step.
    """

    width: int | Literal["auto"] = "auto"
    guard: float | None = None

    guarantee = Guarantee.PATH_EXACT
    promise = "every committed canvas is one that the policy itself comes to, with the same noise"

    def __post_init__(self) -> None:
        if self.width != "auto" and (isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1):
            raise InvalidArgumentError(f"width must be 'auto' or an int >= 1, got {self.width!r}")
        if self.guard is not None and not 0 < self.guard < 1:
            raise InvalidArgumentError(f"guard must be in (0, 1) or None, got {self.guard!r}")

    def check(self, sampler: Sampler) -> None:
        if sampler.remask is not None:
            raise InvalidArgumentError(
                f"DraftVerify follows a walk that only commits: leave out verify=, or remask={sampler.remask}"
            )
        if sampler.length is not None or sampler.cache is not None:
            other = f"length={sampler.length}" if sampler.cache is None else f"cache={sampler.cache}"
            raise InvalidArgumentError(
                f"DraftVerify evaluates several whole canvases of a row at once: leave out verify=, or {other}"
            )
        if sampler.spec.sees_time:
            raise InvalidArgumentError(
                "DraftVerify recognises a state by its canvas, and with spec.sees_time the model sees more: leave out verify="
            )
        for rule in sampler.stopping:
            if type(rule).start is not Part.start:
                raise InvalidArgumentError(
                    f"{rule} remembers what earlier canvases said, which a draft cannot know: leave out verify=, or take a "
                    "stopping rule without memory, as EndOfText"
                )
        if self.guard is not None and type(sampler.policy).leeway is Policy.leeway:
            raise InvalidArgumentError(
                f"{sampler.policy} does not say how near it was to another choice: take guard=None, or a policy that does, "
                "for instance Threshold"
            )

    def start(self, state: SamplerState) -> None:
        reserve(state)

    def scored(self, state: SamplerState) -> Tensor:
        """The masked positions that the next forward's drafts may fill: this block's, and those of as many blocks more as a
        draft may reach."""
        if state.block_length is None:
            return state.masked()
        width = MOST if self.width == "auto" else self.width
        ahead = -(-width // state.block_length) * state.block_length
        return state.masked() & (state.column < (state.block_end + ahead)[:, None]) & state.live[:, None]

    def begin(self, loop: Loop) -> Callable[[SamplerState], None]:
        if self.guard is not None and loop.scoring["temperature"] > 0:
            raise InvalidArgumentError(
                f"guard={self.guard:g} compares the two best probabilities, which do not decide at temperature > 0: "
                "take temperature=0, or guard=None"
            )
        return Steps(loop, self.width, self.guard)


class Steps:
    """The steps of one `generate` call, and what it learns of its drafts on the way."""

    def __init__(self, loop: Loop, width: int | Literal["auto"], guard: float | None) -> None:
        self.loop = loop
        self.guard = guard
        self.policy = loop.sampler.policy
        self.width = Width(loop, width, self._try)
        self._drafter: Drafter | None = None

    def __call__(self, state: SamplerState) -> None:
        loop = self.loop
        skip_idle(state, self.policy)
        width = self.width.choose(state)
        nodes, after, evaluation, chosen = self._forward(state, width)
        loop.account(after, evaluation)
        guard = None if self.guard is None else Guard(loop, self.guard, nodes, evaluation, chosen, after)
        commit_(after.tokens, evaluation.scores.token, chosen, backend=loop.sampler.backend)
        path = self._walk(nodes, after, width)
        while guard is not None and guard.settle(after, evaluation, path):
            path = self._walk(nodes, after, width)
        if width > 1:
            self._learn(state, after, path)
        loop.stop(after, evaluation)
        path = until_stopped(path, after.live)
        walked = on_path(path).flatten()
        loop.run.note_nan(after, evaluation.scores.confidence, evaluation.scored & walked[:, None])
        scores, scored = evaluation.scores, evaluation.scored
        if width > 1:
            last = path.gather(1, (path < width).sum(-1, keepdim=True) - 1)[:, 0]
            rows = last + width * torch.arange(len(last), device=last.device)
            after, scored = after.take(rows), scored[rows]
            scores = TokenScores(*(value[rows] for value in scores))
        state.become(after)
        remember(state, scores, scored)
        advance(state)

    def drafter(self, state: SamplerState) -> Drafter:
        if self._drafter is None:
            self._drafter = drafter_for(self.loop, self.policy.outlook(recall(state), state))
        return self._drafter

    def _forward(self, state: SamplerState, width: int) -> tuple[SamplerState, SamplerState, Evaluation, Tensor]:
        """Nodes, the same with what the policy notes of them, what the model says of them, and what commits."""
        nodes = state if width == 1 else self.drafter(state).nodes(state, width)
        after = replace(
            nodes,
            tokens=nodes.tokens.clone(),
            memory=fresh(nodes.memory),
            position_memory=fresh(nodes.position_memory),
        )
        evaluation, chosen = self.loop.choose(self.loop.evaluate(after, self.policy.candidates(after)), after)
        return nodes, after, evaluation, chosen

    def _walk(self, nodes: SamplerState, after: SamplerState, width: int) -> Tensor:
        """int64 [B, W]: the nodes the walk comes through."""
        if width == 1:
            return torch.zeros_like(nodes.step)[:, None]
        drafter, following = self.drafter(nodes), replace(after)
        advance(following)
        if drafter.exact:
            following.enter_blocks()
            skip_idle(following, self.policy)
        return walk(successors(nodes, following, width, drafter.compared))

    def _learn(self, state: SamplerState, after: SamplerState, path: Tensor) -> None:
        """Puts the books of the nodes on the path right, and tells the drafter and the width how they did."""
        drafter = self.drafter(state)
        if not drafter.exact:
            keep_books(after, state, path)
        canvases = after.tokens.unflatten(0, path.shape)
        drafter.learn(canvases, on_path(path) & state.live[:, None])
        self.width.learn(path, state.live)

    def _try(self, state: SamplerState, width: int) -> None:
        """What a forward costs, without consequences, for `Width` to time."""
        nodes, after, evaluation, chosen = self._forward(state, width)
        commit_(after.tokens, evaluation.scores.token, chosen, backend=self.loop.sampler.backend)
        path = self._walk(nodes, after, width)
        int(path[0, 0])  # waits for the device
