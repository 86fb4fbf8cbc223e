"""`get_pc_sampler` of SEDD (louaaron/Score-Entropy-Discrete-Diffusion, sampling.py): change the import, keep the call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, score_entropy_step_
from dlm_kernels.rng import make_row_ids
from dlm_samplers.compat.absorbing import fresh_seed
from dlm_samplers.compat.mdlm import time_grid

PREDICTORS = ("euler", "analytic", "none")


def get_pc_sampler(
    graph: Any,
    noise: Callable[[Tensor], tuple[Tensor, Tensor]],
    batch_dims: Sequence[int],
    predictor: str,
    steps: int,
    denoise: bool = True,
    eps: float = 1e-5,
    device: torch.device | str = "cpu",
    proj_fun: Callable[[Tensor], Tensor] = lambda x: x,
    *,
    seed: int | None = None,
) -> Callable[[Callable[[Tensor, Tensor], Tensor]], Tensor]:
    """Drop-in for SEDD's `get_pc_sampler`: f(model) -> int64 `batch_dims` = [B, L]. model(x, sigma [B]) -> log score [B, L, V].

    graph: the repository's, of which `absorb`, `dim` and `sample_limit` are read. noise: t -> (sigma, its derivative).
    predictor: "euler", "analytic" or "none". proj_fun: called before every forward; f(x) with given tokens put back.
    seed: default: drawn from torch's global generator, when the function that is returned is called.

    Equal in distribution to the published code. Differences:

    - On the absorbing graph a row without masks costs no forward: nothing in it can move (upstream: steps + 1 of them).
    - Kept: what a long step makes negative counts as 0.
    - Upstream's Gumbel noise is fp32 with 1e-10 added twice, which cuts off rare tokens (arXiv:2409.02908); here it is keyed
      by seed, row, position and step, so a row does not depend on its batch.
    - Upstream puts autocast around a definition, where it does nothing: a model that needs it is called under it by the caller,
      as this function is.
    - The model is not switched to eval mode.
    """
    if predictor not in PREDICTORS:
        raise InvalidArgumentError(f"predictor must be one of {PREDICTORS}, got {predictor!r}")
    times = time_grid(steps, eps)
    absorbs = bool(graph.absorb)
    mask_id = graph.dim - 1 if absorbs else None

    @torch.no_grad()
    def pc_sampler(model: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        x = graph.sample_limit(*batch_dims).to(device)
        key = fresh_seed(seed)
        row, column = (torch.arange(size, device=x.device) for size in x.shape)
        row_ids = make_row_ids(row[:, None], column)

        def update(number: int, t: float, s: float | None, method: str, last: bool = False) -> None:
            """From t to s; None: to no noise at all."""
            rows = (x == mask_id).any(-1).nonzero()[:, 0] if absorbs else row
            if not rows.numel():
                return
            at = torch.full((len(rows), 1), t, device=x.device)
            sigma, rate = noise(at)
            if method == "euler":
                delta = rate * (1 - eps) / steps
            else:
                delta = sigma if s is None else sigma - noise(torch.full_like(at, s))[0]
            part = x[rows]
            log_score = model(part, sigma.reshape(-1))
            score_entropy_step_(
                part,
                log_score,
                graph="absorb" if absorbs else "uniform",
                mask_id=mask_id,
                delta_sigma=delta.reshape(-1).double().clamp(min=0),  # fp32 times may round to the same
                method=method,
                denoise=last and absorbs,
                seed=key,
                row_ids=row_ids[rows],
                step=number,
            )
            x[rows] = part

        for i in range(steps):
            x = proj_fun(x)
            if predictor != "none":
                update(i, times[i], times[i + 1], predictor)
        if denoise:
            x = proj_fun(x)
            update(steps, times[steps], None, "analytic", last=True)
        return x

    return pc_sampler
