"""How far each position's distribution moved since the step before."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.errors import InvalidArgumentError
from dlm_kernels.results import TopK
from dlm_kernels.scoring import check_logits


def topk_kl(logits: Tensor, k: int = 8, *, before: TopK | None = None, backend: str | None = None) -> TopK:
    """KL(before || now) over the `k` likeliest tokens of the step before and one outcome for all others.

    Merging outcomes can only lower a divergence, so this is at most the KL over the whole vocabulary, 0 or more, and needs
    k + 1 numbers of the past instead of V. What it returns is `before` of the next step:

    Args:
        logits: [..., V] fp32, bf16 or fp16.
        k: how many to keep, 1 to V.
        before: what this function returned for the step before, for the same rows; its k may be another.
        backend: see `use_backend`.

    Returns:
        TopK(kl fp32 [...], ids int64 [..., k], log_probs fp32 [..., k + 1]): kl in nats, inf without `before`; the likeliest
        tokens, ties by id, lowest first; their log probabilities and, last, that of all others together. Rows with NaN or
        without a finite logit have NaN.

    Raises:
        InvalidArgumentError: wrong dtype, shape or device, k outside [1, V], on the CPU an id of `before` outside [0, V);
            on a GPU, where nothing is read back, the row's kl is NaN then.
        BackendUnavailableError: the backend asked for cannot run here or has no such kernel.

    The stability test of KLASS, arXiv:2511.05664, on what it costs to keep.

    >>> logits = torch.tensor([[2.0, 1.0, 0.0, 0.0]])
    >>> last = topk_kl(logits, 2)
    >>> last.ids, last.kl
    (tensor([[0, 1]]), tensor([inf]))
    >>> topk_kl(logits.flip(-1), 2, before=last).kl
    tensor([1.1775])
    """
    logits = check_logits(logits, 1)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= logits.shape[-1]:
        raise InvalidArgumentError(
            f"k must be an int in [1, {logits.shape[-1]}], the vocabulary of the logits; got {k!r}"
        )
    ids = log_probs = None
    if before is not None:
        if not isinstance(before, TopK):
            raise InvalidArgumentError(f"before must be a TopK of an earlier call, got {type(before).__name__}")
        ids = arguments.tensor("before.ids", before.ids, (torch.int64,), (*logits.shape[:-1], None))
        wanted = (*logits.shape[:-1], ids.shape[-1] + 1)
        log_probs = arguments.tensor("before.log_probs", before.log_probs, (torch.float32,), wanted)
        arguments.same_device("before.ids", ids, logits)
        arguments.same_device("before.log_probs", log_probs, logits)
    return TopK(*torch.ops.dlm_kernels.topk_kl(logits, k, ids, log_probs, arguments.backend_name(backend)))
