"""Which positions commit this step, in one launch for rows of up to `MOST_SORTED` positions, in two for longer ones.

1. Ranks: of every eligible position the number of better ones. 64-bit keys of score and position are unique. One program sorts
   those of a short row (`rank_by_sorting`). Sorting a long one would keep a single multiprocessor busy for longer than it takes
   all of them to count greater keys, L^2 compares in tiles (`rank_kernel`). Tiles without an eligible position are skipped, so
   a block of 32 open positions in a long canvas costs little.
2. `choose`: one program per batch row, for short rows the one that sorted, turns ranks into the rules' prefixes and those into
   the selection; in a denoising step it also commits and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.triton.portable_math import ordered_key, widen
from dlm_kernels.triton.rows import INFINITY, any_of, per_row
from dlm_kernels.triton.runtime import INTERPRETED, launch, strided, warps

RANKED, AGAINST = (
    (256, 256) if INTERPRETED else (32, 128)
)  # positions of a program, and of those it compares with at a time
BLOCK = 1024
MOST_SORTED = 1024  # positions of a row
SORTED_PER_THREAD = 8  # keys, two registers each and as many for those they are compared with
MOST_REGISTERS = (
    128  # for a kernel that sorts: left to itself ptxas spills a few instead, to have more programs at a time
)
LOWEST_KEY = tl.constexpr(-(2**63))  # of a position that is not eligible


@triton.jit
def rank_keys(score, l, eligible, NEGATE: tl.constexpr):  # noqa: E741
    """Unique int64, greater for better: higher score (NaN as -inf), then lower position."""
    value = -score if NEGATE else score
    value = tl.where(value != value, -INFINITY, value)
    key = (ordered_key(value).to(tl.int64) << 32) | (0x7FFFFFFF - l)
    return tl.where(eligible, key, LOWEST_KEY)


@triton.jit(do_not_specialize=["score", "eligible", "entropy", "length"])
def rank_kernel(
    score, eligible, entropy, length, rank, entropy_rank, less,
    NEGATE: tl.constexpr, RANKED: tl.constexpr, AGAINST: tl.constexpr,
):  # fmt: skip
    """rank [B, L] by score, and with an entropy also the rank by it, lowest first, and the sum of the lower ones, fp64."""
    b = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * RANKED + tl.arange(0, RANKED).to(tl.int64)
    inside = i < length
    mine = per_row(eligible, b, i, inside, 0) != 0
    if any_of(mine):
        key = rank_keys(widen(per_row(score, b, i, mine, 0.0)), i, mine, NEGATE)[:, None]
        better = tl.zeros((RANKED,), tl.int32)
        if entropy is not None:
            entropy_key = rank_keys(per_row(entropy, b, i, mine, 0.0), i, mine, True)[:, None]
            lower, total = tl.zeros((RANKED,), tl.int32), tl.zeros((RANKED,), tl.float64)
        for first in range(0, length, AGAINST):
            j = first + tl.arange(0, AGAINST).to(tl.int64)
            other = per_row(eligible, b, j, j < length, 0) != 0
            if any_of(other):
                other_key = rank_keys(widen(per_row(score, b, j, other, 0.0)), j, other, NEGATE)
                better += tl.sum((other_key[None, :] > key).to(tl.int32), 1)
                if entropy is not None:
                    h = per_row(entropy, b, j, other, 0.0)
                    ahead = rank_keys(h, j, other, True)[None, :] > entropy_key
                    lower += tl.sum(ahead.to(tl.int32), 1)
                    total += tl.sum(tl.where(ahead, h.to(tl.float64)[None, :], 0.0), 1)
        tl.store(rank + b * length + i, better, mask=mine)
        if entropy is not None:
            tl.store(entropy_rank + b * length + i, lower, mask=mine)
            own = per_row(entropy, b, i, mine, 0.0)
            own = tl.where(tl.abs(own) < INFINITY, own, 0.0).to(tl.float64)
            tl.store(less + b * length + i, (total + own) - own, mask=mine)  # rounded as the reference does


@triton.jit
def rank_by_sorting(
    b, score, eligible, entropy, length, rank, entropy_rank, less, NEGATE: tl.constexpr, SORTED: tl.constexpr
):  # fmt: skip
    """What `rank_kernel` does, for one row of up to SORTED positions."""
    n = tl.arange(0, SORTED)
    l = n.to(tl.int64)  # noqa: E741
    live = per_row(eligible, b, l, l < length, 0) != 0
    for turn in range(1 if entropy is None else 2):  # a loop, as a sort is much code
        key = rank_keys(widen(per_row(score, b, l, live, 0.0)), l, live, NEGATE)
        if entropy is not None:  # noqa: SIM102 - known when compiling, the other not
            if turn == 1:
                key = rank_keys(per_row(entropy, b, l, live, 0.0), l, live, True)
        key = tl.sort(key, descending=True)
        there = key > LOWEST_KEY
        at = 0x7FFFFFFF - (key & 0x7FFFFFFF)
        if turn == 0:
            tl.store(rank + b * length + at, n, mask=there)
        elif entropy is not None:
            tl.store(entropy_rank + b * length + at, n, mask=there)
            h = per_row(entropy, b, at, there, 0.0)
            own = tl.where(h < INFINITY, h, 0.0).to(tl.float64)  # NaN and inf are last and in no other's sum
            tl.store(less + b * length + at, tl.cumsum(own, 0) - tl.where(h > -INFINITY, own, 0.0), mask=there)
    tl.debug_barrier()  # other threads of the program read this


@triton.jit
def of_batch(rule, b):
    """A rule's number of one batch row (pointer, stride)."""
    return tl.load(rule[0] + b * rule[1])


