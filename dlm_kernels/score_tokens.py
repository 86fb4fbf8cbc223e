"""Token, confidence, margin, entropy and logsumexp of rows of logits, in one pass over the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.results import TokenScores
from dlm_kernels.scoring import check_logits, normalise


def score_tokens(
    logits: Tensor,
    *,
    temperature: float | Tensor = 0.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    seed: int | Tensor = 0,
    row_ids: int | Tensor | None = None,
    step: int | Tensor = 0,
    suppress_ids: Sequence[int] | Tensor | None = None,
    eligible: Tensor | None = None,
    confidence: str = "model",
    filter_order: str = "top_k_first",
    backend: str | None = None,
) -> TokenScores:
    """Choose a token for every row of logits and say how sure the model is of it.

    Where an argument says "per row" it takes a number or a tensor that broadcasts to `logits.shape[:-1]`. Numbers are checked;
    the values of tensors are not read, so that nothing waits for the device.

    Args:
        logits: [..., V] fp32, bf16 or fp16, not written. Any strides; copied only if the last dimension is not contiguous or if
            more than three dimensions cannot be merged.
        temperature: per row, >= 0. 0 takes the largest logit, lowest index on ties. Above 0 a token is drawn from
            softmax(logits / temperature): the argmax of logits / temperature + Gumbel noise keyed by (seed, row id, step).
        top_k: per row. Keeps what is at least the k-th largest logit, ties included. 0: off.
        top_p: per row, in (0, 1]. Keeps the most likely tokens until their mass reaches p, ties included. 1: off.
        seed: per row, 64 bits.
        row_ids: per row, int64 `request << 32 | position` (`rng.make_row_ids`). Default: the row's index in the batch.
        step: per row, in [0, 2^32).
        suppress_ids: ints, or int64 [S]: tokens that count as logit -inf everywhere.
        eligible: bool [...]. Rows that are False are skipped, not read: token 0, confidence, margin and entropy 0,
            logsumexp -inf.
        confidence: "model": the four statistics of softmax(logits) without temperature and filters (LLaDA).
            "sampling": of the distribution that is sampled, after temperature (0 counts as 1), top-k and top-p (Dream).
        filter_order: "top_k_first" (transformers) or "top_p_first" (Dream).
        backend: see `use_backend`.

    Returns:
        TokenScores(token int64, confidence, margin, entropy, logsumexp fp32), each [...]. confidence is the probability of
        `token`, margin the highest minus the second highest probability, entropy in nats.
        A row with NaN: the first NaN's index and NaN statistics. A row with n entries of +inf: the first one's index,
        confidence 1/n. A row of -inf only: token 0, confidence 0, logsumexp -inf.

    Raises:
        InvalidArgumentError: wrong dtype, shape or device, a number outside its range, an id outside the vocabulary,
            more than 2^26 logits in a row.
        BackendUnavailableError: the backend asked for cannot run here.

    Greedy and sampled choice: LLaDA, arXiv:2502.09992; Dream, arXiv:2508.15487. Gumbel-max: Maddison et al., arXiv:1411.0030.

    >>> logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0, -1.0]])
    >>> scores = score_tokens(logits)
    >>> scores.token
    tensor([1, 0])
    >>> scores.confidence
    tensor([0.8438, 0.4879])
    >>> score_tokens(logits, suppress_ids=[1]).token
    tensor([2, 0])
    """
    logits = check_logits(logits, 1)
    shape = logits.shape[:-1]
    if row_ids is None:
        row_ids = arguments.default_row_ids(shape, logits)
    scoring = normalise(
        logits,
        shape,
        row_ids,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        step=step,
        suppress_ids=suppress_ids,
        eligible=eligible,
        confidence=confidence,
        filter_order=filter_order,
    )
    backend = arguments.backend_name(backend)
    if len(shape) == 2:
        return TokenScores(*torch.ops.dlm_kernels.score_tokens(logits, *scoring, backend))

    def as_rows(value: Tensor) -> Tensor:
        """[...] to [B, L]."""
        return value.expand(1, 1) if not shape else value[None] if len(shape) == 1 else value.flatten(0, -2)

    rows = logits[None, None] if not shape else logits[None] if len(shape) == 1 else logits.flatten(0, -3)
    per_row = [as_rows(value) for value in scoring[:6]]
    live = None if eligible is None else as_rows(eligible)
    results = torch.ops.dlm_kernels.score_tokens(rows, *per_row, scoring.suppress_ids, live, *scoring[8:], backend)
    return TokenScores(*(result.view(shape) for result in results))
