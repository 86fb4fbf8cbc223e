"""Schedulers of diffusers for discrete diffusion, on this library's kernels. The config stays, so one line changes:

pipe.scheduler = FusedBlockRefinementScheduler.from_config(pipe.scheduler.config)
"""

try:
    from diffusers import BlockRefinementScheduler, DiscreteDDIMScheduler, EntropyBoundScheduler  # noqa: F401
except ImportError as error:
    raise ImportError(
        "dlm_samplers.integrations.diffusers needs diffusers >= 0.42: pip install 'dlm-kernels[hf]'"
    ) from error

from dlm_samplers.integrations.diffusers.block_refinement import FusedBlockRefinementScheduler
from dlm_samplers.integrations.diffusers.discrete_ddim import FusedDiscreteDDIMScheduler
from dlm_samplers.integrations.diffusers.entropy_bound import FusedEntropyBoundScheduler

__all__ = ["FusedBlockRefinementScheduler", "FusedDiscreteDDIMScheduler", "FusedEntropyBoundScheduler"]
