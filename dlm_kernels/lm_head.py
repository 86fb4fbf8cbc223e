"""The matrix product of an LM head, whole or in pieces of the vocabulary.

In which order a BLAS adds up may depend on the shapes. Measured with torch 2.13 (MKL 2024.2, oneDNN 3.12) on AVX-512, for D of
1 to 4,096 and a contiguous weight: in bf16 and fp16 a logit has the same bits whatever rows and columns are beside it; in fp32
so it has from 16 rows and 16 columns on. Fewer fp32 rows or columns take other kernels with another order: 1, 2, 3, 5, 6, 7 and
9 rows were seen to differ. Hence pieces are never narrow, and `pad_rows` fills up short batches. The tests look at this again
wherever they run.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

LEAST = 16  # rows and columns of a product whose bits depend on neither number
# A piece fits into a last-level cache, and has columns enough for the product to be fast. Multiples of the kernels' 2,048.
PIECE_BYTES, NARROWEST = 2**22, 4096


def pad_rows(matrix: Tensor, least: int = LEAST) -> Tensor:
    """At least `least` rows, the new ones zero."""
    missing = least - matrix.shape[0]
    return matrix if missing <= 0 else torch.cat((matrix, matrix.new_zeros(missing, matrix.shape[1])))


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` of hidden [R, D], weight [V, D], bias [V]."""
    if bias is None:
        return torch.mm(hidden, weight.T, out=out)
    return torch.addmm(bias, hidden, weight.T, out=out)


def piece_width(rows: int, itemsize: int) -> int:
    return max(PIECE_BYTES // itemsize // max(rows, 1) // NARROWEST * NARROWEST, NARROWEST)


def bounds(vocabulary: int, width: int) -> list[int]:
    """Where pieces begin and end. All but the last are multiples of half a width, and none is narrow but a whole vocabulary."""
    ends = [*range(0, vocabulary, width), vocabulary]
    if len(ends) > 2 and ends[-1] - ends[-2] < LEAST:
        ends[-2] -= width // 2
    return ends


class Head:
    """An LM head applied to rows, whose logits [R, V] are not all there at a time unless `keep` is called."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, round_logits: bool, batch_invariant: bool
    ) -> None:
        self.rows, self.vocabulary = hidden.shape[0], weight.shape[0]
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.round_logits, self.batch_invariant = round_logits, batch_invariant
        self.kept: Tensor | None = None
        self._widen = not round_logits and hidden.dtype != torch.float32
        self._padded = self.hidden.float() if self._widen else self.hidden
        if batch_invariant and self.rows:
            self._padded = pad_rows(self._padded)
        if batch_invariant and self.vocabulary < LEAST:
            self.weight = pad_rows(weight)
            self.bias = None if bias is None else torch.cat((bias, bias.new_zeros(LEAST - self.vocabulary)))

    def of(self, rows: Tensor) -> Head:
        """The head of some of the rows, with the same bits."""
        invariant = self.batch_invariant or self.rows >= LEAST
        weight, bias = self.weight[: self.vocabulary], None if self.bias is None else self.bias[: self.vocabulary]
        return Head(self.hidden[rows], weight, bias, self.round_logits, invariant)

    def whole(self) -> Tensor:
        """All logits [R, V]."""
        return self._product(0, self.weight.shape[0], None)[: self.rows, : self.vocabulary]

    def keep(self) -> Head:
        """Computes all logits once for the passes to come."""
        kept = self._padded.new_empty(self.rows, self.vocabulary)
        for first, logits in self.pieces(NARROWEST):
            kept[:, first : first + logits.shape[1]] = logits
        self.kept = kept
        return self

    def pieces(self, width: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """(first index, logits [R, n]) in order, in memory that is used again for the next piece."""
        if self.kept is not None:
            yield 0, self.kept
            return
        rows, columns = self._padded.shape[0], self.weight.shape[0]
        width = width or (NARROWEST if self._widen else piece_width(rows, self._padded.element_size()))
        buffer = self._padded.new_empty(rows * min(columns, width))
        for begin, end in pairwise(bounds(columns, width)):
            out = buffer[: rows * (end - begin)].view(rows, end - begin)
            yield begin, self._product(begin, end, out)[: self.rows, : self.vocabulary]

    def _product(self, begin: int, end: int, out: Tensor | None) -> Tensor:
        weight, bias = self.weight[begin:end], None if self.bias is None else self.bias[begin:end]
        if self._widen:
            weight, bias = weight.float(), None if bias is None else bias.float()
        return project(self._padded, weight, bias, out)
