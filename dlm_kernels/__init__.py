"""Kernels for diffusion language models: score tokens, choose positions, commit. See `python -m dlm_kernels.info`."""

from dlm_kernels.absorbing_step import absorbing_step_
from dlm_kernels.commit import commit_
from dlm_kernels.denoise_step import denoise_step_
from dlm_kernels.dispatch import use_backend
from dlm_kernels.errors import BackendUnavailableError, DLMKernelsError, InvalidArgumentError
from dlm_kernels.gaussian_step import gaussian_step_
from dlm_kernels.nearest_embedding import nearest_embedding
from dlm_kernels.results import NearestRows, RevokeStats, StepStats, TokenScores
from dlm_kernels.revoke import revoke_
from dlm_kernels.rng import keyed_uniform
from dlm_kernels.score_entropy_step import score_entropy_step_
from dlm_kernels.score_tokens import score_tokens
from dlm_kernels.select_positions import select_positions
from dlm_kernels.uniform_step import uniform_step_

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "DLMKernelsError",
    "InvalidArgumentError",
    "NearestRows",
    "RevokeStats",
    "StepStats",
    "TokenScores",
    "absorbing_step_",
    "commit_",
    "denoise_step_",
    "gaussian_step_",
    "keyed_uniform",
    "nearest_embedding",
    "revoke_",
    "score_entropy_step_",
    "score_tokens",
    "select_positions",
    "uniform_step_",
    "use_backend",
]
