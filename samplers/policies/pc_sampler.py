"""PC-Sampler: position-calibrated confidence, discounted where a token is common anyway."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.fixed_quota import FixedQuota
from dlm_samplers.policies.wrapper import Wrapper
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler

SMOOTHING = 1e-9  # upstream's epsilon inside the logarithm


@dataclass(frozen=True)
class PCSampler(Wrapper):
    """Commit in the order of exp(-lam * i) * min(-c * log f(token), alpha) (PC-Sampler, arXiv:2508.13021).

    i is the position, c the confidence, f the token's frequency in a background corpus: the order leans to the left, and
    common tokens such as punctuation and end of text do not go first merely for being easy. About quality, not speed.

    background: float [V], frequencies that sum to 1, on the model's device; see `background_frequencies`.
    lam: lambda, 0.25 for HumanEval upstream, by task; 0 leaves the position out.
    alpha: cap of the calibrated confidence.
    inner: the budget of a step, a FixedQuota in order of confidence: on a schedule as upstream, or tokens_per_step.

    Scores are compared as logarithms; the released code's products underflow in long blocks and then tie.
    """

    background: Tensor = field(repr=False, compare=False)
    lam: float = 0.25
    alpha: float = 10.0
    inner: FixedQuota = field(default_factory=FixedQuota)

    guarantee = Guarantee.PATH_EXACT
    promise = "the published sampler itself"

    def __post_init__(self) -> None:
        table = self.background
        if not isinstance(table, Tensor) or table.ndim != 1 or not table.is_floating_point() or not table.numel():
            raise InvalidArgumentError("background must be a float tensor [V] of token frequencies")
        if not bool(((table >= 0) & (table <= 1)).all()):
            raise InvalidArgumentError("background must hold frequencies in [0, 1]")
        if not self.lam >= 0:
            raise InvalidArgumentError(f"lam must be >= 0, got {self.lam}")
        if not self.alpha > 0:
            raise InvalidArgumentError(f"alpha must be above 0, got {self.alpha}")
        if not isinstance(self.inner, FixedQuota) or self.inner.order != "confidence":
            raise InvalidArgumentError(f"inner must be a FixedQuota in order of confidence, got {self.inner!r}")

    def check(self, sampler: Sampler) -> None:
        vocabulary = sampler.spec.vocab_size
        if vocabulary is not None and self.background.numel() < vocabulary:
            raise InvalidArgumentError(
                f"background must have a frequency for each of {vocabulary} tokens, got {self.background.numel()}"
            )
        self.inner.check(sampler)

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        frequency = self.background.to(scores.token.device, torch.float32)[scores.token]
        calibrated = (-scores.confidence * torch.log(frequency + SMOOTHING)).clamp(0, self.alpha)
        score = torch.log(calibrated) - self.lam * state.column
        return self.inner.select(scores._replace(confidence=score), state)


def background_frequencies(texts: Iterable[Sequence[int] | Tensor], vocabulary: int) -> Tensor:
    """float32 [V]: how often each token occurs in tokenized texts, for `PCSampler`; 1 / total for those that never do.

    texts: token ids of the model's own tokenizer; some ten thousand documents of the kind to be generated will do.
    Raises InvalidArgumentError when there is no token, or one outside [0, vocabulary).

    >>> background_frequencies([[0, 0, 1], [0]], vocabulary=3)
    tensor([0.7500, 0.2500, 0.2500])
    """
    counts = torch.zeros(vocabulary, dtype=torch.int64)
    for text in texts:
        ids = torch.as_tensor(text, dtype=torch.int64).reshape(-1).cpu()
        if bool(((ids < 0) | (ids >= vocabulary)).any()):
            raise InvalidArgumentError(f"texts must hold token ids in [0, {vocabulary})")
        counts += torch.bincount(ids, minlength=vocabulary)
    total = int(counts.sum())
    if not total:
        raise InvalidArgumentError("texts must hold at least one token")
    return counts.clamp(min=1).float() / total
