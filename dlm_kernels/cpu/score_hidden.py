"""LM head and scores in pieces of the vocabulary, in one process or several. See csrc/cpu/hidden.h.

One pass over the pieces gives the statistics and, for rows without filters, the token. With top-k or top-p the highest entries
are held, and they tell most boundaries. A row whose kept set reaches beyond them takes the matrix product once more: to draw,
where the boundary is known; with its logits in memory, a few rows at a time, where it is to be searched for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from ctypes import addressof, c_int64, c_void_p
from itertools import accumulate

import torch
from torch import Tensor

from dlm_kernels.cpu.library import check, library, pack
from dlm_kernels.cpu.score_tokens import DTYPES
from dlm_kernels.lm_head import LEAST, Head
from dlm_kernels.results import TokenScores

SEARCHED = 8  # rows at a time that are searched with their logits in memory
HELD = 512  # entries of a row with top-p that are kept from the first pass
MOST_HELD = 2048  # with top-k; a larger k is searched for
CONTENDER_INTS, SEARCH_INTS, BINS = 25, 4, 256  # sizes of the structs in hidden.h and kernels.h
SEARCH_K, SEARCH_P = 1, 2
MERGED = ("parts", "held", "held_count")
LATER_FIELDS = 15  # of DlmkHiddenArgs: the state and the results


class Rows:
    """The state of rows whose vocabulary is read in pieces, and the passes over it."""

    def __init__(
        self,
        head: Head,
        vocabulary: int,  # of all shards
        start: int,  # where the head's part begins
        per_row: tuple[Tensor, ...],  # temperature, top_k, top_p, seed, row_ids, step, each [R]
        suppress_ids: Tensor | None,
        sampling_confidence: bool,
        top_p_first: bool,
    ) -> None:
        self.head, self.vocabulary, self.start = head, vocabulary, start
        self.per_row = per_row
        self.options = (suppress_ids, sampling_confidence, top_p_first)
        rows = head.rows
        parameters = [value.contiguous() for value in per_row]
        suppressed = None if suppress_ids is None else suppress_ids.sort().values
        given = [
            *(rows, vocabulary, torch.get_num_threads(), sampling_confidence, top_p_first),
            *(value.data_ptr() for value in parameters),
            *((0, 0) if suppressed is None else (suppressed.data_ptr(), suppressed.numel())),
        ]
        self._arguments = pack([*given, *[0] * LATER_FIELDS])
        needs = (c_int64 * 4)()
        self.call("plan", addressof(needs))
        self.any_drawn, self.any_filtered = bool(needs[0]), bool(needs[1])
        # One more than k, so that the k-th is known to be above all that is not kept.
        held = min(needs[2] + 1, MOST_HELD) if self.any_filtered else 0
        held = max(held, HELD) if needs[3] else held
        searched = self.any_filtered and head.kept is not None
        # One allocation, and none of torch's operators to fill it: each costs microseconds, which show where rows are few.
        self._layout = {
            "parts": (torch.float64, 5),
            "winners": (torch.float64, 5),
            "search": (torch.int64, SEARCH_INTS if self.any_filtered else 0),
            "bins": (torch.int64, BINS if searched else 0),
            "held": (torch.int32, 2 * held),
            "contenders": (torch.int32, CONTENDER_INTS if self.any_drawn else 0),
            "held_count": (torch.int32, 1),
            "todo": (torch.int32, 1),
            "keep": (torch.float32, 1),
        }
        sizes = [rows * width * dtype.itemsize for dtype, width in self._layout.values()]
        self._begins = dict(zip(self._layout, accumulate(sizes, initial=0), strict=False))
        self._memory = torch.empty(sum(sizes), dtype=torch.uint8)
        self.results = TokenScores(
            torch.empty(rows, dtype=torch.int64), *(torch.empty(rows) for _ in TokenScores._fields[1:])
        )
        address = {
            name: self._memory.data_ptr() + begin if self._layout[name][1] else 0
            for name, begin in self._begins.items()
        }
        self._arguments = pack(
            [
                *given,
                *(address["parts"], address["held"], address["held_count"], held),
                *(address[name] for name in ("contenders", "todo", "keep", "search", "bins", "winners")),
                *(value.data_ptr() for value in self.results),
            ]
        )
        self._alive = (parameters, suppressed)
        self.call("begin")

    def state(self, name: str) -> Tensor:
        """[R, width] of the state, in place."""
        dtype, width = self._layout[name]
        begin, rows = self._begins[name], self.head.rows
        return self._memory[begin : begin + rows * width * dtype.itemsize].view(dtype).view(rows, width)

    def call(self, name: str, *addresses: int) -> None:
        check(getattr(library(), f"dlmk_hidden_{name}")(self._arguments, *map(c_void_p, addresses)))

    def count(self, name: str) -> int:
        """A step that says for how many rows something is left."""
        left = c_int64()
        self.call(name, addressof(left))
        return left.value

    def over_pieces(self, name: str) -> None:
        """A pass over the vocabulary: the matrix product, and `name` of each piece."""
        for first, logits in self.head.pieces():
            start, size = self.start + first, logits.shape[1]
            piece = pack([logits.data_ptr(), DTYPES[logits.dtype], logits.stride(0), start, size])
            self.call(name, addressof(piece))

    def merge(self, parts: list[Tensor], held: list[Tensor], counts: list[Tensor]) -> None:
        """The state of all shards, in place of this one's own. The same order everywhere gives every shard the same bits."""
        for name, all_shards in zip(MERGED, (parts, held, counts), strict=True):
            self.state(name).copy_(all_shards[0])
        for shard in zip(parts[1:], held[1:], counts[1:], strict=True):
            self.call("merge", *(value.data_ptr() for value in shard))

    def searched(self) -> Tensor:
        """Indices of the rows whose boundary held entries do not tell."""
        todo = self.state("todo")
        found = ((todo == SEARCH_K) | (todo == SEARCH_P)).nonzero()[:, 0]
        # Few fp32 rows have the bits of their number: then all of them, once more.
        return torch.arange(self.head.rows) if len(found) and self.head.rows < LEAST else found

    def of(self, rows: Tensor) -> Rows:
        """Some of the rows, from the start, with their logits in memory."""
        head = self.head.of(rows).keep()
        return Rows(head, self.vocabulary, self.start, tuple(value[rows] for value in self.per_row), *self.options)

    def merge_winners(self, winners: list[Tensor]) -> None:
        self.state("winners").copy_(winners[0])
        for shard in winners[1:]:
            self.call("merge_winners", shard.data_ptr())


