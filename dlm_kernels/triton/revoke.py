"""Which committed tokens become masks again, in two to five launches.

`rules` says of every position which rules choose it, `write` cuts the choice to fewer than were committed and writes. Before
either that needs them, `select_positions`' kernel ranks: by count of greater keys, not by a sort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.reference import philox as spec
from dlm_kernels.triton.philox import keyed_uniform
from dlm_kernels.triton.rows import per_row
from dlm_kernels.triton.runtime import launch, strided, warps
from dlm_kernels.triton.select_positions import AGAINST, RANKED, rank_kernel
from dlm_kernels.triton.transitions import BLOCK, keys_of, per_batch_row, program_positions

REVOKE_STREAM = tl.constexpr(spec.REVOKE_STREAM)
WRITTEN = 1024  # positions that a program writes at a time


@triton.jit(do_not_specialize=["mask_id", "length", "count"])
def rules_kernel(
    tokens, confidence, eligible, mask_id, threshold, quota, probability, keys, rank, length, count, flags,
    EVERY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """bool [B, L]: what the rules choose; with EVERY, all they may choose from."""
    r, b, l, live = program_positions(length, count, BLOCK)  # noqa: E741
    chosen = tl.zeros((BLOCK,), tl.int1)
    if EVERY:
        chosen = live
    if threshold is not None:
        chosen |= per_row(confidence, b, l, live, 0.0) < per_batch_row(threshold, b, live)
    if quota is not None:
        chosen |= tl.load(rank + r, mask=live, other=0) < per_batch_row(quota, b, live)
    if probability is not None:
        seed, row_ids, step = keys_of(keys, b, l, live)
        chosen |= keyed_uniform(seed, row_ids, step, REVOKE_STREAM) < per_row(probability, b, l, live, 0.0)
    chosen &= per_row(tokens, b, l, live, 0) != mask_id
    if eligible is not None:
        chosen &= per_row(eligible, b, l, live, 0) != 0
    tl.store(flags + r, chosen, mask=live)


@triton.jit(do_not_specialize=["mask_id", "length"])
def write_kernel(tokens, mask_id, flags, committed, rank, length, remasked, revoked, BLOCK: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    total = tl.zeros((), tl.int32)
    for first in range(0, length, BLOCK):
        l = first + tl.arange(0, BLOCK).to(tl.int64)  # noqa: E741
        inside = l < length
        chosen = tl.load(flags + b * length + l, mask=inside, other=0) != 0
        if committed is not None:
            limit = tl.load(committed[0] + b * committed[1]) - 1
            chosen &= tl.load(rank + b * length + l, mask=chosen, other=0) < limit
        tl.store(revoked + b * length + l, chosen, mask=inside)
        tl.store(tokens[0] + b * tokens[1] + l * tokens[2], tl.zeros_like(l) + mask_id, mask=chosen)
        total += tl.sum(chosen.to(tl.int32), 0)
    tl.store(remasked + b, total)


class Scratch(NamedTuple):
    flags: Tensor  # bool [B, L]
    rank: Tensor  # int32 [B, L]


def revoke_(
    tokens: Tensor,
    confidence: Tensor,
    mask_id: int,
    eligible: Tensor | None,
    threshold: Tensor | None,
    quota: Tensor | None,
    probability: Tensor | None,
    committed: Tensor | None,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor]:
    """See the reference."""
    revoked = torch.empty(tokens.shape, dtype=torch.bool, device=tokens.device)
    remasked = torch.empty(tokens.shape[0], dtype=torch.int32, device=tokens.device)
    scratch = Scratch(torch.empty_like(revoked), torch.empty(tokens.shape, dtype=torch.int32, device=tokens.device))
    launch_revoke_(
        tokens, confidence, mask_id, eligible, threshold, quota, probability, committed, seed, row_ids, step,
        remasked, revoked, scratch,
    )  # fmt: skip
    return remasked, revoked


def launch_revoke_(
    tokens: Tensor,
    confidence: Tensor,
    mask_id: int,
    eligible: Tensor | None,
    threshold: Tensor | None,
    quota: Tensor | None,
    probability: Tensor | None,
    committed: Tensor | None,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    remasked: Tensor,
    revoked: Tensor,  # this and the scratch contiguous
    scratch: Scratch,
) -> None:
    batch, length = tokens.shape
    count = tokens.numel()
    here, values, live = strided(tokens), strided(confidence), strided(eligible)
    keys = tuple(strided(key) for key in (seed, row_ids, step))
    tau, most, limit = (None if rule is None else (rule, rule.stride(0)) for rule in (threshold, quota, committed))

    def choose(every: bool) -> None:
        rules = (None, None, None) if every else (tau, most, strided(probability))
        launch(
            rules_kernel, (triton.cdiv(count, BLOCK),), here, values, live, mask_id, *rules, keys, scratch.rank,
            length, count, scratch.flags, num_warps=4, EVERY=every, BLOCK=BLOCK,
        )  # fmt: skip

    def rank() -> None:
        launch(
            rank_kernel, (batch, triton.cdiv(length, RANKED)), values, strided(scratch.flags), None, length,
            scratch.rank, None, None, num_warps=warps(RANKED * AGAINST), NEGATE=True, RANKED=RANKED, AGAINST=AGAINST,
        )  # fmt: skip

    if quota is not None:
        choose(every=True)
        rank()
    choose(every=False)
    if committed is not None:
        rank()
    launch(
        write_kernel, (batch,), here, mask_id, scratch.flags, limit, scratch.rank, length, remasked, revoked,
        num_warps=4, BLOCK=WRITTEN,
    )  # fmt: skip


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    def on(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    tokens, real = on(torch.int64, 4, 1024), on(torch.float32, 4, 1024)
    keys = (tokens, tokens, tokens)
    yield "probability", lambda: revoke_(tokens, real, 7, None, None, None, real, None, *keys)
    yield (
        "all rules",
        lambda: revoke_(tokens, real, 7, tokens == 0, real[:, 0], tokens[:, 0], real, tokens[:, 0], *keys),
    )