@triton.jit
def choose_row(
    b, score, eligible, quota, threshold, factor, entropy_bound, entropy, at_least, length, rank, entropy_rank, less,
    selected, tokens, proposal, committed, remaining,
    NEGATE: tl.constexpr, STRICT: tl.constexpr, BLOCK: tl.constexpr, SORTED: tl.constexpr,
):  # fmt: skip
    """All of a batch row b; SORTED: 0 where its ranks are known."""
    if SORTED:
        rank_by_sorting(b, score, eligible, entropy, length, rank, entropy_rank, less, NEGATE, SORTED)
    best = of_batch(at_least, b)
    if quota is not None:
        best = tl.maximum(best, of_batch(quota, b))
    lowest = tl.zeros((), tl.int64)  # how many of the lowest entropies commit
    if (factor is not None) or (entropy_bound is not None):
        for first in range(0, length, BLOCK):
            l = first + tl.arange(0, BLOCK).to(tl.int64)  # noqa: E741
            live = per_row(eligible, b, l, l < length, 0) != 0
            if factor is not None:
                # (n + 1)(1 - c_n) <= f, solved for c_n; n counts from 1 (Fast-dLLM, arXiv:2505.22618, theorem 1).
                value = widen(per_row(score, b, l, live, 0.0))
                value = -value if NEGATE else value
                n = tl.load(rank + b * length + l, mask=live, other=0) + 1
                passes = live & (value >= 1.0 - tl.div_rn(of_batch(factor, b), n.to(tl.float32) + 1.0))
                best = tl.maximum(best, tl.max(tl.where(passes, n, 0), 0).to(tl.int64))
            if entropy_bound is not None:
                # Sum of the k least entropies without the greatest of them (EB-Sampler, arXiv:2505.24857).
                h = per_row(entropy, b, l, live, 0.0)
                finite = tl.abs(h) < INFINITY
                before = tl.load(less + b * length + l, mask=live, other=0.0)
                passes = live & finite & (before <= of_batch(entropy_bound, b).to(tl.float64))
                n = tl.load(entropy_rank + b * length + l, mask=live, other=0) + 1
                lowest = tl.maximum(lowest, tl.max(tl.where(passes, n, 0), 0).to(tl.int64))
    chosen_count, live_count = tl.zeros((), tl.int32), tl.zeros((), tl.int32)
    for first in range(0, length, BLOCK):
        l = first + tl.arange(0, BLOCK).to(tl.int64)  # noqa: E741
        live = per_row(eligible, b, l, l < length, 0) != 0
        chosen = tl.load(rank + b * length + l, mask=live, other=0) < best
        if threshold is not None:
            value = widen(per_row(score, b, l, live, 0.0))
            value = -value if NEGATE else value
            chosen |= (value > of_batch(threshold, b)) if STRICT else (value >= of_batch(threshold, b))
        if entropy_bound is not None:
            chosen |= tl.load(entropy_rank + b * length + l, mask=live, other=0) < lowest
        chosen &= live
        tl.store(selected + b * length + l, chosen, mask=l < length)
        if tokens is not None:
            token = tl.load(proposal + b * length + l, mask=chosen, other=0)
            tl.store(tokens[0] + b * tokens[1] + l * tokens[2], token, mask=chosen)
            chosen_count += tl.sum(chosen.to(tl.int32), 0)
            live_count += tl.sum(live.to(tl.int32), 0)
    if tokens is not None:
        tl.store(committed + b, chosen_count)
        tl.store(remaining + b, live_count - chosen_count)


