"""The row of an embedding table nearest to each vector."""

from __future__ import annotations

import torch
from torch import Tensor

ELEMENTS_AT_ONCE = 2**22  # of a piece [N, part of V] or [pairs, D]
VECTORS_AT_ONCE = 1024
# Rounding of |e|^2 - 2 e.x in fp64, for up to 2^14 dimensions, relative to |e|^2 + |x|^2.
SLACK = 2.0**-36


def nearest_embedding(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """(ids int64 [...], Euclidean distance fp32 [...]) of x [..., D] in table [V, D]. Ties: lowest id."""
    vectors = x.reshape(-1, x.shape[-1])
    pieces = [nearest_rows(piece.double(), table) for piece in vectors.split(VECTORS_AT_ONCE)]
    ids, squared = (torch.cat(parts).view(x.shape[:-1]) for parts in zip(*pieces, strict=True))
    return ids, squared.sqrt().float()


def nearest_rows(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """(ids int64 [N], squared distance fp64 [N]) of x fp64 [N, D].

    A matrix product finds the candidates of a part of the table; (x - e)^2 of these alone decides. Products of equal rows may
    differ in the last place, squares of differences do not, so equal rows tie.
    """
    count, dimension = x.shape
    best = torch.full((count,), torch.inf, dtype=torch.float64, device=x.device)
    best_id = torch.zeros(count, dtype=torch.int64, device=x.device)
    x_norm = x.square().sum(-1)
    first = 0
    for part in table.split(max(1, ELEMENTS_AT_ONCE // max(count, 1))):
        e = part.double()
        e_norm = e.square().sum(-1)
        approximate = (x_norm[:, None] + e_norm - 2 * x @ e.T).nan_to_num(nan=torch.inf, posinf=torch.inf)
        slack = SLACK * (x_norm + e_norm.nan_to_num(0, 0, 0).amax())
        bound = torch.minimum(approximate.amin(-1), best) + slack
        candidates = ((approximate <= bound[:, None]) & approximate.isfinite()).nonzero()
        for row, column in (pairs.T for pairs in candidates.split(max(1, ELEMENTS_AT_ONCE // dimension))):
            squared = (x[row] - e[column]).square().sum(-1)
            least = best.scatter_reduce(0, row, squared, "amin")
            best_id[least < best] = first + len(part)  # above every id of this part
            ties = squared == least[row]
            best_id.scatter_reduce_(0, row[ties], first + column[ties], "amin")
            best = least
        first += len(part)
    unordered = x_norm.isnan()
    return best_id.masked_fill(unordered, 0), best.masked_fill(unordered, torch.nan)
