"""Finds out by experiment what a model does, and whether its description is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.models.adapter import Adapter, device_of
from dlm_samplers.models.spec import ModelSpec

Attention = Literal["bidirectional", "causal", "block_causal", "other"]
Padding = Literal["honoured", "ignored", "not asked"]


class ModelMismatchError(InvalidArgumentError):
    """A model does not do what its description says."""


@dataclass(frozen=True)
class Probe:
    """What the experiments found.

    attention: which tokens a position's logits move with. "block_causal": its own block and those before.
    block_length: of block-causal attention, in tokens from the left edge; else None.
    left_padding, right_padding: "honoured": real positions have the logits they have without padding, up to rounding.
        "not asked": the description says the model cannot ignore padding.
    deterministic: two calls give the same bits.
    batch_difference: largest difference of a row's logits between a batch of 1 and a larger one, relative to the spread of
        the logits. Above 0, near ties may fall differently from batch to batch.
    logit_shift: 0 or 1, with a sample of text: the alignment under which the model expects that text more; else None.
    """

    attention: Attention
    block_length: int | None
    left_padding: Padding
    right_padding: Padding
    deterministic: bool
    batch_difference: float
    logit_shift: int | None

    def __str__(self) -> str:
        attention = self.attention if self.block_length is None else f"{self.attention}, blocks of {self.block_length}"
        shift = "not tested (give a sample of text)" if self.logit_shift is None else str(self.logit_shift)
        return "\n".join(
            [
                f"attention         {attention}",
                f"left padding      {self.left_padding}",
                f"right padding     {self.right_padding}",
                f"logit shift       {shift}",
                f"deterministic     {'yes' if self.deterministic else 'no'}",
                f"batch difference  {self.batch_difference:.1e} of the logits' spread",
            ]
        )


@torch.no_grad()
def probe(
    model: Callable[..., Any],
    spec: ModelSpec | None = None,
    *,
    sample: Sequence[int] | Tensor | None = None,
    length: int = 24,
    seed: int = 0,
    check: bool = True,
) -> Probe:
    """Perturbs the inputs of a model and reports what moves. Some `length` forwards' worth of rows, in one batch.

    spec: the description to test; default: `ModelSpec.of(model)`.
    sample: int64 [N], text that the model was trained on, for the test of alignment; the more the surer.
    length: columns of the test canvases; block lengths up to half of it are recognised.
    check: raise when the description is wrong. False only reports.

    Raises ModelMismatchError, naming the test, what was expected and what came: logits not bidirectional, padding that the
    description says is honoured and is not, another alignment. InvalidArgumentError for a length below 4, or a vocabulary
    that is not known.
    """
    spec = ModelSpec.of(model) if spec is None else spec
    if length < 4:
        raise InvalidArgumentError(f"length must be at least 4, got {length}")
    adapter = Adapter(model, spec)
    generator = torch.Generator().manual_seed(seed)
    device = device_of(model)
    vocabulary = spec.vocab_size
    if vocabulary is None:
        vocabulary = adapter.forward(torch.full((1, length), spec.mask_id, device=device), None).shape[-1]
    allowed = torch.tensor([t for t in range(min(vocabulary, 50_000)) if t not in {*spec.never, spec.eos_id}])
    tokens = allowed[torch.randint(len(allowed), (1, length), generator=generator)].to(device)
    other = allowed[torch.randint(len(allowed), (length,), generator=generator)].to(device)
    other = torch.where(other == tokens[0], allowed[0].to(device), other)

    alone = adapter.forward(tokens, None)[0].float()
    spread = float(alone.std()) or 1.0
    deterministic = torch.equal(alone, adapter.forward(tokens, None)[0].float())
    rows = tokens.repeat(length + 1, 1)
    column = torch.arange(length, device=device)
    rows[column, column] = other
    logits = adapter.forward(rows, None).float()
    noise = float((logits[-1] - alone).abs().max())
    moved = max(4 * noise, 1e-6 * spread) < (logits[:-1] - logits[-1]).abs().amax(-1).T  # [output, changed token]
    attention, block_length = _pattern(moved)

    # Beside padding other kernels run, which round otherwise: in bf16 by up to 0.05 of the spread, ignored padding by over 1.
    rounding = 16 * torch.finfo(_dtype_of(model)).eps
    tolerance = max(16 * noise, max(1e-4, rounding) * spread)
    left, right = (_padding(adapter, tokens, alone, side, tolerance) for side in ("left", "right"))
    shift = None if sample is None else _shift(adapter, torch.as_tensor(sample, device=device))
    found = Probe(attention, block_length, left, right, deterministic, noise / spread, shift)
    if check:
        _compare(found, spec)
    return found


def _dtype_of(model: Any) -> torch.dtype:
    """Of a model's floating-point parameters, the first; float32 for a callable without any."""
    parameters = getattr(model, "parameters", None)
    kinds = (p.dtype for p in parameters() if p.is_floating_point()) if callable(parameters) else iter(())
    return next(kinds, torch.float32)