RULES = ("quota", "threshold", "factor", "entropy_bound", "at_least")


@triton.jit(do_not_specialize=["score", "eligible", "entropy", "length", "tokens", *RULES])
def choose_kernel(
    score, eligible, quota, threshold, factor, entropy_bound, entropy, at_least, length, rank, entropy_rank, less,
    selected, tokens, proposal, committed, remaining,
    NEGATE: tl.constexpr, STRICT: tl.constexpr, BLOCK: tl.constexpr, SORTED: tl.constexpr,
):  # fmt: skip
    choose_row(
        tl.program_id(0).to(tl.int64), score, eligible, quota, threshold, factor, entropy_bound, entropy, at_least, length,
        rank, entropy_rank, less, selected, tokens, proposal, committed, remaining, NEGATE, STRICT, BLOCK, SORTED,
    )  # fmt: skip


class Ranks(NamedTuple):
    """Scratch: rank by score; rank by entropy and the sum of the lower entropies, fp64, where a rule needs them. [B, L]"""

    rank: Tensor
    entropy_rank: Tensor | None
    less: Tensor | None


class Commit(NamedTuple):
    """What `choose` also does in a denoising step."""

    tokens: Tensor  # [B, L] int64, written
    proposal: Tensor  # [B, L] int64, contiguous
    committed: Tensor  # [B] int32, written
    remaining: Tensor  # [B] int32, written


def rank_scratch(shape: tuple[int, int], device: torch.device, by_entropy: bool) -> Ranks:
    rank = torch.empty(shape, dtype=torch.int32, device=device)
    if not by_entropy:
        return Ranks(rank, None, None)
    return Ranks(rank, torch.empty_like(rank), torch.empty(shape, dtype=torch.float64, device=device))


def select_positions(
    score: Tensor,
    eligible: Tensor,
    quota: Tensor | None,
    threshold: Tensor | None,
    factor: Tensor | None,
    entropy_bound: Tensor | None,
    entropy: Tensor | None,
    at_least: Tensor,
    strict: bool,
) -> Tensor:
    """See the reference."""
    selected = torch.empty(score.shape, dtype=torch.bool, device=score.device)
    scratch = rank_scratch((score.shape[0], score.shape[1]), score.device, entropy_bound is not None)
    launch_select_positions(
        score, eligible, quota, threshold, factor, entropy_bound, entropy, at_least, strict, selected, scratch
    )
    return selected


