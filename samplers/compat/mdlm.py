"""`Diffusion._sample` and `_ddpm_caching_update` of MDLM (kuleshov-group/mdlm, diffusion.py), as functions of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, absorbing_step_
from dlm_samplers.compat.absorbing import Settings, Walk, clean_probabilities, fresh_seed, spec_for
from dlm_samplers.models import Adapter, ModelSpec

PREDICTORS = ("ddpm_cache", "ddpm", "analytic")


@torch.no_grad()
def sample(
    model: Callable[..., Any],
    num_steps: int | None = None,
    eps: float = 1e-5,
    *,
    x: Tensor | None = None,
    batch_size: int | None = None,
    length: int | None = None,
    predictor: str | None = None,
    noise_removal: bool | None = None,
    mask_index: int | None = None,
    spec: ModelSpec | None = None,
    seed: int | None = None,
) -> Tensor:
    """Drop-in for `diffusion._sample(num_steps, eps)`: int64 [B, L].

    model: the training module, whose configuration then supplies what is not given; or a checkpoint's model, or any network
        with a `spec`. The defaults are the configuration's: 128 steps, "ddpm_cache", noise removal.
    x: int64 [B, L], the canvas to start from, masks where to fill; default: batch_size rows of length masks.
    seed: default: drawn from torch's global generator.

    Equal in distribution to the published code at any number of steps, its last forward included, which fills what is left
    with the likeliest tokens ("analytic": with a draw). Differences:

    - A row costs a forward in the steps in which one of its masks is filled, at any batch size and whether or not the network
      sees time (upstream: the whole batch, whenever any row of it changed, and always with time conditioning).
    - Upstream compares canvases by `torch.allclose`, to which ids above 100,000 that are neighbours are the same, so that it
      may use an outdated forward.
    - Upstream's Gumbel noise is fp32 with 1e-10 added twice, which cuts off rare tokens (arXiv:2409.02908). Here flips have a
      draw of their own, and noise is keyed by seed, row, position and step, so a row does not depend on its batch.
    - Upstream writes into the network's logits.
    - Canvases with prompts and blanks are accepted.
    - "ddpm" and "ddpm_cache" are one law. All tell the network of the noise at (1 - 1e-3) t, as there.
    """
    settings = Settings(model)
    spec = spec_for(model, spec, mask_index)
    steps = settings("num_steps", num_steps, "sampling.steps", default=128)
    predictor = settings("predictor", predictor, "sampling.predictor", default="ddpm_cache")
    noise_removal = settings("noise_removal", noise_removal, "sampling.noise_removal", default=True)
    if predictor not in PREDICTORS:
        raise InvalidArgumentError(f"predictor must be one of {PREDICTORS}, got {predictor!r}")
    times = time_grid(steps, eps)
    walk = Walk(model, spec, settings.canvas(model, x, batch_size, length, spec.mask_id), fresh_seed(seed))
    for i in range(steps):
        # At noise c t, whatever c: of the masks at t those stay that are masks at s.
        walk.step(i, times[i], fill=1 - times[i + 1] / times[i])
    if noise_removal:
        walk.finish(steps, times[steps], temperature=float(predictor == "analytic"))
    return walk.x


@torch.no_grad()
def ddpm_caching_update(
    model: Callable[..., Any],
    x: Tensor,
    t: Tensor,
    dt: float,
    p_x0: Tensor | None = None,
    *,
    mask_index: int | None = None,
    spec: ModelSpec | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Drop-in for `diffusion._ddpm_caching_update(x, t, dt, p_x0)`, for a loop of one's own: (p_x0, x_next).

    x: int64 [B, L]. t: [B] or [B, 1]. p_x0: float [B, L, V], what the call before returned, if x has not changed since; it
    saves the forward, and may have been changed by the caller.
    """
    spec = spec_for(model, spec, mask_index)
    t = t.reshape(-1).double()
    if p_x0 is None:
        p_x0 = clean_probabilities(Adapter(model, spec), x, t)
    after = x.clone()
    seed = fresh_seed(seed)
    absorbing_step_(after, p_x0.log(), mask_id=spec.mask_id, alpha_t=1 - t, alpha_s=1 - (t - dt), seed=seed)
    return p_x0, after


def time_grid(steps: int, eps: float) -> list[float]:
    """1, ..., eps: steps + 1 times."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidArgumentError(f"num_steps must be an int >= 1, got {steps!r}")
    if not 0 < eps < 1:
        raise InvalidArgumentError(f"eps must be in (0, 1), got {eps}")
    return torch.linspace(1, eps, steps + 1, dtype=torch.float64).tolist()
