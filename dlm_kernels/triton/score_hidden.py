"""LM head and scores, a block of rows at a time: the logits of a block, in memory used again for the next, then the
two launches of `score_tokens`.

Rows rather than pieces of the vocabulary, because temperature and filters are known to the device only: a draw and a filter
look at the logits again, and pieces would have to be multiplied again for it even where all rows are greedy. A block is 64 MB
of logits (256 rows of 126,464 in bf16): so large that reading the weight once per block costs no more than the multiplication,
on GPUs whose products are bound by arithmetic from some 200 rows on. The product is the BLAS's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dlm_kernels.triton.score_tokens import Scores, allocate_scores, launch_score_tokens, score_scratch

LOGIT_BYTES = 2**26  # of a block of rows
ROW_MULTIPLE = 16
PIECE = 4096  # rows of the weight that are widened at a time where fp32 logits of a half-precision head are asked for


def score_hidden(
    hidden: Tensor,  # [R, D]
    weight: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    temperature: Tensor,  # this and the next five [R]
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    suppress_ids: Tensor | None,  # [S]
    eligible: Tensor | None,  # [R] bool
    sampling_confidence: bool,
    top_p_first: bool,
    round_logits: bool,
    batch_invariant: bool,
) -> Scores:
    """See the reference."""
    rows, vocabulary, device = hidden.shape[0], weight.shape[0], hidden.device
    dtype = hidden.dtype if round_logits else torch.float32
    out = allocate_scores((rows,), device)
    most = rows_at_once(vocabulary, dtype)
    block_rows = most if batch_invariant else min(most, rows)
    logits = torch.empty((block_rows, vocabulary), dtype=dtype, device=device)
    scratch = score_scratch(block_rows, vocabulary, device)
    for first in range(0, rows, most):
        block = slice(first, min(first + most, rows))
        count = block.stop - first
        x = hidden[block]
        if batch_invariant and count < most:  # products of one shape add up in one order
            x = torch.cat((x, x.new_zeros(most - count, x.shape[1])))
        project(x, weight, bias, logits[: x.shape[0]])
        launch_score_tokens(
            logits[None, :count],
            temperature[None, block],
            top_k[None, block],
            top_p[None, block],
            seed[None, block],
            row_ids[None, block],
            step[None, block],
            suppress_ids,
            None if eligible is None else eligible[None, block],
            sampling_confidence,
            top_p_first,
            tuple(value[block] for value in out),
            scratch,
        )
    return out


def rows_at_once(vocabulary: int, dtype: torch.dtype) -> int:
    fitting = LOGIT_BYTES // (vocabulary * dtype.itemsize)
    return max(ROW_MULTIPLE, fitting // ROW_MULTIPLE * ROW_MULTIPLE)


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """`torch.nn.functional.linear` into `out` [R, V]; in fp32, a piece of the weight at a time, if `out` is wider."""
    if hidden.dtype == out.dtype:
        multiply(hidden, weight, bias, out)
        return
    hidden = hidden.to(out.dtype)
    for first in range(0, weight.shape[0], PIECE):
        piece = slice(first, first + PIECE)
        addend = None if bias is None else bias[piece].to(out.dtype)
        out[:, piece] = multiply(hidden, weight[piece].to(out.dtype), addend)


def multiply(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    if bias is None:
        return torch.mm(hidden, weight.T, out=out)
    return torch.addmm(bias, hidden, weight.T, out=out)


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    """None of its own: its kernels are those of `score_tokens`."""
    return iter(())
