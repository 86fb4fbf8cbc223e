"""One denoising step of a masked diffusion model: score, select and commit in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlm_kernels import arguments, dispatch
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.errors import InvalidArgumentError
from dlm_kernels.results import StepBuffers, StepStats
from dlm_kernels.scoring import canvas_row_ids, check_step, normalise
from dlm_kernels.select_positions import check_rules

SCORES = ("confidence", "margin", "neg_entropy", "random")


def denoise_step_(
    tokens: Tensor,
    logits: Tensor,
    *,
    mask_id: int,
    eligible: Tensor | None = None,
    temperature: float | Tensor = 0.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    seed: int | Tensor = 0,
    row_ids: int | Tensor | None = None,
    step: int | Tensor = 0,
    suppress_ids: Sequence[int] | Tensor | None = None,
    confidence: str = "model",
    filter_order: str = "top_k_first",
    score: str = "confidence",
    quota: int | Tensor | None = None,
    threshold: float | Tensor | None = None,
    factor: float | Tensor | None = None,
    entropy_bound: float | Tensor | None = None,
    at_least: int | Tensor = 1,
    strict: bool = False,
    out: StepBuffers | None = None,
    backend: str | None = None,
) -> StepStats:
    """Propose a token for every masked position, choose positions, and write those tokens, in place.

    The same as `score_tokens`, `select_positions` and `commit_` one after the other; see there for their arguments.

    Args:
        tokens: [B, L] int64, any strides, written.
        logits: [B, L, V]; row i predicts position i.
        mask_id: the id that marks an open position, in [0, V).
        eligible: bool [B, L]: which of the masked positions may change. Default: all.
        row_ids: default: request b, position l, that is b << 32 | l.
        suppress_ids: default: the mask token alone, so that every commit fills a position. (): nothing.
        score: what positions are ranked by: "confidence", "margin", "neg_entropy", or "random" (`keyed_uniform`).
        temperature, top_k, top_p, seed, step, confidence, filter_order: as in `score_tokens`.
        quota, threshold, factor, entropy_bound, at_least, strict: as in `select_positions`.
        out: memory from `step_buffers` for the results, which are overwritten by the next step with it, and for what the
            backend writes in between. Its backend runs. Default: fresh memory.
        backend: see `use_backend`.

    Returns:
        `out.stats`, or a new StepStats(committed int32 [B], remaining int32 [B], confidence fp32 [B, L], selected bool
        [B, L]). `remaining` counts the eligible positions that were not committed.

    Raises:
        InvalidArgumentError: wrong dtype, shape or device, a number outside its range, an id outside the vocabulary, an
            `out` for another shape, device or backend, or with another tensor in it.
        BackendUnavailableError: the backend asked for cannot run here.
        KernelCompilationError: the backend of `out` does not compile here; no other one can take its buffers.

    >>> tokens = torch.tensor([[2, 9, 9]])
    >>> logits = torch.zeros(1, 3, 10)
    >>> logits[0, 1, 4], logits[0, 2, 5] = 8.0, 1.0
    >>> stats = denoise_step_(tokens, logits, mask_id=9, threshold=0.9)
    >>> tokens, stats.committed, stats.remaining
    (tensor([[2, 4, 9]]), tensor([1], dtype=torch.int32), tensor([1], dtype=torch.int32))
    """
    logits = check_step(tokens, logits)
    mask_id = arguments.vocabulary_id("mask_id", mask_id, logits.shape[-1])
    scoring = normalise(
        logits,
        tokens.shape,
        canvas_row_ids(tokens, row_ids),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        step=step,
        suppress_ids=(mask_id,) if suppress_ids is None else suppress_ids,
        eligible=eligible,
        confidence=confidence,
        filter_order=filter_order,
    )
    rules = check_rules(
        tokens.shape[0],
        logits,
        quota=quota,
        threshold=threshold,
        factor=factor,
        entropy_bound=entropy_bound,
        at_least=at_least,
        strict=strict,
    )
    operands = (tokens, logits, mask_id, *scoring, arguments.choice("score", score, SCORES), *rules)
    backend = arguments.backend_name(backend)
    if out is None:
        return StepStats(*torch.ops.dlm_kernels.denoise_step_(*operands, backend))
    _check_buffers(out, logits, backend)
    torch.ops.dlm_kernels.denoise_step_out_(*operands, *out.stats, out.scratch, out.backend)
    return out.stats


def step_buffers(tokens: Tensor, logits: Tensor, *, backend: str | None = None) -> StepBuffers:
    """Memory for `denoise_step_(out=)`: made once, used for any number of steps on tensors of these shapes.

    A step then makes no tensors on the backends cpu, triton and cuda (numba and the reference make temporaries), and it never
    waits for the host, so a CUDA graph can hold it. On a GPU that takes tensors of the dtypes that the op works in for the
    numbers that change between replays, seed and step above all (int64; the others int64 or fp32), and for several
    `suppress_ids`; Python numbers and default row ids become small tensors at each call there, on the device. On the CPU they
    are kept from call to call. The C++ kernels' own working memory does not grow with the vocabulary.

    One step at a time may use them, and what is in `scratch` is the backend's to write: Triton's counts there who is through.
    After a step that raised an error of its kernels, make new ones.

    Args:
        tokens: int64 [B, L].
        logits: [B, L, V], of the steps' shape; any of their dtypes.
        backend: see `use_backend`. Default: what a step would run on now.

    Returns:
        StepBuffers(stats, scratch, backend, shape, layout).

    Raises:
        InvalidArgumentError: wrong dtype, shape or device.
        BackendUnavailableError: the backend asked for cannot run here.

    >>> tokens = torch.tensor([[2, 9, 9]])
    >>> logits = torch.zeros(1, 3, 10)
    >>> out = step_buffers(tokens, logits)
    >>> for step in range(2):
    ...     stats = denoise_step_(tokens, logits, mask_id=9, step=step, out=out)
    >>> stats is out.stats, stats.remaining
    (True, tensor([0], dtype=torch.int32))
    """
    logits = check_step(tokens, logits)
    name = dispatch.resolve("denoise_step_", arguments.backend_name(backend), tokens.device)
    with torch.inference_mode(False):  # else they could not be written outside it
        stats, scratch = dispatch.module("denoise_step_", name).allocate_step(tokens, logits)
    layout = tuple((memory.dtype, tuple(memory.shape)) for memory in (*stats, *scratch))
    return StepBuffers(stats, scratch, name, tuple(logits.shape), layout)


def _check_buffers(out: StepBuffers, logits: Tensor, backend: str) -> None:
    """Kernels write to addresses, so every buffer is looked at, whatever happened to it since it was made."""
    if not isinstance(out, StepBuffers):
        raise InvalidArgumentError(f"out must come from step_buffers, got {type(out).__name__}")
    if backend not in (dispatch.AUTO, out.backend):
        raise InvalidArgumentError(f"out must be made for backend {backend!r}, got one for {out.backend!r}")
    if out.shape != tuple(logits.shape):
        raise InvalidArgumentError(
            f"out must be made for logits of shape {list(logits.shape)}, got one for {list(out.shape)}"
        )
    memory = (*out.stats, *out.scratch)
    if len(memory) != len(out.layout):
        raise InvalidArgumentError(f"out must have the {len(out.layout)} tensors it was made with, got {len(memory)}")
    for place, (tensor, (dtype, shape)) in enumerate(zip(memory, out.layout, strict=True)):
        if not (
            isinstance(tensor, Tensor)
            and tensor.dtype == dtype
            and tensor.shape == shape
            and tensor.device == logits.device
            and tensor.is_contiguous()
        ):
            name = f"out.stats.{out.stats._fields[place]}" if place < len(out.stats) else "out.scratch"
            arguments.tensor(name, tensor, (dtype,), shape)
            arguments.same_device(name, tensor, logits)
            raise InvalidArgumentError(f"{name} must be contiguous, got strides {list(tensor.stride())}")
