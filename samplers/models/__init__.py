"""Model adapters: how a diffusion language model is called and what its output means."""

from dlm_samplers.models.adapter import Adapter
from dlm_samplers.models.describe import Description, UnknownModelError, describe
from dlm_samplers.models.embedded import EmbeddedModel
from dlm_samplers.models.probe import ModelMismatchError, Probe, probe
from dlm_samplers.models.spec import ModelSpec

__all__ = [
    "Adapter",
    "Description",
    "EmbeddedModel",
    "ModelMismatchError",
    "ModelSpec",
    "Probe",
    "UnknownModelError",
    "describe",
    "probe",
]
