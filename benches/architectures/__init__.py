"""Random-weight models with the shapes, masks and calls of published diffusion language models."""

from dlm_benches.architectures.config import (
    DreamStyleConfig,
    LLaDA2StyleConfig,
    LLaDAStyleConfig,
    MaskedDiffusionConfig,
    SDARStyleConfig,
)
from dlm_benches.architectures.model import (
    DreamStyleModel,
    LLaDA2StyleModel,
    LLaDAStyleModel,
    MaskedDiffusionModel,
    SDARStyleModel,
)

__all__ = [
    "DreamStyleConfig",
    "DreamStyleModel",
    "LLaDA2StyleConfig",
    "LLaDA2StyleModel",
    "LLaDAStyleConfig",
    "LLaDAStyleModel",
    "MaskedDiffusionConfig",
    "MaskedDiffusionModel",
    "SDARStyleConfig",
    "SDARStyleModel",
]
