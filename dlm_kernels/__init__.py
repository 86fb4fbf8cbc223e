"""Kernels for diffusion language models: score tokens, choose positions, commit. See `python -m dlm_kernels.info`."""

from dlm_kernels.absorbing_step import absorbing_step_
from dlm_kernels.commit import commit_
from dlm_kernels.cosine_rows import cosine_rows
from dlm_kernels.denoise_step import denoise_step_, step_buffers
from dlm_kernels.dispatch import use_backend
from dlm_kernels.errors import BackendUnavailableError, DLMKernelsError, InvalidArgumentError, KernelCompilationError
from dlm_kernels.gather_rows import gather_rows
from dlm_kernels.gaussian_step import gaussian_step_
from dlm_kernels.nearest_embedding import nearest_embedding
from dlm_kernels.results import NearestRows, RevokeStats, StepBuffers, StepStats, TokenScores, TopK
from dlm_kernels.revoke import revoke_
from dlm_kernels.rng import keyed_uniform
from dlm_kernels.rows_changed import rows_changed
from dlm_kernels.scatter_rows import scatter_rows_
from dlm_kernels.score_entropy_step import score_entropy_step_
from dlm_kernels.score_hidden import score_hidden
from dlm_kernels.score_tokens import score_tokens
from dlm_kernels.select_positions import select_positions
from dlm_kernels.tensor_parallel import score_hidden_parallel
from dlm_kernels.topk_kl import topk_kl
from dlm_kernels.uniform_step import uniform_step_

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "DLMKernelsError",
    "InvalidArgumentError",
    "KernelCompilationError",
    "NearestRows",
    "RevokeStats",
    "StepBuffers",
    "StepStats",
    "TokenScores",
    "TopK",
    "absorbing_step_",
    "commit_",
    "cosine_rows",
    "denoise_step_",
    "gather_rows",
    "gaussian_step_",
    "keyed_uniform",
    "nearest_embedding",
    "revoke_",
    "rows_changed",
    "scatter_rows_",
    "score_entropy_step_",
    "score_hidden",
    "score_hidden_parallel",
    "score_tokens",
    "select_positions",
    "step_buffers",
    "topk_kl",
    "uniform_step_",
    "use_backend",
]
