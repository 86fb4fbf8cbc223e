"""Drop-in samplers for diffusion language models."""

from dlm_samplers.guarantees import Guarantee
from dlm_samplers.lengths import DAEDAL, LengthRule
from dlm_samplers.models import ModelSpec
from dlm_samplers.output import GenerationInterrupted, SamplerOutput
from dlm_samplers.policies import AncestralUnmask, EntropyBound, Factor, FixedQuota, Policy, Threshold
from dlm_samplers.remask import CappedThreshold, Remask, ReMDM, Revocation, ShadowVerify
from dlm_samplers.sampler import DreamSampler, LLaDASampler, Sampler
from dlm_samplers.schedules import Linear, Schedule, TimeGrid
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping import EndOfText, Prophet, SchED, StableAndConfident, StoppingRule

__all__ = [
    "DAEDAL",
    "AncestralUnmask",
    "CappedThreshold",
    "DreamSampler",
    "EndOfText",
    "EntropyBound",
    "Factor",
    "FixedQuota",
    "GenerationInterrupted",
    "Guarantee",
    "LLaDASampler",
    "LengthRule",
    "Linear",
    "ModelSpec",
    "Policy",
    "Prophet",
    "ReMDM",
    "Remask",
    "Revocation",
    "Sampler",
    "SamplerOutput",
    "SamplerState",
    "SchED",
    "Schedule",
    "ShadowVerify",
    "StableAndConfident",
    "StoppingRule",
    "Threshold",
    "TimeGrid",
]
