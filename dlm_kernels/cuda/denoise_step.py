"""One denoising step in two launches: score the open positions; merge, select, commit. See reference/denoise_step.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dlm_kernels.cuda import module
from dlm_kernels.cuda.arguments import SELECT_THREADS, key_scratch, threads_for
from dlm_kernels.cuda.module import Kernel
from dlm_kernels.cuda.score_tokens import allocate_parts, launch_parts
from dlm_kernels.cuda.select_positions import rule_fields

FINISH = Kernel("denoise_step", "dlmk_finish_step", SELECT_THREADS)
SCORES = {"confidence": 0, "margin": 1, "neg_entropy": 2, "random": 3}

Stats = tuple[Tensor, Tensor, Tensor, Tensor]


class Scratch(NamedTuple):
    """Memory of a step that nobody reads afterwards."""

    parts: Tensor
    proposal: Tensor  # int64 [B, L]
    ranked: Tensor  # fp32 [B, L]
    entropy: Tensor  # fp32 [B, L]
    live: Tensor  # bool [B, L]
    keys: Tensor | None


def denoise_step_(
    tokens: Tensor,
    logits: Tensor,
    mask_id: int,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    suppress_ids: Tensor | None,
    eligible: Tensor | None,
    sampling_confidence: bool,
    top_p_first: bool,
    score: str,
    quota: Tensor | None,
    threshold: Tensor | None,
    factor: Tensor | None,
    entropy_bound: Tensor | None,
    at_least: Tensor,
    strict: bool,
) -> Stats:
    """(committed int32 [B], remaining int32 [B], confidence fp32 [B, L], selected bool [B, L])."""
    stats, scratch = allocate_stats(tokens), allocate_scratch(logits)
    launch_step(
        stats,
        scratch,
        tokens,
        logits,
        mask_id,
        temperature,
        top_k,
        top_p,
        seed,
        row_ids,
        step,
        suppress_ids,
        eligible,
        sampling_confidence,
        top_p_first,
        score,
        quota,
        threshold,
        factor,
        entropy_bound,
        at_least,
        strict,
    )
    return stats


def allocate_stats(tokens: Tensor) -> Stats:
    batch, device = tokens.shape[0], tokens.device
    return (
        torch.empty(batch, dtype=torch.int32, device=device),
        torch.empty(batch, dtype=torch.int32, device=device),
        torch.empty(tokens.shape, dtype=torch.float32, device=device),
        torch.empty(tokens.shape, dtype=torch.bool, device=device),
    )


def allocate_scratch(logits: Tensor) -> Scratch:
    shape, device = logits.shape[:2], logits.device
    return Scratch(
        allocate_parts(logits),
        torch.empty(shape, dtype=torch.int64, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.bool, device=device),
        key_scratch(logits),
    )


def launch_step(
    stats: Stats,
    scratch: Scratch,
    tokens: Tensor,
    logits: Tensor,
    mask_id: int,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    suppress_ids: Tensor | None,
    eligible: Tensor | None,
    sampling_confidence: bool,
    top_p_first: bool,
    score: str,
    quota: Tensor | None,
    threshold: Tensor | None,
    factor: Tensor | None,
    entropy_bound: Tensor | None,
    at_least: Tensor,
    strict: bool,
) -> None:
    """Fills what the two functions above allocate and writes the tokens."""
    batch, length = tokens.shape
    if batch == 0:
        return
    if length == 0:
        for counts in stats[:2]:
            counts.zero_()
        return
    fields = launch_parts(
        *(scratch.parts, logits, temperature, top_k, top_p, seed, row_ids, step),
        *(suppress_ids, eligible, sampling_confidence, top_p_first, tokens, mask_id),
    )
    fields += rule_fields(quota, threshold, factor, entropy_bound, at_least, strict, scratch.keys)
    written = (scratch.proposal, scratch.ranked, scratch.entropy, scratch.live, *stats)
    fields += [SCORES[score], *(tensor.data_ptr() for tensor in written)]
    module.launch(FINISH, batch, threads_for(length, SELECT_THREADS), fields, tokens.device)
