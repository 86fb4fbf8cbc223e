"""`BlockRefinementScheduler` of diffusers in one pass over the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import BlockRefinementScheduler, SchedulerMixin  # noqa: F401 - loading a saved pipeline asks this module for it
from diffusers.schedulers.scheduling_block_refinement import BlockRefinementSchedulerOutput
from torch import Tensor

from dlm_kernels import InvalidArgumentError, score_tokens, select_positions
from dlm_samplers.integrations.diffusers.checks import check_step
from dlm_samplers.integrations.diffusers.draws import Keys

SAMPLING_METHODS = ("auto", "greedy", "multinomial")


class FusedBlockRefinementScheduler(BlockRefinementScheduler):
    """Drop-in for `BlockRefinementScheduler`: same config, arguments and outputs, no tensor of the logits' size.

    At temperature 0 the tokens are the original's at every step, in the mask mode and in the uniform mode
    (mask_token_id=None). Differences:

    - Equal confidences: the lowest position commits first (original: open, `torch.topk` and an unstable `argsort` decide).
    - Probabilities are within 1e-6 of the exact ones (original: its fp32 softmax on a CPU is off by 1e-4 at 150,000 tokens, by
      1e-6 at 30,000). A confidence that is closer than this to a threshold or to another one may fall on the other side.
    - Above temperature 0, token and noise are drawn by numbers keyed by row and position, from one seed a step that is taken
      from `generator` (or torch's own): the same distribution, other draws, and a row's do not depend on the rows after it.
      The generator may be on another device than the logits.
    - Temperature, top-k and top-p work in fp32 on logits of any dtype (original: in the logits' dtype; in bf16 the mass of a
      nucleus is off by 0.002). Tokens of equal logit stay or go together in top-p (original: by the order of its sort), and
      it ends where the mass reaches top_p (original: one more where it is met exactly).
    - `sampling_method` outside "auto", "greedy", "multinomial" raises (original: greedy).
    - `prompt_mask` may also be [B, L] (original: IndexError, or one mask for all).
    - NaN logits: the first NaN is the token, its probability NaN, and it commits last (original: it commits first, or
      RuntimeError from `torch.multinomial`).
    - Logits are fp32, bf16 or fp16 (original: also fp64); `sampled_probs` carries no gradient.
    - Nothing waits for the device, unless `timestep` is a tensor there.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        mask_token_id: int | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        sampling_method: str = "auto",
        threshold: float | None = None,
        editing_threshold: float | None = None,
        minimal_topk: int | None = None,
        prompt_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> BlockRefinementSchedulerOutput | tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """One refinement step; arguments and outputs as in `BlockRefinementScheduler.step`, which does not use
        `minimal_topk` either.

        Raises:
            InvalidArgumentError (a ValueError): temperature < 0, top_p <= 0, an unknown sampling method, shapes that do not
                go together, logits of another dtype.
        """
        check_step(model_output, sample)
        if sampling_method not in SAMPLING_METHODS:
            raise InvalidArgumentError(f"sampling_method must be one of {SAMPLING_METHODS}, got {sampling_method!r}")
        if temperature < 0:
            raise InvalidArgumentError(f"temperature must be >= 0, got {temperature}")
        if threshold is None:
            threshold = self.config.threshold
        if editing_threshold is None:
            editing_threshold = self.config.editing_threshold

        draws = temperature > 0 and sampling_method != "greedy"
        scoring: dict[str, Any] = {}
        noise = None
        if draws or mask_token_id is None:
            keys = Keys.draw(sample, generator)
            if mask_token_id is None:
                noise = keys.uniform_tokens(model_output.shape[-1])
            if draws:
                top_k = 0 if top_k is None or top_k < 0 else top_k
                top_p = 1.0 if top_p is None or top_p > 1 else top_p
                filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
                scoring = {**filters, "confidence": "sampling", **keys._asdict()}
        scores = score_tokens(model_output, **scoring)

        step, editable, quota = int(timestep), None, None
        if mask_token_id is None:
            committed = self._committed_before(step, sample)
            open_, quota = ~committed, self._owed(step, committed)
            if editing_threshold is not None:  # here one of 0 edits, as in the original
                editable = committed
        else:
            open_ = sample == mask_token_id
            if self._transfer_schedule is not None:
                quota = self._transfer_schedule[min(step, len(self._transfer_schedule) - 1)]
            if editing_threshold is not None and editing_threshold > 0:
                editable = ~open_ if prompt_mask is None else ~open_ & ~prompt_mask

        transfer = edited = torch.zeros_like(open_)
        if quota is not None:  # without `set_timesteps` nothing is due
            transfer = self._select(scores.confidence, open_, quota, threshold)
        if editable is not None:
            edited = editable & (scores.token != sample) & (scores.confidence > float(editing_threshold))
        after = torch.where(transfer | edited, scores.token, sample)
        if noise is not None:
            self._committed = ~open_ | transfer
            after = torch.where(self._committed, after, noise)

        if not return_dict:
            return after, transfer, edited, scores.token, scores.confidence, model_output
        return BlockRefinementSchedulerOutput(
            prev_sample=after,
            transfer_index=transfer,
            editing_transfer_index=edited,
            sampled_tokens=scores.token,
            sampled_probs=scores.confidence,
            pred_logits=model_output,
        )

    @staticmethod
    def _select(confidence: Tensor, open_: Tensor, quota: Tensor, threshold: float) -> Tensor:
        """The `quota` best and every one above the threshold, which may lie outside (0, 1]: 2 leaves the quota alone."""
        bound = torch.full((), float(threshold), device=confidence.device)
        return select_positions(confidence, open_, quota=quota, threshold=bound, strict=True, at_least=0)

    def _committed_before(self, step: int, sample: Tensor) -> Tensor:
        """bool [B, L]: what the block's earlier steps committed; nothing at its first."""
        if step == 0 or self._committed is None or self._committed.shape != sample.shape:
            return torch.zeros_like(sample, dtype=torch.bool)
        return self._committed

    def _owed(self, step: int, committed: Tensor) -> Tensor:
        """int64 [B]: commits that an even spread over the steps asks for by the end of this one, and that are not there."""
        due = -(-(step + 1) * committed.shape[1] // self.num_inference_steps)  # rounded up
        return (due - committed.sum(-1)).clamp(min=0)
