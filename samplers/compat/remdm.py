"""`Diffusion._sample` and `_ddpm_caching_update` of ReMDM (kuleshov-group/remdm, diffusion.py), as functions of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, absorbing_step_
from dlm_samplers.compat.absorbing import Settings, Walk, clean_probabilities, fresh_seed, spec_for
from dlm_samplers.compat.mdlm import time_grid
from dlm_samplers.models import Adapter, ModelSpec

SAMPLERS = ("mdlm", "forward-backward", "remdm-cap", "remdm-rescale", "remdm-conf", "remdm-loop")
NEED_ETA = ("remdm-cap", "remdm-rescale", "remdm-loop")


@torch.no_grad()
def sample(
    model: Callable[..., Any],
    num_steps: int | None = None,
    eps: float = 1e-5,
    *,
    sampler: str | None = None,
    eta: float | None = None,
    t_on: float | None = None,
    t_off: float | None = None,
    alpha_on: float | None = None,
    nucleus_p: float | None = None,
    x: Tensor | None = None,
    batch_size: int | None = None,
    length: int | None = None,
    noise_removal: bool | None = None,
    mask_index: int | None = None,
    spec: ModelSpec | None = None,
    seed: int | None = None,
) -> Tensor:
    """Drop-in for ReMDM's `diffusion._sample(num_steps, eps)` with the predictor "ddpm_cache": int64 [B, L].

    model, x, batch_size, length, seed: as in `compat.mdlm.sample`. sampler: "mdlm", "forward-backward", "remdm-cap",
    "remdm-rescale", "remdm-conf", "remdm-loop"; it and eta have to be given or be in the model's configuration. The defaults of
    t_on, t_off and alpha_on (0.55, 0.05, 0.9) are those of the published script, of nucleus_p (1.0) the configuration's.

    Equal in distribution to the published code at nucleus_p = 1. Differences:

    - A row costs a forward in the steps in which one of its masks is filled: what is masked again does not hang on the
      forward. (Upstream: see `compat.mdlm.sample`.)
    - Given tokens stay (upstream masks a prompt again like its own tokens).
    - "remdm-conf" works in any dtype, and keeps the probabilities of tokens in fp32 (upstream: a bf16 buffer, so that fp32
      models raise and probabilities have 3 digits).
    - alpha_on holds between t_on and t_off too (a published version has 0.9 there).
    - The nucleus is the smallest set with at least nucleus_p (upstream: the largest with at most that, .89 at .9).
    - "forward-backward" would fill with a probability above 1 in its last step; both codes then fill.
    - `dfm` is not offered (upstream: AttributeError at nucleus_p = 1).
    """
    settings, spec = Settings(model), spec_for(model, spec, mask_index)
    rates = _rates(settings, sampler, eta, t_on, t_off, alpha_on)
    steps = settings("num_steps", num_steps, "sampling.steps", default=128)
    noise_removal = settings("noise_removal", noise_removal, "sampling.noise_removal", default=True)
    nucleus_p = settings("nucleus_p", nucleus_p, "sampling.nucleus_p", default=1.0)
    if not 0 < nucleus_p <= 1:
        raise InvalidArgumentError(f"nucleus_p must be in (0, 1], got {nucleus_p}")
    times = time_grid(steps, eps)
    canvas = settings.canvas(model, x, batch_size, length, spec.mask_id)
    walk = Walk(model, spec, canvas, fresh_seed(seed), top_p=nucleus_p)
    conf = torch.full(canvas.shape, -torch.inf, device=canvas.device)
    for i in range(steps):
        alpha_t, alpha_s, sigma = rates(times[i], times[i] - times[i + 1])
        if rates.sampler == "remdm-conf":
            remask: float | Tensor = sigma * _share(conf)
            sigma = 0.0
        else:
            remask = sigma
        filled, probability = walk.step(i, times[i], _fill(alpha_t, alpha_s, sigma), remask)
        conf = torch.where(filled, -probability, conf).masked_fill_(walk.masked, -torch.inf)
    if noise_removal:
        walk.finish(steps, times[steps], temperature=0.0)
    return walk.x


@torch.no_grad()
def ddpm_caching_update(
    model: Callable[..., Any],
    x: Tensor,
    t: Tensor,
    dt: float,
    p_x0: Tensor | None = None,
    conf: Tensor | None = None,
    *,
    sampler: str | None = None,
    eta: float | None = None,
    t_on: float | None = None,
    t_off: float | None = None,
    alpha_on: float | None = None,
    mask_index: int | None = None,
    spec: ModelSpec | None = None,
    seed: int | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Drop-in for ReMDM's `diffusion._ddpm_caching_update(x, t, dt, p_x0, conf)`: (p_x0 for the next call, x_next, conf).

    x: int64 [B, L]. t: [B] or [B, 1], the same in all rows. p_x0: what the call before returned; None when x changed. conf:
    float [B, L], minus the probability of each token when it was filled, -inf elsewhere; default: all -inf. Written.
    """
    spec = spec_for(model, spec, mask_index)
    rates = _rates(Settings(model), sampler, eta, t_on, t_off, alpha_on)
    t = t.reshape(-1).double()
    if p_x0 is None:
        p_x0 = clean_probabilities(Adapter(model, spec), x, t)
    if conf is None:
        conf = torch.full(x.shape, -torch.inf, device=x.device)
    alpha_t, alpha_s, sigma = rates(float(t[0]), dt)
    masked, after = x == spec.mask_id, x.clone()
    remask: float | Tensor = sigma * _share(conf) if rates.sampler == "remdm-conf" else sigma
    absorbing_step_(
        after,
        p_x0.log(),
        mask_id=spec.mask_id,
        alpha_t=torch.full_like(t, alpha_t),  # as tensors, for which a sigma beyond its limit is cut
        alpha_s=torch.full_like(t, alpha_s),
        sigma=remask,
        seed=fresh_seed(seed),
    )
    filled = masked & (after != spec.mask_id)
    probability = p_x0.gather(-1, after[:, :, None])[:, :, 0]
    conf.copy_(torch.where(filled, -probability.to(conf), conf).masked_fill_(after == spec.mask_id, -torch.inf))
    unchanged = torch.equal(after, x) and not spec.sees_time
    return p_x0 if unchanged else None, after, conf


