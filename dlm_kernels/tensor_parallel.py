"""Token scores where each process holds a part of the LM head: a few numbers a row are exchanged, never logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import arguments, dispatch
from dlm_kernels.errors import BackendUnavailableError, InvalidArgumentError
from dlm_kernels.results import TokenScores
from dlm_kernels.score_hidden import check_head, normalise_rows


def score_hidden_parallel(
    hidden: Tensor,
    weight_shard: Tensor,
    bias_shard: Tensor | None = None,
    *,
    vocab_start: int,
    vocabulary: int,
    group: Any = None,
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
    """`score_hidden` of an LM head whose rows are spread over the processes of a group. Every process gets all scores.

    A collective call: every process of the group makes it, with the same arguments except for its shard. The noise belongs to
    the index in the whole vocabulary, so sampled tokens do not depend on the split. What is exchanged per row, by all-gathers:
    five numbers (maximum, its index, second, two sums); with temperature > 0 or filters five more for the winner; with top-k
    the k + 1 highest entries; with top-p the 512 highest, and 256 integers in up to four rounds where those do not tell where
    the nucleus ends.

    Args:
        hidden: [..., D], the same in every process.
        weight_shard: [V_r, D], rows vocab_start to vocab_start + V_r of the LM head. Shards may be uneven or empty and come in
            any order of the ranks; together they must cover the vocabulary once.
        bias_shard: [V_r], of the same rows.
        vocab_start: where the shard begins.
        vocabulary: the rows of all shards.
        group: a `torch.distributed` process group; None: the default one.
        suppress_ids: ids in the whole vocabulary.
        batch_invariant: as in `score_hidden`; with it, or in bf16 and fp16, a logit has the same bits in every split (measured,
            as said there). Without it, fp32 logits of fewer than 16 rows, or of shards narrower than 16, may round otherwise.
        The others: as in `score_hidden`.

    Returns:
        TokenScores, each [...], the same bits in every process. Tokens equal those of `score_hidden` with the whole head, given
        the same logits; the statistics agree to rounding.

    Raises:
        InvalidArgumentError: as `score_hidden`; shards that do not cover the vocabulary once (in every process).
        BackendUnavailableError: there is no kernel for tensors on this device, or another backend than "cpu" was asked for.

    Merging the statistics instead of gathering logits: online softmax, Milakov and Gimelshein, arXiv:1805.02867.

    In each of n processes, after `torch.distributed.init_process_group`::

        start, end = rank * V // n, (rank + 1) * V // n
        scores = score_hidden_parallel(hidden, head.weight[start:end], vocab_start=start, vocabulary=V, temperature=0.7)
    """
    hidden, weight_shard, bias_shard = check_head(hidden, weight_shard, bias_shard, least=0, suffix="_shard")
    for name, value, low in (("vocabulary", vocabulary, 1), ("vocab_start", vocab_start, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= arguments.MAX_VOCABULARY:
            raise InvalidArgumentError(f"{name} must be an int in [{low}, 2^26], got {value!r}")
    if vocab_start + weight_shard.shape[0] > vocabulary:
        end = vocab_start + weight_shard.shape[0]
        raise InvalidArgumentError(
            f"vocab_start must leave the shard within the vocabulary {vocabulary}, got end {end}"
        )
    scoring = normalise_rows(
        hidden,
        vocabulary,
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
    arguments.flag("round_logits", round_logits)
    arguments.flag("batch_invariant", batch_invariant)
    name = dispatch.resolve("score_hidden", arguments.backend_name(backend), hidden.device)
    if name != "cpu":
        raise BackendUnavailableError(
            f"score_hidden_parallel runs on the cpu backend only; {name!r} would run on {hidden.device}"
        )
    from dlm_kernels.cpu.score_hidden import score_shard

    gather = _gather_in(group)
    _check_cover(gather, vocab_start, weight_shard.shape[0], vocabulary)
    scores = score_shard(
        hidden.reshape(-1, hidden.shape[-1]), weight_shard, bias_shard, vocabulary, vocab_start,
        scoring[:6], *scoring[6:], round_logits, batch_invariant, gather,
    )  # fmt: skip
    return TokenScores(*(value.view(hidden.shape[:-1]) for value in scores))


def _gather_in(group: Any) -> Any:
    """A function from a tensor to those of all processes of the group, in the order of the ranks."""

    def gather(tensor: Tensor) -> list[Tensor]:
        tensors = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size(group))]
        if tensor.numel():
            torch.distributed.all_gather(tensors, tensor, group=group)
        return tensors

    return gather


def _check_cover(gather: Any, start: int, size: int, vocabulary: int) -> None:
    spans = sorted((int(s), int(s) + int(n)) for s, n in gather(torch.tensor([start, size])) if n)
    begins, ends = [0, *(end for _, end in spans)], [*(begin for begin, _ in spans), vocabulary]
    if begins != ends:
        raise InvalidArgumentError(
            f"vocab_start and weight_shard must cover [0, {vocabulary}) once over the group, got {spans}"
        )