Gather = Callable[[Tensor], list[Tensor]]


def score_rows(rows: Rows, gather: Gather | None = None) -> TokenScores:
    """The scores of all rows. `gather` gives a tensor of every shard, in one order for all; without it there is one shard."""
    rows.over_pieces("read")
    if gather is not None:
        rows.merge(*(gather(rows.state(name)) for name in MERGED))
    searched = torch.empty(0, dtype=torch.int64)
    if rows.any_filtered:
        searching = rows.count("filter")
        if rows.head.kept is None:
            searched = rows.searched()
        while searching and rows.head.kept is not None:
            rows.over_pieces("weigh")
            if gather is not None:
                rows.state("bins").copy_(torch.stack(gather(rows.state("bins"))).sum(0))
            searching = rows.count("descend")
    if rows.any_drawn and len(searched) < rows.head.rows:
        if rows.count("settle"):
            rows.over_pieces("draw")
        if gather is not None:
            rows.merge_winners(gather(rows.state("winners")))
    rows.call("finish")
    for some in searched.split(SEARCHED) if len(searched) else ():
        for result, value in zip(rows.results, score_rows(rows.of(some), gather), strict=True):
            result[some] = value
    return rows.results


def score_shard(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    vocabulary: int,
    start: int,
    per_row: tuple[Tensor, ...],
    suppress_ids: Tensor | None,
    eligible: Tensor | None,
    sampling_confidence: bool,
    top_p_first: bool,
    round_logits: bool,
    batch_invariant: bool,
    gather: Gather | None = None,
) -> TokenScores:
    """Scores [R] of the vocabulary of which `weight` holds the part from `start` on."""
    live = None if eligible is None else eligible.nonzero()[:, 0]
    if live is not None:
        hidden, per_row = hidden[live], tuple(value[live] for value in per_row)
    head = Head(hidden, weight, bias, round_logits, batch_invariant)
    rows = Rows(head, vocabulary, start, per_row, suppress_ids, sampling_confidence, top_p_first)
    scores = score_rows(rows, gather)
    if eligible is None or live is None:
        return scores
    skipped = (0, 0.0, 0.0, 0.0, -math.inf)
    return TokenScores(
        *(
            value.new_full(eligible.shape, fill).index_copy_(0, live, value)
            for value, fill in zip(scores, skipped, strict=True)
        )
    )


def score_hidden(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    suppress_ids: Tensor | None,
    eligible: Tensor | None,
    sampling_confidence: bool,
    top_p_first: bool,
    round_logits: bool,
    batch_invariant: bool,
) -> TokenScores:
    """(token, confidence, margin, entropy, logsumexp), each [R]. Rows that are not eligible are not computed."""
    per_row = (temperature, top_k, top_p, seed, row_ids, step)
    return score_shard(
        hidden, weight, bias, weight.shape[0], 0, per_row, suppress_ids, eligible, sampling_confidence, top_p_first,
        round_logits, batch_invariant,
    )  # fmt: skip
