"""MDLM's sampler (arXiv:2406.07524, `_sample` with the predictor "ddpm_cache")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlm_samplers.reference.llada import Noise


@torch.no_grad()
def mdlm_generate(
    model: Callable[..., Any],
    x: Tensor,
    *,
    steps: int,
    eps: float = 1e-5,
    mask_id: int,
    sees_time: bool = False,
    noise_removal: bool = True,
    uniform: Noise | None = None,
) -> Tensor:
    """Ancestral sampling under log-linear noise. int64 [B, L] with mask_id where to fill -> int64 [B, L].

    The network's output is kept for the next step when no token changed: in the whole batch, so that with more than a few
    rows every step costs a forward. Differs from the published code where tokens are compared: that uses `allclose`, to which
    ids above 100,000 that are neighbours look the same.

    uniform(step, shape [B, L, V]) replaces the noise. As published it is fp32, too coarse for rare tokens (arXiv:2409.02908).
    """
    if uniform is None:
        uniform = lambda step, shape: torch.rand(shape)  # noqa: E731
    t = torch.linspace(1, eps, steps + 1)
    p_x0 = None
    for i in range(steps):
        if p_x0 is None:
            p_x0 = _probabilities(model, x, mask_id)  # [B, L, V]
        q_xs = p_x0 * (t[i] - t[i + 1])
        q_xs[:, :, mask_id] = t[i + 1]
        gumbel_norm = 1e-10 - (uniform(i, tuple(q_xs.shape)) + 1e-10).log()
        x_next = torch.where(x == mask_id, (q_xs / gumbel_norm).argmax(-1), x)
        if sees_time or not torch.equal(x_next, x):
            p_x0 = None
        x = x_next
    if noise_removal:
        x = torch.where(x == mask_id, _probabilities(model, x, mask_id).argmax(-1), x)
    return x


def _probabilities(model: Callable[..., Any], x: Tensor, mask_id: int) -> Tensor:
    """Of clean tokens, so never of the mask. [B, L, V]."""
    output = model(x)
    logits = output if isinstance(output, Tensor) else output.logits
    logits[:, :, mask_id] = -torch.inf
    return logits.softmax(-1)
