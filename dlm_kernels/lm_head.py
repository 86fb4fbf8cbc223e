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
PIECE = 4096  # columns; a multiple of the kernels' 2048


def pad_rows(matrix: Tensor, least: int = LEAST) -> Tensor:
    """At least `least` rows, the new ones zero."""
    missing = least - matrix.shape[0]
    return matrix if missing <= 0 else torch.cat((matrix, matrix.new_zeros(missing, matrix.shape[1])))


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` of hidden [R, D], weight [V, D], bias [V]."""
    if bias is None:
        return torch.mm(hidden, weight.T, out=out)
    return torch.addmm(bias, hidden, weight.T, out=out)


def bounds(vocabulary: int, piece: int) -> list[int]:
    """Where pieces begin and end. All but the last are multiples of half a piece, and none is narrow but a whole vocabulary."""
    ends = [*range(0, vocabulary, piece), vocabulary]
    if len(ends) > 2 and ends[-1] - ends[-2] < LEAST:
        ends[-2] -= piece // 2
    return ends


class Head:
    """An LM head applied to rows, without the logits [R, V] ever being there."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, round_logits: bool, batch_invariant: bool
    ) -> None:
        self.rows = hidden.shape[0]
        self.hidden = pad_rows(hidden) if batch_invariant and self.rows else hidden
        self.weight, self.bias, self.vocabulary = weight, bias, weight.shape[0]
        self.widen = not round_logits and hidden.dtype != torch.float32
        if self.widen:
            self.hidden = self.hidden.float()
        if batch_invariant and self.vocabulary < LEAST:
            self.weight = pad_rows(weight)
            self.bias = None if bias is None else torch.cat((bias, bias.new_zeros(LEAST - self.vocabulary)))

    def whole(self) -> Tensor:
        """All logits [R, V]."""
        return self._product(0, self.weight.shape[0], None)[: self.rows, : self.vocabulary]

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        """(first index, logits [R, n]) in order, in memory that is used again for the next piece."""
        columns = self.weight.shape[0]
        ends = bounds(columns, PIECE // 2 if self.widen else PIECE)
        buffer = self.hidden.new_empty(self.hidden.shape[0] * min(columns, PIECE))
        for begin, end in pairwise(ends):
            out = buffer[: self.hidden.shape[0] * (end - begin)].view(-1, end - begin)
            yield begin, self._product(begin, end, out)[: self.rows, : self.vocabulary]

    def _product(self, begin: int, end: int, out: Tensor | None) -> Tensor:
        weight, bias = self.weight[begin:end], None if self.bias is None else self.bias[begin:end]
        if self.widen:
            weight, bias = weight.float(), None if bias is None else bias.float()
        return project(self.hidden, weight, bias, out)