@dataclass(frozen=True)
class _Rates:
    """alpha_t, alpha_s and sigma of a step from t to t - dt."""

    sampler: str
    eta: float
    t_on: float
    t_off: float
    alpha_on: float

    def __call__(self, t: float, dt: float) -> tuple[float, float, float]:
        s = t - dt
        if self.sampler == "remdm-loop":
            if t > self.t_on:
                slope = self.alpha_on / (1 - self.t_on)
                return (1 - t) * slope, min(1.0, (1 - s) * slope), 0.0  # a long step may overshoot
            if t <= self.t_off:
                slope = (1 - self.alpha_on) / self.t_off
                return 1 - t * slope, 1 - s * slope, 0.0
            return self.alpha_on, self.alpha_on, self.eta
        alpha_t, alpha_s = 1 - t, 1 - s
        limit = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t > 0 else 1.0
        sigma = {
            "mdlm": 0.0,
            "forward-backward": min(1.0, (alpha_s - alpha_t) / alpha_t) if alpha_t > 0 else 1.0,
            "remdm-cap": min(self.eta, limit),
            "remdm-rescale": self.eta * limit,
            "remdm-conf": limit,
        }
        return alpha_t, alpha_s, sigma[self.sampler]


def _rates(
    settings: Settings,
    sampler: str | None,
    eta: float | None,
    t_on: float | None,
    t_off: float | None,
    alpha_on: float | None,
) -> _Rates:
    sampler = settings("sampler", sampler, "sampling.sampler")
    if sampler not in SAMPLERS:
        raise InvalidArgumentError(f"sampler must be one of {SAMPLERS}, got {sampler!r}")
    eta = settings("eta", eta, "sampling.eta", default=None if sampler in NEED_ETA else 0.0)
    if not 0 <= eta <= 1:
        raise InvalidArgumentError(f"eta must be in [0, 1], got {eta}")
    if sampler != "remdm-loop":
        return _Rates(sampler, eta, 0.0, 0.0, 0.0)
    on = settings("t_on", t_on, "sampling.t_on", default=0.55)
    off = settings("t_off", t_off, "sampling.t_off", default=0.05)
    level = settings("alpha_on", alpha_on, "sampling.alpha_on", default=0.9)
    if not (0 < off <= on < 1 and 0 < level < 1):
        raise InvalidArgumentError(
            f"t_on, t_off and alpha_on must have 0 < t_off <= t_on < 1 and 0 < alpha_on < 1, got {on}, {off} and {level}"
        )
    return _Rates(sampler, eta, on, off, level)


def _fill(alpha_t: float, alpha_s: float, sigma: float) -> float:
    """Probability that a mask becomes a token."""
    return (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)


def _share(conf: Tensor) -> Tensor:
    """Softmax of conf [B, L] over the row's tokens, 0 where it is -inf."""
    weight = (conf - conf.amax(-1, keepdim=True).clamp(min=-1.0)).exp()  # a probability is at most 1
    return weight / weight.sum(-1, keepdim=True).clamp(min=1e-30)
