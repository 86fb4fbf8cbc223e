"""Finds out by experiment what a model does, and whether its description is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.models.adapter import Adapter, device_of, dtype_of
from dlm_samplers.models.describe import recognise
from dlm_samplers.models.spec import ModelSpec

Attention = Literal["bidirectional", "causal", "block_causal", "other"]
Padding = Literal["honoured", "ignored", "not asked"]

PADDING = 3
"""Columns of it in the tests."""
LEVELS = (0.2, 0.8)
"""Noise levels that are compared, as shares of masks."""


class ModelMismatchError(InvalidArgumentError):
    """A model does not do what its description says."""


@dataclass(frozen=True)
class Probe:
    """What the experiments found.

    attention: which tokens a position's logits move with. "block_causal": its own block and those before.
    block_length: of block-causal attention, in tokens from the left edge; else None.
    left_padding, right_padding: "honoured": real positions have the logits they have without padding, up to rounding.
        "not asked": the description says the model cannot ignore padding, or, on the left, that its blocks start there.
    deterministic: two calls give the same bits.
    batch_difference: largest difference of a row's logits between a batch of 1 and a larger one, relative to the spread of
        the logits. Above 0, near ties may fall differently from batch to batch.
    logit_shift: 0 or 1, with a sample of text: the alignment under which the model expects that text more; else None.
    plain_mask, padded_plain_mask: the attention that a block-causal model makes of a 2D `attention_mask`, of ones and with
        zeros on the right; "fails": it raises. None: the description has no blocks.
    time: whether the logits move with the noise level that the model is told; None: it is told none.
    head: whether the head's product with the states is what the model itself returns, up to rounding; "fails": called as a
        whole it raises. None: the description names no head.
    """

    attention: Attention
    block_length: int | None
    left_padding: Padding
    right_padding: Padding
    deterministic: bool
    batch_difference: float
    logit_shift: int | None
    plain_mask: Attention | Literal["fails"] | None = None
    padded_plain_mask: Attention | Literal["fails"] | None = None
    time: Literal["moves", "does not move"] | None = None
    head: Literal["agrees", "differs", "fails"] | None = None

    def __str__(self) -> str:
        attention = self.attention if self.block_length is None else f"{self.attention}, blocks of {self.block_length}"
        shift = "not tested (give a sample of text)" if self.logit_shift is None else str(self.logit_shift)
        lines = {
            "attention": attention,
            "left padding": self.left_padding,
            "right padding": self.right_padding,
            "logit shift": shift,
            "deterministic": "yes" if self.deterministic else "no",
            "batch difference": f"{self.batch_difference:.1e} of the logits' spread",
        }
        if self.plain_mask is not None:
            lines["2D mask of ones"], lines["2D mask, padded"] = self.plain_mask, str(self.padded_plain_mask)
        if self.time is not None:
            lines["noise level"] = f"the output {self.time} with it"
        if self.head is not None:
            lines["LM head"] = f"{self.head} with the model's own logits" if self.head != "fails" else "the model fails"
        return "\n".join(f"{name:<17} {finding}" for name, finding in lines.items())


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
    """Perturbs the inputs of a model and reports what moves. Some `length` forwards' worth of rows a test, in one batch.

    spec: the description to test; default: what `describe` says of the model, or `ModelSpec.of(model)`.
    sample: int64 [N], text that the model was trained on, for the test of alignment; the more the surer.
    length: columns of the test canvases; block lengths up to half of it are recognised, so it is at least two of the
        description's blocks.
    check: raise when the description is wrong. False only reports.

    Raises ModelMismatchError, naming the test, what was expected and what came: another attention than the description's,
    padding that it says is honoured and is not, another alignment, a time that moves nothing, a head whose product is not the
    logits, a call that the model refuses.
    InvalidArgumentError for a length below 4, or a vocabulary that is not known.
    """
    if spec is None:
        known = recognise(model)
        spec = ModelSpec.of(model) if known is None else known.require_spec()
    if length < 4:
        raise InvalidArgumentError(f"length must be at least 4, got {length}")
    length = max(length, 2 * (spec.block_length or 0))
    adapter = Adapter(model, spec)
    device = device_of(model)

    def call(rows: Tensor, valid: Tensor | None = None) -> Tensor:
        """Float logits, at one noise level for all rows."""
        noise = torch.full((len(rows),), LEVELS[1], device=device)
        try:
            logits = adapter.forward(rows, valid, noise).float()
        except (InvalidArgumentError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ModelMismatchError(
                f"model: called as the description says, it raises {type(error).__name__}: {error}"
            ) from error
        if spec.output == "subs":  # its -1e6 would be the spread
            logits = logits.index_fill(-1, torch.full((1,), spec.mask_id, device=device), -torch.inf)
        return logits

    generator = torch.Generator().manual_seed(seed)
    vocabulary = spec.vocab_size
    if vocabulary is None:
        vocabulary = call(torch.full((1, length), spec.mask_id, device=device)).shape[-1]
    allowed = torch.tensor(
        [t for t in range(min(vocabulary, 50_000)) if t not in {*spec.never, spec.mask_id, spec.eos_id}]
    )
    tokens = allowed[torch.randint(len(allowed), (1, length), generator=generator)].to(device)
    other = allowed[torch.randint(len(allowed), (length,), generator=generator)].to(device)
    other = torch.where(other == tokens[0], allowed[0].to(device), other)
    if spec.output != "logits":  # what stands at a position with a token says nothing, so all are masks
        tokens = torch.full_like(tokens, spec.mask_id)

    alone = call(tokens)[0]
    spread = float(alone[alone.isfinite()].std()) or 1.0
    deterministic = torch.equal(alone, call(tokens)[0])
    rows = tokens.repeat(length + 1, 1)
    column = torch.arange(length, device=device)
    rows[column, column] = other
    logits = call(rows)
    noise = float(_distance(logits[-1], alone).max())
    threshold = max(4 * noise, 1e-6 * spread)

    def attention_of(logits: Tensor) -> tuple[Attention, int | None]:
        """Of logits [length + 1, length, V] of `rows`."""
        return _pattern(threshold < _distance(logits[:-1], logits[-1]).T)  # [output, changed token]

    attention, block_length = attention_of(logits)
    # Beside padding other kernels run, which round otherwise: in bf16 by up to 0.05 of the spread, ignored padding by over 1.
    rounding = 16 * torch.finfo(dtype_of(model)).eps
    tolerance = max(16 * noise, max(1e-4, rounding) * spread)
    sides: dict[str, Padding] = {}
    for side in ("left", "right"):
        asked = spec.attention_mask != "none" and not (side == "left" and spec.block_length is not None)
        sides[side] = _padding(call, spec, tokens, alone, side, tolerance) if asked else "not asked"

    def plain(padded: bool) -> Attention | Literal["fails"]:
        """What a block-causal model makes of a 2D mask."""
        pad = torch.full_like(rows[:, :PADDING], spec.fill_id) if padded else rows[:, :0]
        bare = replace(spec, attention_mask="2d", position_ids=None)
        valid = torch.cat([torch.ones_like(rows), torch.zeros_like(pad)], dim=1).bool()
        try:
            return attention_of(Adapter(model, bare).forward(torch.cat([rows, pad], dim=1), valid)[:, :length].float())[
                0
            ]
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return "fails"

    def head() -> Literal["agrees", "differs", "fails"] | None:
        if spec.lm_head is None:
            return None
        try:
            logits = adapter.whole(tokens, None)[0].float()
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return "fails"
        return "agrees" if float(_distance(logits, alone).max()) <= tolerance else "differs"

    blocks = spec.block_length is not None and spec.attention_mask != "none"
    found = Probe(
        attention,
        block_length,
        sides["left"],
        sides["right"],
        deterministic,
        noise / spread,
        None if sample is None else _shift(call, spec, torch.as_tensor(sample, device=device)),
        plain(padded=False) if blocks else None,
        plain(padded=True) if blocks else None,
        None if spec.time_argument is None else _time(model, spec, tokens, tolerance),
        head(),
    )
    if check:
        _compare(found, spec)
    return found


def _compare(found: Probe, spec: ModelSpec) -> None:
    def fail(test: str, expected: str, got: str) -> None:
        raise ModelMismatchError(f"model: {test}: the description says {expected}, the model {got}")

    def words(attention: str, block_length: int | None) -> str:
        return f"{attention}" + ("" if block_length is None else f" in blocks of {block_length}")

    if spec.block_length is None and found.attention != "bidirectional":
        got = f"is {words(found.attention, found.block_length)}"
        fail("change of one token", "every position sees every other", got)
    if spec.block_length is not None and found.block_length != spec.block_length:
        hint = ""
        if spec.attention_mask in ("none", "2d"):
            hint = "; the model may need the block mask: attention_mask='4d_block' or '4d_block_additive'"
        elif spec.attention_mask == "4d_block":
            hint = "; a model that adds its mask to the scores wants attention_mask='4d_block_additive'"
        expected = words("block_causal", spec.block_length)
        fail("change of one token", expected, f"is {words(found.attention, found.block_length)}{hint}")
    for side in ("left", "right"):
        if getattr(found, f"{side}_padding") == "ignored":
            says = f"attention_mask={spec.attention_mask!r} hides padding"
            fail(f"padding on the {side}", says, "gives real positions other logits beside it")
    if found.logit_shift is not None and found.logit_shift != spec.logit_shift:
        fail("alignment on the sample", f"logit_shift={spec.logit_shift}", f"fits {found.logit_shift} better")
    if found.time == "does not move" and spec.sees_time:
        fail("noise level", "sees_time=True", "says the same at any; with sees_time=False steps may be left out")
    if found.head == "differs":
        fail(f"lm_head = {spec.lm_head!r}", "that its product with the states is the logits", "returns others")


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Largest difference of logits over the vocabulary; entries that are the same infinity differ by 0."""
    return (a - b).masked_fill(a == b, 0).abs().amax(-1)


