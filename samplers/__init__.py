"""Drop-in samplers for diffusion language models."""

from dlm_samplers.guarantees import Guarantee
from dlm_samplers.models import ModelSpec
from dlm_samplers.output import GenerationInterrupted, SamplerOutput
from dlm_samplers.policies import (
    AncestralUnmask,
    Credit,
    Dilated,
    EntropyBound,
    Factor,
    FixedQuota,
    Hierarchical,
    KLStable,
    LocalLeap,
    Margin,
    Policy,
    SlowFast,
    Spaced,
    Threshold,
)
from dlm_samplers.sampler import DreamSampler, LLaDASampler, Sampler
from dlm_samplers.schedules import Linear, Schedule, TimeGrid
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping import EndOfText, StoppingRule

__all__ = [
    "AncestralUnmask",
    "Credit",
    "Dilated",
    "DreamSampler",
    "EndOfText",
    "EntropyBound",
    "Factor",
    "FixedQuota",
    "GenerationInterrupted",
    "Guarantee",
    "Hierarchical",
    "KLStable",
    "LLaDASampler",
    "Linear",
    "LocalLeap",
    "Margin",
    "ModelSpec",
    "Policy",
    "Sampler",
    "SamplerOutput",
    "SamplerState",
    "Schedule",
    "SlowFast",
    "Spaced",
    "StoppingRule",
    "Threshold",
    "TimeGrid",
]
