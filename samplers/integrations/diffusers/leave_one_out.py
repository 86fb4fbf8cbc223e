"""The leave-one-out denoiser of some positions, from statistics of their logits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlm_kernels import score_tokens
from dlm_samplers.integrations.diffusers.draws import Keys

ELEMENTS_AT_ONCE = 2**22  # logits that are copied at a time


class LeaveOneOut(NamedTuple):
    """log p(x_0 | the other positions), of N positions, unnormalised: the logits with the evidence of x_t taken out.

    The logits of x_t lose log(1 + K alpha / (1 - alpha)) (arXiv:2605.22765, eq. 13), which may be all that the model is sure
    of. What is left is therefore not had by subtraction: the other tokens are summed without it.
    """

    alpha: float
    vocabulary: int
    current: Tensor  # of the token that stands there, fp64, as the rest
    candidate: Tensor  # of `token`
    others: Tensor  # log of the mass of all others
    total: Tensor  # log of all mass
    token: Tensor  # int64: one of the others, by its probability if there are keys, else the likeliest

    @classmethod
    def of(
        cls, logits: Tensor, sample: Tensor, rows: Tensor, columns: Tensor, alpha: float, keys: Keys | None = None
    ) -> LeaveOneOut:
        """Positions (rows, columns) of logits [B, L, V] whose tokens are `sample` [B, L]; 0 < alpha < 1."""
        vocabulary = logits.shape[-1]
        tokens, sums = [], []
        chunk = max(1, ELEMENTS_AT_ONCE // vocabulary)
        for b, l in zip(rows.flatten().split(chunk), columns.flatten().split(chunk), strict=True):  # noqa: E741
            x = logits[b, l].scatter_(-1, sample[b, l][:, None], -math.inf)  # indexing copied
            drawn: dict[str, Any] = (
                {} if keys is None else {"temperature": 1.0, "seed": keys.seed, "row_ids": keys.row_ids[b, l]}
            )
            scores = score_tokens(x, **drawn)
            tokens.append(scores.token)
            sums.append(scores.logsumexp)
        token, others = (torch.cat(parts).view(rows.shape) for parts in (tokens, sums))
        current = logits[rows, columns, sample[rows, columns]].double() - math.log1p(vocabulary * alpha / (1 - alpha))
        return cls(
            alpha,
            vocabulary,
            current,
            logits[rows, columns, token].double(),
            others.double(),
            torch.logaddexp(current, others.double()),
            token,
        )

    def conditional(self, logit: Tensor) -> Tensor:
        """log of p_s(x | the other positions) = alpha p(x_0 = x | the other positions) + (1 - alpha) / K."""
        noise = math.log1p(-self.alpha) - math.log(self.vocabulary)
        return torch.logaddexp(math.log(self.alpha) + logit - self.total, torch.full_like(logit, noise))
