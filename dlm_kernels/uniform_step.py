"""One posterior step of uniform-state diffusion, from time t to s."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.scoring import canvas_row_ids, check_step, normalise
from dlm_kernels.transition import signal_levels

DENOISERS = ("posterior", "leave_one_out")


def uniform_step_(
    tokens: Tensor,
    logits: Tensor,
    *,
    denoiser: str,
    alpha_t: float | Tensor,
    alpha_s: float | Tensor,
    eligible: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    seed: int | Tensor = 0,
    row_ids: int | Tensor | None = None,
    step: int | Tensor = 0,
    suppress_ids: Sequence[int] | Tensor | None = None,
    filter_order: str = "top_k_first",
    backend: str | None = None,
) -> Tensor:
    """Draw x_s from its distribution given x_t = tokens and the denoiser's logits, in place; positions are independent.

    The forward process keeps x_0 with probability alpha_t and else takes any of the V states, each as likely. What the
    logits are given decides the formula, and the wrong one is far off (it counts the evidence of x_t twice, or never):

    "posterior": p(x_0 | x_t), from a denoiser trained to predict x_0 that sees the position it predicts. x_0 is drawn, then
    x_s from q(x_s | x_t, x_0) (D3PM; the discrete form of DDIM).
    "leave_one_out": p(x_0 | x_t without this position), for which the plug-in formula of UDLM and Duo is exact. Logits of the
    first kind become the second by taking log(1 + V alpha_t / (1 - alpha_t)) from the entry of x_t.

    Args:
        tokens: [B, L] int64, values in [0, V), any strides, written.
        logits: [B, L, V]; row i predicts position i. V is the number of states: slice off columns that are none.
        denoiser: see above; there is no default.
        alpha_t, alpha_s: per row [B], 0 <= alpha_t <= alpha_s <= 1.
        eligible: bool [B, L]: positions that may change. Default: all, so name the prompt's.
        temperature, top_k, top_p, seed, step, suppress_ids, filter_order: as in `score_tokens`; they shape p, not the noise.
        row_ids: default: request b, position l, that is b << 32 | l.
        backend: see `use_backend`.

    Returns:
        bool [B, L]: positions that changed.

    Raises:
        InvalidArgumentError: wrong dtype, shape or device, a number outside its range, an id outside the vocabulary.
        BackendUnavailableError: the backend asked for cannot run here or has no such kernel.

    D3PM, arXiv:2107.03006; UDLM, arXiv:2412.10193; Duo, arXiv:2506.10892.

    >>> tokens = torch.tensor([[0, 3, 1, 2]])
    >>> logits = torch.tensor([0.0, 0.0, 9.0, 0.0]).expand(1, 4, 4)
    >>> uniform_step_(tokens, logits, denoiser="leave_one_out", alpha_t=0.1, alpha_s=1.0)
    tensor([[ True,  True,  True, False]])
    >>> tokens
    tensor([[2, 2, 2, 2]])
    """
    logits = check_step(tokens, logits)
    kind = arguments.choice("denoiser", denoiser, DENOISERS)
    levels = signal_levels(alpha_t, alpha_s, tokens)
    scoring = normalise(
        logits,
        tokens.shape,
        canvas_row_ids(tokens, row_ids),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        step=step,
        suppress_ids=suppress_ids,
        eligible=eligible,
        confidence="model",
        filter_order=filter_order,
    )
    return torch.ops.dlm_kernels.uniform_step_(
        tokens, logits, *levels, kind == "leave_one_out", *scoring, arguments.backend_name(backend)
    )
