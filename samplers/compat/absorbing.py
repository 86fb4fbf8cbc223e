"""What the swaps of MDLM's family share: settings, and the walk through a grid of noise levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, keyed_uniform, score_tokens
from dlm_kernels.reference.philox import ROUTE_STREAM
from dlm_kernels.rng import make_row_ids
from dlm_samplers.models import Adapter, ModelSpec
from dlm_samplers.models.adapter import device_of
from dlm_samplers.models.describe import recognise
from dlm_samplers.models.seen import Seen


def spec_for(model: Any, spec: ModelSpec | None, mask_index: int | None) -> ModelSpec:
    """The caller's, or what the model's names say, or a network without time whose config may have the mask token."""
    if spec is None:
        known = recognise(model, mask_id=mask_index)
        spec = known.require_spec() if known else ModelSpec.of(model, mask_id=mask_index, attention_mask="none")
    elif mask_index is not None:
        raise InvalidArgumentError("mask_index belongs inside spec when spec is given")
    if spec.block_length is not None:
        raise InvalidArgumentError(
            "model: block-causal, and this sampler denoises the whole canvas at once; use LLaDASampler(model, "
            "policy=AncestralUnmask())"
        )
    return spec


class Settings:
    """Arguments, or else the fields of the training configuration that a model carries, or else defaults."""

    def __init__(self, model: Any) -> None:
        self._seen = Seen.of(model)

    def __call__(self, name: str, value: Any, *fields: str, default: Any = None) -> Any:
        if value is None:
            value = self._seen.setting(*fields)
        if value is None:
            value = default
        if value is None:
            raise InvalidArgumentError(f"{name} is missing, and the model has no config.{fields[0]}")
        return value

    def canvas(self, model: Any, x: Tensor | None, batch_size: int | None, length: int | None, mask_id: int) -> Tensor:
        """A copy of x, or all masks."""
        if x is not None:
            if batch_size is not None or length is not None:
                raise InvalidArgumentError("batch_size and length are those of x when x is given")
            if x.ndim != 2 or x.dtype != torch.int64:
                raise InvalidArgumentError(f"x must be int64 [B, L], got {x.dtype} of shape {list(x.shape)}")
            return x.clone()
        shape = (
            self("batch_size", batch_size, "loader.eval_batch_size"),
            self("length", length, "model.length", "model_length"),
        )
        return torch.full(shape, mask_id, dtype=torch.int64, device=device_of(model))


def fresh_seed(seed: int | None) -> int:
    """The caller's, or one from torch's global generator, so that `torch.manual_seed` rules it."""
    return int(torch.randint(2**63 - 1, ())) if seed is None else seed


class Walk:
    """Canvases [B, L] on their way from all noise to none.

    Which positions change in a step is decided without the model, so a forward is done for the rows in which a mask becomes
    a token, and for no others: of the published law nothing changes. Reads that back from the device, once a step.
    """

    def __init__(self, model: Callable[..., Any], spec: ModelSpec, x: Tensor, seed: int, top_p: float = 1.0) -> None:
        self.adapter, self.x, self.seed, self.top_p = Adapter(model, spec), x, seed, top_p
        self.open = x == spec.mask_id  # what the caller gave stays
        rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
        self.row_ids = make_row_ids(rows[:, None], columns)

    @property
    def masked(self) -> Tensor:
        return self.x == self.adapter.spec.mask_id

    def step(self, number: int, t: float, fill: float, remask: float | Tensor = 0.0) -> tuple[Tensor, Tensor]:
        """Fills each mask with probability `fill`, at noise level t, and masks each token with probability `remask`.

        bool [B, L], float32 [B, L]: the masks that were filled, and the probability of their tokens.
        """
        masked = self.masked
        u = keyed_uniform(self.seed, self.row_ids, number, stream=ROUTE_STREAM)
        filled, remasked = masked & (u < fill), self.open & ~masked & (u < remask)
        probability = self._fill(filled, t, step=number, temperature=1.0, top_p=self.top_p)
        self.x.masked_fill_(remasked, self.adapter.spec.mask_id)
        return filled, probability

    def finish(self, number: int, t: float, temperature: float) -> None:
        """Fills all masks, at temperature 0 with the likeliest tokens."""
        self._fill(self.masked, t, step=number, temperature=temperature)

    def _fill(self, where: Tensor, t: float, **scoring: Any) -> Tensor:
        probability = torch.zeros(where.shape, device=where.device)
        rows = where.any(-1).nonzero()[:, 0]
        if rows.numel():
            scores = self._scores(rows, where[rows], t, scoring)
            self.x[rows] = torch.where(where[rows], scores.token, self.x[rows])
            probability[rows] = scores.confidence
        return probability

    def _scores(self, rows: Tensor, where: Tensor, t: float, scoring: dict[str, Any]) -> TokenScores:
        adapter = self.adapter
        noise = torch.full((len(rows),), t, device=self.x.device)
        logits = adapter.align(adapter.forward(self.x[rows], None, noise))
        return score_tokens(
            logits,
            eligible=where,
            suppress_ids=_never(adapter.spec),
            confidence="sampling",
            seed=self.seed,
            row_ids=self.row_ids[rows],
            **scoring,
        )


def clean_probabilities(adapter: Adapter, x: Tensor, t: Tensor) -> Tensor:
    """MDLM's SUBS: float32 [B, L, V], never the mask, and where there is a token that token."""
    spec, masked = adapter.spec, x == adapter.spec.mask_id
    logits = adapter.align(adapter.forward(x, None, t)).float()
    logits = logits.index_fill(-1, torch.tensor(_never(spec), device=x.device), -torch.inf)
    p = logits.softmax(-1).masked_fill_(~masked[:, :, None], 0)
    return p.scatter_(-1, x[:, :, None], (~masked).to(p)[:, :, None])


def _never(spec: ModelSpec) -> list[int]:
    """The mask is no token, whatever else is suppressed."""
    return sorted({spec.mask_id, *spec.never})
