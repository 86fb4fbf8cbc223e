"""One denoising step in one call: score, select, commit. See reference/denoise_step.py."""

from __future__ import annotations

from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from dlm_kernels.cpu.library import check, library, pack
from dlm_kernels.cpu.score_tokens import score_arguments
from dlm_kernels.cpu.select_positions import select_arguments

SCORES = {"confidence": 0, "margin": 1, "neg_entropy": 2, "random": 3}


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(committed int32 [B], remaining int32 [B], confidence fp32 [B, L], selected bool [B, L])."""
    shape = (tokens.shape[0], tokens.shape[1])
    suppress_ids = None if suppress_ids is None else suppress_ids.contiguous()
    score_fields, (_, confidence, *_scratch) = outputs = score_arguments(
        logits, temperature, top_k, top_p, seed, row_ids, step, suppress_ids, eligible, sampling_confidence, top_p_first
    )
    select_fields, selected, _kept = select_arguments(
        shape, None, None, quota, threshold, factor, entropy_bound, None, at_least, strict
    )
    live, ranked = torch.empty(shape, dtype=torch.bool), torch.empty(shape)
    committed = torch.empty(shape[0], dtype=torch.int32)
    remaining = torch.empty(shape[0], dtype=torch.int32)
    status = library().dlmk_denoise_step(
        *(pack(score_fields), pack(select_fields)),
        *(c_void_p(tokens.data_ptr()), *map(c_int64, tokens.stride()), c_int64(mask_id), c_int64(SCORES[score])),
        *(c_void_p(t.data_ptr()) for t in (live, ranked, committed, remaining)),
    )
    check(status)
    del outputs  # the call wrote into them
    return committed, remaining, confidence, selected
