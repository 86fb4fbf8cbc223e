"""`denoise_step_` against the steps that are published: LLaDA's and diffusers'."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dlm_benches.kernels.cases import Case, Rival, Sizes, Workload, assert_agree, first_result, make_logits
from dlm_kernels import denoise_step_
from dlm_kernels.roofline import bytes_moved

OPS = ("denoise_step_",)
LLADA, MASK_ID = 126464, 126336
STEPS_PER_BLOCK = 16
QUOTA, THRESHOLD = "2 a step", "confidence > 0.9, at least 2"


def cases(op: str, sizes: Sizes) -> list[Case]:
    """A batch of canvases whose last block is open, as it is at the block's first step."""
    vocabulary = (sizes.vocabulary or [LLADA])[0]
    shape = {"batch": max(sizes.rows or [16]), "length": 256, "block": 32, "vocabulary": vocabulary}
    return [
        Case(op, shape, dtype, "mixed", settings)
        for dtype in sizes.dtype or ["fp32", "bf16"]
        for settings in (QUOTA, THRESHOLD)
    ]


def build(case: Case, compile_: bool = True) -> Workload:
    batch, length, block, vocabulary = (case.shape[name] for name in ("batch", "length", "block", "vocabulary"))
    mask_id = min(MASK_ID, vocabulary - 1)
    logits = _logits(batch, length, vocabulary, case.torch_dtype, case.inputs)
    tokens = torch.randint(0, vocabulary - 1, (batch, length), generator=torch.Generator().manual_seed(1))
    tokens[tokens == mask_id] = 0
    tokens[:, -block:] = mask_id
    quota = math.ceil(block / STEPS_PER_BLOCK)
    rules: dict[str, Any] = {"quota": quota}
    if case.settings == THRESHOLD:
        rules |= {"threshold": 0.9, "strict": True}

    def ours(backend: str | None) -> tuple[Tensor, ...]:
        # The published steps may propose the mask token, so ours may as well.
        return denoise_step_(tokens, logits, mask_id=mask_id, suppress_ids=(), at_least=0, backend=backend, **rules)

    work = Workload(ours, bytes_moved("score_tokens", rows=0, vocabulary=0, itemsize=0), logits, state=(tokens,))
    committed = int(work.result(lambda: ours(None))[1].sum())
    work.restore()
    work.traffic = bytes_moved(
        "denoise_step_",
        batch=batch,
        length=length,
        eligible=batch * block,
        committed=committed,
        vocabulary=vocabulary,
        itemsize=case.itemsize,
    )
    work.read = logits[:, -block:]
    if case.settings == QUOTA:
        work.rivals["LLaDA step, fp64"] = Rival(
            lambda: llada_step_(tokens, logits, mask_id, quota, torch.float64), first_result
        )
        # Probabilities in bf16 tie, so that another order of commits is no error.
        work.rivals["LLaDA step, model dtype"] = Rival(
            lambda: llada_step_(tokens, logits, mask_id, quota, None), first_result if case.dtype == "fp32" else None
        )
    else:
        _add_diffusers(work, tokens, logits, mask_id, block)
    threshold = rules.get("threshold", math.inf)
    work.rivals["eager fp32, block only"] = Rival(
        lambda: block_step_(tokens, logits, mask_id, block, quota, threshold), first_result
    )
    return work


@lru_cache(maxsize=1)  # gigabytes, for several cases
def _logits(batch: int, length: int, vocabulary: int, dtype: torch.dtype, inputs: str) -> Tensor:
    return torch.stack([make_logits((length, vocabulary), dtype, inputs, seed) for seed in range(batch)])


def llada_step_(tokens: Tensor, logits: Tensor, mask_id: int, quota: int, softmax_dtype: torch.dtype | None) -> None:
    """What LLaDA's `generate` does after the forward at temperature 0, over all positions of the canvas.

    fp64: the softmax of Fast-dLLM, d3LLM and LaViDa; LLaDA's own has the model's dtype.
    """
    masked = tokens == mask_id
    proposal = logits.argmax(-1)
    probabilities = (logits if softmax_dtype is None else logits.to(softmax_dtype)).softmax(-1)
    confidence = probabilities.gather(-1, proposal[..., None])[..., 0]
    proposal = torch.where(masked, proposal, tokens)
    confidence = confidence.masked_fill(~masked, -torch.inf)
    chosen = torch.zeros_like(masked)
    for row in range(len(tokens)):
        chosen[row, confidence[row].topk(quota).indices] = True
    tokens[chosen] = proposal[chosen]


def block_step_(tokens: Tensor, logits: Tensor, mask_id: int, block: int, quota: int, threshold: float) -> None:
    """The same decision written with care: fp32, the open block alone, no loop over rows."""
    here = tokens[:, -block:]
    confidence, proposal = logits[:, -block:].float().softmax(-1).max(-1)
    masked = here == mask_id
    confidence = confidence.masked_fill(~masked, -torch.inf)
    chosen = torch.zeros_like(masked).scatter_(1, confidence.topk(quota).indices, True)
    chosen = (chosen | (confidence > threshold)) & masked
    here.copy_(torch.where(chosen, proposal, here))


def _add_diffusers(work: Workload, tokens: Tensor, logits: Tensor, mask_id: int, block: int) -> None:
    """`BlockRefinementScheduler.step` on the block's logits, as LLaDA2Pipeline calls it, and on the whole canvas."""
    try:
        from diffusers import BlockRefinementScheduler
    except ImportError:
        work.notes["BlockRefinementScheduler"] = "diffusers not installed (pip install 'dlm-kernels[hf]')"
        return
    scheduler = BlockRefinementScheduler(block_length=block, threshold=0.9)
    scheduler.set_timesteps(STEPS_PER_BLOCK)

    def step(part: slice) -> Tensor:
        output = scheduler.step(logits[:, part], 0, tokens[:, part], mask_token_id=mask_id, temperature=0.0)
        return output.prev_sample

    def block_agrees(ours: Any, theirs: Any) -> None:
        assert_agree((ours[0][:, -block:],), theirs[1:2])

    def canvas_agrees(ours: Any, theirs: Any) -> None:
        assert_agree(ours[:1], theirs[1:2])

    work.rivals["BlockRefinementScheduler.step, block"] = Rival(lambda: step(slice(-block, None)), block_agrees)
    work.rivals["BlockRefinementScheduler.step, canvas"] = Rival(lambda: step(slice(None)), canvas_agrees)
