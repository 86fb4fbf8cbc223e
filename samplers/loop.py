"""One step of the rows of a state: forward, score, select, commit, remask, stop, lengthen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, commit_, revoke_
from dlm_samplers.canvas import check_vocabulary
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.models.adapter import LogitsProcessor
from dlm_samplers.parts import Part
from dlm_samplers.remask.base import Companions, revisable
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.run import Run
    from dlm_samplers.sampler import Sampler


UNFILTERED = {"top_k": 0, "top_p": 1.0}
GREEDY = {"temperature": 0.0, "confidence": "model", **UNFILTERED}


@dataclass
class Loop:
    """What stays the same over the steps of one `generate` call."""

    sampler: Sampler
    run: Run
    scoring: dict[str, Any]
    cfg_scale: float = 0.0
    processor: LogitsProcessor | None = None

    def __post_init__(self) -> None:
        sampler = self.sampler
        self.parts: tuple[Part, ...] = sampler.parts
        # A position that is filled twice, or a column that another position moves to, needs noise of its own.
        self.keyed_by_step = sampler.policy.keyed_by_step or sampler.remask is not None or sampler.length is not None
        self.from_hidden = (
            sampler.adapter.head is not None
            and self.processor is None
            and not self.cfg_scale
            and not any(part.needs_logits for part in self.parts)
            and not torch.is_autocast_enabled(self.run.tokens.device.type)  # where states and head may differ in dtype
        )
        tempered = self.scoring["confidence"] == "sampling" and self.scoring["temperature"] > 0
        self.measured_at = self.scoring["temperature"] if tempered else 1.0
        # A processor may count its calls, and so may a model that knows the time without being told.
        counts = self.processor is not None or (sampler.spec.sees_time and sampler.spec.time_argument is None)
        self.foresees = sampler.policy.foresees and not counts
        self.checked_vocabulary = sampler.spec.vocab_size is not None
        self.verified_steps = None if sampler.verify is None else sampler.verify.begin(self)

    @property
    def noisy(self) -> bool:
        """True when the token drawn at a position changes with the step."""
        return self.keyed_by_step and self.scoring["temperature"] > 0

    def step(self, state: SamplerState) -> None:
        """Advances every live row in place: by one step, or by as many as `verify` can make of one forward."""
        if self.verified_steps is not None:
            self.verified_steps(state)
            return
        policy, length = self.sampler.policy, self.sampler.length
        if length is not None:
            state.active = state.active & ~length.waiting(state)[:, None]
        candidates = policy.candidates(state)
        if not self.foresees:
            self._forward_and_commit(state, candidates)
        else:
            busy = candidates.any(-1) | (state.held & state.live)
            if bool(busy.all()):
                self._forward_and_commit(state, candidates)
            else:  # the others' canvases stay what they are, whatever the model says of them
                rows = busy.nonzero()[:, 0]
                if rows.numel():
                    part = state.take(rows)
                    self._forward_and_commit(part, candidates[rows])
                    state.put(rows, part)
        state.step = state.step + state.live
        state.block_step = state.block_step + state.live

    def evaluate(self, state: SamplerState, candidates: Tensor, *, unpadded: bool = False) -> Evaluation:
        """One forward; scores where the policy may commit and where a part wants to look.

        unpadded: these rows have no padding, though the batch may.
        """
        sampler, adapter = self.sampler, self.sampler.adapter
        scored = candidates
        for part in self.parts:
            more = part.scored(state)
            scored = scored if more is None else scored | more
        valid = state.valid if self.run.padded and not unpadded else None
        shift, head = sampler.spec.logit_shift, None
        companions, beside = None if sampler.remask is None else sampler.remask.companions(state), None
        computed: Tensor | int = state.width
        if companions is not None:
            output, beside = self._forward_beside(state, companions)
        elif sampler.cache is not None:
            (output, computed), head = sampler.cache.forward(adapter, state), adapter.head
            if head is None:
                output = adapter.apply_head(output)
        elif self.from_hidden:
            output, head = adapter.hidden(state.tokens, valid), adapter.head
        elif self.cfg_scale:
            output = adapter.guided(state.tokens, state.editable, valid, self.cfg_scale, self._noise(state))
        else:
            output = adapter.forward(state.tokens, valid, self._noise(state))
        if not self.checked_vocabulary:
            width = output.shape[-1] if head is None else head.weight.shape[0]
            check_vocabulary(state.tokens, ~state.editable & state.valid, width)
            self.checked_vocabulary = True
        if self.processor is not None:
            output, shift = self.processor(state.tokens, adapter.align(output)), 0
        unscored = Evaluation(
            scores=None,  # type: ignore[arg-type]
            scored=scored,
            masked=state.masked(),
            output=output,
            shift=shift,
            head=head,
            companions=beside,
            columns=computed,
            drawn=self.scoring["temperature"] > 0,
            temperature=self.measured_at,
        )
        scores = sampler.score(unscored, state, self._keys(state) | self.scoring)
        greedy = None
        if any(part.needs_greedy for part in self.parts):
            filtered = self.scoring["confidence"] == "sampling" and not self.scoring.items() >= UNFILTERED.items()
            same = not unscored.drawn and not filtered
            greedy = scores if same else sampler.score(unscored, state, self._keys(state) | self.scoring | GREEDY)
        return replace(unscored, scores=scores, greedy=greedy)

    def _forward_beside(self, state: SamplerState, companions: Companions) -> tuple[Tensor, Evaluation]:
        """The output of the canvas, and what the companions say."""
        if self.cfg_scale:
            raise InvalidArgumentError(
                f"cfg_scale must be 0 with {type(self.sampler.remask).__name__}, which shows the model more than a canvas; "
                f"got {self.cfg_scale}"
            )
        column, width = companions.column, state.width
        tokens = torch.cat([state.tokens, torch.full_like(column, state.mask_id)], dim=1)
        position_ids = torch.cat([state.column.expand_as(state.tokens), column], dim=1)
        output = self.sampler.adapter.attend(tokens, companions.attention, position_ids, self._noise(state))
        masked = torch.zeros_like(companions.scored)
        unscored = Evaluation(
            scores=None,  # type: ignore[arg-type]
            scored=companions.scored,
            masked=masked,
            output=output[:, width:],
            shift=0,
            temperature=self.measured_at,
        )
        keys = self._keys(state) | {"row_ids": state.row_ids.gather(1, column)}
        scores = self.sampler.score(unscored, state, keys | self.scoring)
        return output[:, :width], replace(unscored, scores=scores)

    def _noise(self, state: SamplerState) -> Tensor | None:
        """float32 [B]: what a model that sees time is told of it, as a share of masks.

        The policy's, if it walks a grid of noise levels, as the published samplers do. Else the share of masks among the
        positions the sampler fills, which estimates it: the prompt was never noised.
        """
        if self.sampler.spec.time_argument is None or not self.sampler.spec.sees_time:
            return None
        noise = self.sampler.policy.noise(state)
        return state.masked().sum(-1) / state.editable.sum(-1).clamp(min=1) if noise is None else noise

    def account(self, state: SamplerState, evaluation: Evaluation) -> None:
        """Counts one forward of `state`."""
        self.run.count(state, 2 if self.cfg_scale else 1, evaluation.columns)

    def choose(self, evaluation: Evaluation, state: SamplerState) -> tuple[Evaluation, Tensor]:
        """The scores as the policy sees them, and bool [B, L]: what commits."""
        scores = self.sampler.policy.observe(evaluation, state)
        if scores is not evaluation.scores:
            evaluation = replace(evaluation, scores=scores)
        return evaluation, self.sampler.policy.select(scores, state)

    def stop(self, state: SamplerState, evaluation: Evaluation) -> None:
        """Applies the stopping rules to the canvases after the commit."""
        for rule in self.sampler.stopping:
            stopped = rule.stop(state, self.sampler.spec, evaluation) & state.live
            if self.sampler.length is not None:
                stopped &= ~self.sampler.length.waiting(state)
            if rule.fills:
                masked = state.masked()
                stopped &= ~(masked & ~evaluation.masked).any(-1)  # a token just taken back: nothing is proposed for it
                rest = masked & stopped[:, None]
                commit_(state.tokens, evaluation.scores.token, rest, backend=self.sampler.backend)
            state.live = state.live & ~stopped

    def _forward_and_commit(self, state: SamplerState, candidates: Tensor) -> None:
        evaluation = self.evaluate(state, candidates)
        self.account(state, evaluation)
        self.run.note_nan(state, evaluation.scores.confidence, evaluation.scored)
        evaluation, chosen = self.choose(evaluation, state)
        remask, backend = self.sampler.remask, self.sampler.backend
        revocation, committed = None, chosen
        if remask is not None:
            open_to_doubt = revisable(state)
            revocation = remask.revoke(evaluation, chosen, state)
            rewritten = remask.rewrite(evaluation, chosen, state)
            committed = chosen if rewritten is None else chosen | (rewritten & open_to_doubt)
        commit_(state.tokens, evaluation.scores.token, committed, backend=backend)
        if remask is not None and revocation is not None:
            revoke_(
                state.tokens,
                revocation.confidence,
                mask_id=state.mask_id,
                eligible=open_to_doubt,
                threshold=revocation.threshold,
                quota=revocation.quota,
                probability=revocation.probability,
                committed=None if remask.scheduled else chosen.sum(-1),
                backend=backend,
                **self._keys(state, position_step=True),
            )
        self.stop(state, evaluation)
        if self.sampler.length is not None:
            state.insert_masks(*self.sampler.length.insertions(state, self.sampler.spec, evaluation))
            self.run.padded = not bool(state.valid.all())

    def _keys(self, state: SamplerState, position_step: bool = False) -> dict[str, Tensor]:
        step = state.step if self.keyed_by_step or position_step else torch.zeros_like(state.step)
        return {"seed": state.seed[:, None], "row_ids": state.row_ids, "step": step[:, None]}