def _compare(found: Probe, spec: ModelSpec) -> None:
    def fail(test: str, expected: str, got: str) -> None:
        raise ModelMismatchError(f"model: {test}: the description says {expected}, the model {got}")

    if found.attention != "bidirectional":
        blocks = "" if found.block_length is None else f" in blocks of {found.block_length}"
        fail("change of one token", "every position sees every other", f"is {found.attention}{blocks}")
    for side in ("left", "right"):
        if getattr(found, f"{side}_padding") == "ignored":
            says = f"attention_mask={spec.attention_mask!r} hides padding"
            fail(f"padding on the {side}", says, "gives real positions other logits beside it")
    if found.logit_shift is not None and found.logit_shift != spec.logit_shift:
        fail("alignment on the sample", f"logit_shift={spec.logit_shift}", f"fits {found.logit_shift} better")


def _pattern(moved: Tensor) -> tuple[Attention, int | None]:
    """The attention that a dependency matrix [L, L] shows; moved[i, j]: output i moves with token j."""
    length = len(moved)
    column = torch.arange(length, device=moved.device)
    future = column > column[:, None]
    if not bool((moved & future).any()):
        return "causal", None
    for block in range(2, length // 2 + 1):
        later = column // block > (column // block)[:, None]
        if not bool((moved & later).any()) and bool(
            (moved & future & ~later).any(-1)[column % block < block - 1].all()
        ):
            return "block_causal", block
    ahead = bool((moved & future).any(-1)[:-1].all())
    behind = bool((moved & ~future).any(-1)[1:].all())
    return ("bidirectional" if ahead and behind else "other"), None


def _padding(adapter: Adapter, tokens: Tensor, alone: Tensor, side: str, tolerance: float) -> Padding:
    if adapter.spec.attention_mask == "none":
        return "not asked"
    pad = torch.full_like(tokens[:, :3], adapter.spec.fill_id)
    hidden, real = torch.zeros_like(pad, dtype=torch.bool), torch.ones_like(tokens, dtype=torch.bool)
    left = side == "left"
    canvas = torch.cat([pad, tokens] if left else [tokens, pad], dim=1)
    valid = torch.cat([hidden, real] if left else [real, hidden], dim=1)
    logits = adapter.forward(canvas, valid)[0].float()
    beside = logits[3:] if left else logits[:-3]
    return "honoured" if float((beside - alone).abs().max()) <= tolerance else "ignored"


def _shift(adapter: Adapter, sample: Tensor) -> int:
    """The alignment with the larger mean probability of single masked tokens of the sample.

    Of probabilities, not their logs: tokens that nothing predicts would decide those.
    """
    if sample.ndim != 1 or sample.dtype != torch.int64 or len(sample) < 4:
        raise InvalidArgumentError(f"sample must be 1-D int64 with at least 4 ids, got {list(sample.shape)}")
    at = torch.arange(1, len(sample), device=sample.device)
    rows = sample.repeat(len(at), 1)
    rows[at - 1, at] = adapter.spec.mask_id
    probability = adapter.forward(rows, None).float().softmax(-1)
    row = at - 1
    fits = [float(probability[row, at - shift, sample[at]].mean()) for shift in (0, 1)]
    return int(fits[1] > fits[0])
