"""One reverse step of score-entropy discrete diffusion (SEDD)."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.errors import InvalidArgumentError
from dlm_kernels.scoring import canvas_row_ids, check_step

GRAPHS = ("absorb", "uniform")
METHODS = ("euler", "analytic")
NO_MASK = -1  # how the operator is told of the uniform graph


def score_entropy_step_(
    tokens: Tensor,
    log_score: Tensor,
    *,
    graph: str,
    delta_sigma: float | Tensor,
    method: str = "euler",
    mask_id: int | None = None,
    denoise: bool = False,
    eligible: Tensor | None = None,
    seed: int | Tensor = 0,
    row_ids: int | Tensor | None = None,
    step: int | Tensor = 0,
    backend: str | None = None,
) -> Tensor:
    """Draw x_s given x_t = tokens and log p_t(y) / p_t(x_t) for every y, in place; positions are independent.

    "euler" takes 1{y = x_t} + delta_sigma times the reverse rate, "analytic" (Tweedie tau-leaping) is exact for exact scores
    of independent positions. Either may come out below 0, Euler on long steps, both on inexact scores: such
    probabilities count as 0, and the rest is normalised. The score of x_t itself is 1 by definition and is not read.

    Args:
        tokens: [B, L] int64, values in [0, V), any strides, written.
        log_score: [B, L, V] fp32, bf16 or fp16; row i is that of position i.
        graph: "absorb": tokens become `mask_id`, and only masked positions move here. "uniform": they become any of V states.
        delta_sigma: per row [B], >= 0: growth of the total noise over the step: sigma(t) - sigma(s) for "analytic",
            (t - s) sigma'(t) for "euler". After the noise sigma a token is untouched with probability exp(-sigma).
        method: "euler" or "analytic".
        mask_id: in [0, V), with "absorb" alone.
        denoise: the last step, "absorb" alone: no position stays masked; delta_sigma does not matter.
        eligible: bool [B, L]: positions that may change. Default: all.
        seed, row_ids, step: keys of the draw as in `score_tokens`. row_ids: default: b << 32 | l.
        backend: see `use_backend`.

    Returns:
        bool [B, L]: positions that changed.

    Raises:
        InvalidArgumentError: wrong dtype, shape or device, a number outside its range, a mask_id that the graph does not have.
        BackendUnavailableError: the backend asked for cannot run here or has no such kernel.

    SEDD, arXiv:2310.16834.

    >>> tokens = torch.full((1, 4), 2)
    >>> log_score = torch.tensor([-20.0, 0.0, 0.0]).expand(1, 4, 3)
    >>> score_entropy_step_(tokens, log_score, graph="absorb", mask_id=2, delta_sigma=0.5)
    tensor([[False, False,  True, False]])
    >>> tokens
    tensor([[2, 2, 1, 2]])
    """
    log_score = check_step(tokens, log_score, "log_score")
    absorbs = arguments.choice("graph", graph, GRAPHS) == "absorb"
    if absorbs != (mask_id is not None):
        raise InvalidArgumentError(
            f"mask_id must be {'given' if absorbs else 'None'} with graph {graph!r}, got {mask_id}"
        )
    if arguments.flag("denoise", denoise) and not absorbs:
        raise InvalidArgumentError(
            "denoise must be False with graph 'uniform': its last step is an ordinary one; got True"
        )
    if eligible is not None:
        arguments.tensor("eligible", eligible, (torch.bool,), tokens.shape)
        arguments.same_device("eligible", eligible, tokens)
    shape = tokens.shape
    return torch.ops.dlm_kernels.score_entropy_step_(
        tokens,
        log_score,
        NO_MASK if mask_id is None else arguments.vocabulary_id("mask_id", mask_id, log_score.shape[-1]),
        arguments.floats("delta_sigma", delta_sigma, shape[:1], tokens, at_least=0.0, dtype=torch.float64),
        arguments.choice("method", method, METHODS),
        denoise,
        eligible,
        *arguments.keys(seed, canvas_row_ids(tokens, row_ids), step, shape, tokens),
        arguments.backend_name(backend),
    )
