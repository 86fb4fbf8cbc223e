"""Drop-in samplers for diffusion language models."""

from dlm_samplers.guarantees import Guarantee
from dlm_samplers.models import ModelSpec
from dlm_samplers.output import GenerationInterrupted, SamplerOutput
from dlm_samplers.policies import (
    AncestralUnmask,
    EntropyBound,
    Factor,
    FixedQuota,
    FrozenConfidence,
    Policy,
    Threshold,
)
from dlm_samplers.sampler import DreamSampler, LLaDASampler, Sampler
from dlm_samplers.schedules import Linear, Schedule, TimeGrid
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping import EndOfText, StoppingRule
from dlm_samplers.verify import DraftVerify, Verify

__all__ = [
    "AncestralUnmask",
    "DraftVerify",
    "DreamSampler",
    "EndOfText",
    "EntropyBound",
    "Factor",
    "FixedQuota",
    "FrozenConfidence",
    "GenerationInterrupted",
    "Guarantee",
    "LLaDASampler",
    "Linear",
    "ModelSpec",
    "Policy",
    "Sampler",
    "SamplerOutput",
    "SamplerState",
    "Schedule",
    "StoppingRule",
    "Threshold",
    "TimeGrid",
    "Verify",
]
