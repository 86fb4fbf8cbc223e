"""Calls a model for a batch of canvases and scores the positions a sampler asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, score_tokens
from dlm_samplers.models.spec import ModelSpec

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]


class Adapter:
    """One model and its description. Stateless between calls."""

    def __init__(self, model: Callable[..., Any], spec: ModelSpec) -> None:
        if not callable(model):
            raise InvalidArgumentError(
                f"model must be callable: model(input_ids, ...) -> logits; got {type(model).__name__}"
            )
        self.model = model
        self.spec = spec

    def forward(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """Logits [B, L, V] of tokens [B, L], in the model's own alignment.

        valid: bool [B, L], False on padding; None when there is none.
        """
        kwargs: dict[str, Any] = {}
        spec = self.spec
        if valid is not None:
            if spec.attention_mask == "2d":
                kwargs["attention_mask"] = valid.long()
            else:
                kwargs["attention_mask"] = valid[:, None, :, None] & valid[:, None, None, :]
            if spec.position_ids is not None:
                kwargs[spec.position_ids] = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        elif spec.full_attention_mask is not None:
            kwargs["attention_mask"] = spec.full_attention_mask
        output = self.model(tokens, **kwargs)
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise InvalidArgumentError(
                f"model must return logits or an object with .logits, got {type(output).__name__}"
            )
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            raise InvalidArgumentError(
                f"model: expected logits [B, L, V] = [{tokens.shape[0]}, {tokens.shape[1]}, V], got {list(logits.shape)}"
            )
        return logits

    def guided(self, tokens: Tensor, editable: Tensor, valid: Tensor | None, cfg_scale: float) -> Tensor:
        """Classifier-free guided logits: unconditional + (cfg_scale + 1) (conditional - unconditional), [B, L, V].

        The unconditional input has every prompt token masked (LLaDA, arXiv:2502.09992, appendix A); both halves run as
        one batch of 2B. The combination is done in place.
        """
        prompt = ~editable if valid is None else ~editable & valid
        unconditional = tokens.masked_fill(prompt, self.spec.mask_id)
        both = self.forward(torch.cat([tokens, unconditional]), None if valid is None else torch.cat([valid, valid]))
        logits, baseline = both.chunk(2)
        return logits.sub_(baseline).mul_(cfg_scale + 1).add_(baseline)

    def align(self, logits: Tensor) -> Tensor:
        """Logits [B, L, V] such that row i predicts position i. A copy when the model's outputs are shifted."""
        if self.spec.logit_shift == 0:
            return logits
        return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)

    def score(self, logits: Tensor, active: Tensor, row_ids: Tensor, *, aligned: bool, **scoring: Any) -> TokenScores:
        """`score_tokens` at the active positions of [B, L], whatever the model's alignment, without moving the logits."""
        if aligned or self.spec.logit_shift == 0:
            return score_tokens(logits, eligible=active, row_ids=row_ids, **scoring)
        first = score_tokens(logits[:, :1], eligible=active[:, :1], row_ids=row_ids[:, :1], **scoring)
        rest = score_tokens(logits[:, :-1], eligible=active[:, 1:], row_ids=row_ids[:, 1:], **scoring)
        return TokenScores(*(torch.cat(pair, dim=1) for pair in zip(first, rest, strict=True)))
