"""Random-weight models with the shapes, masks and calls of published diffusion language models."""

from dlm_benches.architectures.config import DreamStyleConfig, LLaDAStyleConfig, MaskedDiffusionConfig, SDARStyleConfig
from dlm_benches.architectures.model import DreamStyleModel, LLaDAStyleModel, MaskedDiffusionModel, SDARStyleModel

__all__ = [
    "DreamStyleConfig",
    "DreamStyleModel",
    "LLaDAStyleConfig",
    "LLaDAStyleModel",
    "MaskedDiffusionConfig",
    "MaskedDiffusionModel",
    "SDARStyleConfig",
    "SDARStyleModel",
]
