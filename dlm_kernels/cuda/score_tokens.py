"""Which token each row of logits proposes, and how sure it is. See reference/score_tokens.py.

The first launch reads the logits: blocks write what each chunk of a row contributes. The second merges that, a thread a row.
Rows with top-k or top-p are read by one block each, several times over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.cuda import module
from dlm_kernels.cuda.arguments import address, processors, rows
from dlm_kernels.cuda.module import Kernel

CHUNK = 4096  # kChunk
PART_BYTES = 32  # of a chunk in csrc/cuda/parts.h
BLOCKS_PER_PROCESSOR = 16  # as far as splitting rows can bring that many
THREADS = 256
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SCORE = {
    torch.float32: Kernel("score_tokens", "dlmk_score_fp32", THREADS),
    torch.bfloat16: Kernel("score_tokens", "dlmk_score_bf16", THREADS),
    torch.float16: Kernel("score_tokens", "dlmk_score_fp16", THREADS),
}
FINISH = Kernel("score_tokens", "dlmk_finish_scores", 128)

Scores = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def score_tokens(
    logits: Tensor,
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
) -> Scores:
    """(token, confidence, margin, entropy, logsumexp), each [B, L]."""
    outputs, parts = allocate_scores(logits), allocate_parts(logits)
    launch_scores(
        *(outputs, parts, logits, temperature, top_k, top_p, seed, row_ids, step),
        *(suppress_ids, eligible, sampling_confidence, top_p_first),
    )
    return outputs


def allocate_scores(logits: Tensor) -> Scores:
    shape, floats = logits.shape[:2], {"dtype": torch.float32, "device": logits.device}
    token = torch.empty(shape, dtype=torch.int64, device=logits.device)
    return (token, *(torch.empty(shape, **floats) for _ in range(4)))  # type: ignore[return-value, call-overload]


def allocate_parts(logits: Tensor) -> Tensor:
    """Scratch between the launches, less than a hundredth of the logits."""
    batch, length, vocabulary = logits.shape
    row_bytes = PART_BYTES * -(-vocabulary // CHUNK) + 4
    return torch.empty(batch * length * row_bytes, dtype=torch.uint8, device=logits.device)


def launch_scores(
    outputs: Scores,
    parts: Tensor,
    logits: Tensor,
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
) -> None:
    """Fills what the two functions above allocate."""
    count = logits.shape[0] * logits.shape[1]
    if count == 0:
        return
    fields = launch_parts(
        *(parts, logits, temperature, top_k, top_p, seed, row_ids, step),
        *(suppress_ids, eligible, sampling_confidence, top_p_first),
    )
    fields += [output.data_ptr() for output in outputs]
    module.launch(FINISH, -(-count // FINISH.most_threads), FINISH.most_threads, fields, logits.device)


def launch_parts(
    parts: Tensor,
    logits: Tensor,
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
    tokens: Tensor | None = None,
    mask_id: int = 0,
) -> list[int]:
    """The launch that reads the logits; returns `ScoreArguments` for the next one. With tokens it skips all but mask_id."""
    batch, length, vocabulary = logits.shape
    splits = splits_of(batch * length, vocabulary, processors(logits.device))
    fields = [
        *(logits.data_ptr(), DTYPES[logits.dtype], batch, length, vocabulary, logits.stride(0), logits.stride(1)),
        *(*rows(temperature), *rows(top_k), *rows(top_p), *rows(seed), *rows(row_ids), *rows(step)),
        *((0, 0, 0) if suppress_ids is None else (address(suppress_ids), suppress_ids.numel(), suppress_ids.stride(0))),
        *rows(eligible),
        *(int(sampling_confidence), int(top_p_first), *rows(tokens), mask_id, splits, parts.data_ptr()),
    ]
    module.launch(SCORE[logits.dtype], batch * length * splits, THREADS, fields, logits.device)
    return fields


def splits_of(count: int, vocabulary: int, processors: int) -> int:
    """Blocks that share a row. Nothing but the time depends on it."""
    return max(1, min(-(-vocabulary // CHUNK), BLOCKS_PER_PROCESSOR * processors // count))
