"""What one forward says about a batch of canvases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_kernels import TokenScores


@dataclass(frozen=True)
class Head:
    """The linear map from hidden states to logits."""

    weight: Tensor
    """[V, D]."""
    bias: Tensor | None
    """[V]."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of the positions asked for and, for parts that need more, the model's output they came from."""

    scores: TokenScores
    """Statistics [B, L], meaningful where `scored`."""
    scored: Tensor
    """bool [B, L]."""
    masked: Tensor
    """bool [B, L]: positions still to be filled, as the forward saw the canvases."""
    output: Tensor
    """Logits [B, L, V], or hidden states [B, L, D] when `head` is given; row i belongs to position i + shift."""
    shift: int
    head: Head | None = None
    columns: Tensor | int = 0
    """Columns of each row's canvas that the forward computed, int64 [B] or one number."""
    companions: Evaluation | None = None
    """Of the columns beside the canvas, [B, S], in their own order; their noise is that of the columns they accompany."""
    drawn: bool = False
    """True above temperature 0, where `scores.token` need not be the likeliest."""
    greedy: TokenScores | None = None
    """Scores at temperature 0 and without filters, whatever the tokens are drawn from. For parts with `needs_greedy`."""
    temperature: float = 1.0
    """Of the distribution that the statistics describe: 1, or the sampling temperature."""

    @property
    def logits(self) -> Tensor:
        """[B, L, V] in the model's own alignment. For parts with `needs_logits`."""
        assert self.head is None, "a part that reads logits says so in needs_logits"
        return self.output

    def by_position(self, function: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """[B, L, ...] of `function(output rows [B, l, ...], their positions)`, each position with the row that predicts it.

        With shifted outputs position 0 reads its own row, as Dream does; the outputs are not copied.
        """
        return by_position(self.output, self.shift, function)

    def log_probability(self, tokens: Tensor) -> Tensor:
        """float32 [B, L]: log-probability of `tokens` [B, L] in the distribution that the statistics describe, where `scored`.

        Where that distribution is filtered, a token that top-k or top-p leaves out has the value it would have if it were
        added to what they keep.
        """

        def logit(rows: Tensor, at: slice) -> Tensor:
            chosen = tokens[:, at]
            if self.head is None:
                return rows.gather(-1, chosen[..., None])[..., 0].float()
            value = (rows * self.head.weight[chosen]).sum(-1).float()
            return value if self.head.bias is None else value + self.head.bias[chosen].float()

        return self.by_position(logit) / self.temperature - self.scores.logsumexp


def by_position(output: Tensor, shift: int, function: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """See `Evaluation.by_position`."""
    if shift == 0:
        return function(output, slice(None))
    first, rest = function(output[:, :1], slice(0, 1)), function(output[:, :-1], slice(1, None))
    return torch.cat([first, rest], dim=1)