def _time(
    model: Callable[..., Any], spec: ModelSpec, tokens: Tensor, tolerance: float
) -> Literal["moves", "does not move"]:
    """Whether the distribution at masks moves with the noise level: a log score moves as a whole, which says nothing."""
    adapter = Adapter(model, replace(spec, sees_time=True))
    canvas = tokens.clone()
    canvas[:, ::2] = spec.mask_id
    levels = (torch.full((1,), level, device=tokens.device) for level in LEVELS)
    few, many = (adapter.forward(canvas, None, level)[0, ::2].float().log_softmax(-1) for level in levels)
    return "moves" if float(_distance(few, many).max()) > tolerance else "does not move"


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


def _padding(
    call: Callable[[Tensor, Tensor], Tensor],
    spec: ModelSpec,
    tokens: Tensor,
    alone: Tensor,
    side: str,
    tolerance: float,
) -> Padding:
    moved = moved_by_padding(call, spec, tokens, alone, side)
    return "honoured" if float(moved.max()) <= tolerance else "ignored"


def moved_by_padding(
    call: Callable[[Tensor, Tensor], Tensor], spec: ModelSpec, tokens: Tensor, alone: Tensor, side: str
) -> Tensor:
    """How far the logits of each of tokens [1, L] are beside padding from those `alone` [L, V]; float [L]."""
    pad = torch.full_like(tokens[:, :1], spec.fill_id).expand(-1, PADDING)
    hidden, real = torch.zeros_like(pad, dtype=torch.bool), torch.ones_like(tokens, dtype=torch.bool)
    left = side == "left"
    canvas = torch.cat([pad, tokens] if left else [tokens, pad], dim=1)
    valid = torch.cat([hidden, real] if left else [real, hidden], dim=1)
    logits = call(canvas, valid)[0]
    return _distance(logits[PADDING:] if left else logits[:-PADDING], alone)


def _shift(call: Callable[[Tensor], Tensor], spec: ModelSpec, sample: Tensor) -> int:
    """The alignment with the larger mean probability of single masked tokens of the sample.

    Of probabilities, not their logs: tokens that nothing predicts would decide those.
    """
    if sample.ndim != 1 or sample.dtype != torch.int64 or len(sample) < 4:
        raise InvalidArgumentError(f"sample must be 1-D int64 with at least 4 ids, got {list(sample.shape)}")
    at = torch.arange(1, len(sample), device=sample.device)
    rows = sample.repeat(len(at), 1)
    rows[at - 1, at] = spec.mask_id
    probability = call(rows).softmax(-1)
    row = at - 1
    fits = [float(probability[row, at - shift, sample[at]].mean()) for shift in (0, 1)]
    return int(fits[1] > fits[0])
