"""Hugging Face models with the shapes, masks and calls of published ones: with random weights, or with the bundled ones."""

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
    trained,
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
    "trained",
]