def launch_select_positions(
    score: Tensor,
    eligible: Tensor,
    quota: Tensor | None,
    threshold: Tensor | None,
    factor: Tensor | None,
    entropy_bound: Tensor | None,
    entropy: Tensor | None,
    at_least: Tensor,
    strict: bool,
    selected: Tensor,  # contiguous
    scratch: Ranks,
    commit: Commit | None = None,
    negate: bool = False,  # ranks by -score
) -> None:
    batch, length = score.shape
    arguments = choose_arguments(
        score, eligible, quota, threshold, factor, entropy_bound, entropy, at_least, selected, scratch, commit
    )
    rows = sorted_block(length)
    if not rows:
        uncertainty = strided(entropy) if entropy_bound is not None else None
        launch(
            rank_kernel, (batch, triton.cdiv(length, RANKED)), strided(score), strided(eligible), uncertainty, length,
            *scratch, num_warps=warps(RANKED * AGAINST), NEGATE=negate, RANKED=RANKED, AGAINST=AGAINST,
        )  # fmt: skip
    launch(
        choose_kernel, (batch,), *arguments, num_warps=warps(rows or BLOCK, 4), NEGATE=negate, STRICT=strict,
        BLOCK=rows or BLOCK, SORTED=rows,
        maxnreg=MOST_REGISTERS,
    )  # fmt: skip


def choose_arguments(
    score: Tensor,
    eligible: Tensor,
    quota: Tensor | None,
    threshold: Tensor | None,
    factor: Tensor | None,
    entropy_bound: Tensor | None,
    entropy: Tensor | None,
    at_least: Tensor,
    selected: Tensor,
    scratch: Ranks,
    commit: Commit | None,
) -> tuple[Any, ...]:
    """What `choose_row` takes after the batch row."""
    rules = [None if rule is None else (rule, rule.stride(0)) for rule in (quota, threshold, factor, entropy_bound)]
    uncertainty = strided(entropy) if entropy_bound is not None else None
    tokens: tuple[Any, ...] = (None,) * 4 if commit is None else (strided(commit.tokens), *commit[1:])
    return (
        strided(score), strided(eligible), *rules, uncertainty, (at_least, at_least.stride(0)), score.shape[1], *scratch,
        selected, *tokens,
    )  # fmt: skip


def sorted_block(length: int, num_warps: int = 16) -> int:
    """Keys that a program of so many warps sorts for a row of so many positions; 0: too many."""
    block = max(32, triton.next_power_of_2(length))
    return block if block <= min(MOST_SORTED, SORTED_PER_THREAD * 32 * num_warps) else 0


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    def on(kind: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    def canvas(length: int) -> tuple[Tensor, Tensor, Tensor]:
        return on(torch.float32, 4, length), on(torch.bool, 4, length), on(torch.int64, 4, length)

    score, eligible, tokens = canvas(1024)
    number, count, commit = on(torch.float32, 4), on(torch.int64, 4), on(torch.int32, 4)
    yield "quota", lambda: select_positions(score, eligible, count, None, None, None, None, count, False)
    yield (
        "half precision",
        lambda: select_positions(score.bfloat16(), eligible, count, number, number, None, None, count, True),
    )
    every_rule = (eligible, count, number, number, number, score, count)
    yield "all rules", lambda: select_positions(score, *every_rule, True)
    yield "all rules, commit", lambda: launch_select_positions(
        score, *every_rule, False, eligible, rank_scratch((4, 1024), score.device, True),
        Commit(tokens, tokens, commit, commit), negate=True,
    )  # fmt: skip
    score, eligible, _ = canvas(4096)
    yield "quota, L=4096", partial(select_positions, score, eligible, count, None, None, None, None, count, False)
    for length in (32, 4096):
        score, eligible, _ = canvas(length)
        yield (
            f"all rules, L={length}",
            partial(select_positions, score, eligible, count, number, number, number, score, count, True),
        )
