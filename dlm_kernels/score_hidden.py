"""LM head and token scores of hidden states, in one op: the logits [R, V] are never there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.errors import InvalidArgumentError
from dlm_kernels.results import TokenScores
from dlm_kernels.scoring import Scoring, normalise


def score_hidden(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
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
    round_logits: bool = True,
    batch_invariant: bool = False,
    backend: str | None = None,
) -> TokenScores:
    """`score_tokens(torch.nn.functional.linear(hidden, weight, bias))` without the logits: the vocabulary goes by in pieces.

    On the CPU backend a row takes one matrix product, and extra memory is 4 MB of logits, or 4,096 logits a row where that is
    more (top-k and top-p: another 1,024 numbers a row). Where what top-k and top-p keep is not within a row's 512 highest
    logits (2,048 with top_k), its product is computed once more; if the boundary itself is not within them, with its logits in
    memory, eight rows at a time.

    Args:
        hidden: [..., D] fp32, bf16 or fp16, any strides.
        weight: [V, D], the LM head, of the dtype of `hidden`.
        bias: [V], of the dtype of `hidden`.
        temperature, top_k, top_p, seed, row_ids, step, suppress_ids, confidence, filter_order: as in `score_tokens`.
        eligible: bool [...]. Rows that are False are not computed: token 0, confidence, margin and entropy 0, logsumexp -inf.
        round_logits: logits are accumulated in fp32. True rounds them to the dtype of `hidden`, as an LM head does, so that a
            bf16 model gets the tokens that it gets from its logits, ties included. False keeps fp32 (hidden and weight are
            widened piece by piece: slower, and 16 KB more memory per dimension).
        batch_invariant: makes a row's logits independent of the number of rows beside it where that costs something.
        backend: see `use_backend`.

    Returns:
        TokenScores, each [...]; see `score_tokens` for NaN and infinities.

    Raises:
        InvalidArgumentError: wrong dtype, shape or device, a number outside its range, an id outside the vocabulary.
        BackendUnavailableError: the backend asked for cannot run here or has no such kernel.

    Given the logits, tokens are the same bits as those of `score_tokens` on every backend. The logits are those of the BLAS
    that PyTorch calls. Measured with its CPU libraries on AVX-512: in bf16 and fp16 neither a split of the vocabulary nor the
    number of rows changes a bit of a logit; in fp32 neither does from 16 rows on, while fewer rows (1, 2, 3, 5, 6, 7, 9) round
    otherwise. `batch_invariant=True` computes at least 16 rows: 3 times the time for 1 row in fp32, 1.2 times for 8. A BLAS
    promises none of this; the tests look at it wherever they run.

    A vocabulary that goes by in pieces: Cut Cross-Entropy, Wijmans et al., arXiv:2411.09009.

    >>> weight = torch.eye(4, 2)
    >>> score_hidden(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), weight).token
    tensor([0, 1])
    """
    hidden, weight, bias = check_head(hidden, weight, bias)
    scoring = normalise_rows(
        hidden,
        weight.shape[0],
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
    results = torch.ops.dlm_kernels.score_hidden(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        bias,
        *scoring,
        arguments.flag("round_logits", round_logits),
        arguments.flag("batch_invariant", batch_invariant),
        arguments.backend_name(backend),
    )
    return TokenScores(*(result.view(hidden.shape[:-1]) for result in results))


def normalise_rows(hidden: Tensor, vocabulary: int, row_ids: Any, **scoring: Any) -> Scoring:
    """The scoring arguments for rows hidden [..., D], per-row ones as [R]."""
    shape = hidden.shape[:-1]
    if row_ids is None:
        row_ids = arguments.default_row_ids(shape, hidden)
    checked = normalise(hidden, shape, row_ids, vocabulary=vocabulary, **scoring)
    per_row = ("temperature", "top_k", "top_p", "seed", "row_ids", "step", "eligible")
    given = {name: value for name in per_row if (value := getattr(checked, name)) is not None}
    return checked._replace(**{name: value.reshape(-1) for name, value in given.items()})


def check_head(
    hidden: Any, weight: Any, bias: Any, least: int = 1, suffix: str = ""
) -> tuple[Tensor, Tensor, Tensor | None]:
    """hidden [..., D], weight [V, D] and bias [V] of one dtype on one device, off the autograd tape.

    A weight has `least` rows or more, and is called weight + `suffix` in messages, as is a bias.
    """
    if not isinstance(hidden, Tensor):
        raise InvalidArgumentError(f"hidden must be a tensor, got {type(hidden).__name__}")
    if hidden.dtype not in arguments.LOGIT_DTYPES:
        raise InvalidArgumentError(f"hidden must be float32, bfloat16 or float16, got {hidden.dtype}")
    if not hidden.ndim or not hidden.shape[-1]:
        raise InvalidArgumentError(f"hidden must have shape [..., D] with D >= 1, got {list(hidden.shape)}")
    arguments.tensor("weight" + suffix, weight, (hidden.dtype,), (None, hidden.shape[-1]))
    arguments.same_device("weight" + suffix, weight, hidden)
    if not least <= weight.shape[0] <= arguments.MAX_VOCABULARY:
        raise InvalidArgumentError(
            f"weight{suffix} must have {least} to 2^26 rows, the vocabulary; got {weight.shape[0]}"
        )
    if bias is not None:
        arguments.tensor("bias" + suffix, bias, (hidden.dtype,), (weight.shape[0],))
        arguments.same_device("bias" + suffix, bias, hidden)
        bias = bias.detach()
    return hidden.detach(), weight.detach(), bias
