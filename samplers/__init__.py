"""Drop-in samplers for diffusion language models."""

from dlm_samplers.caches import BlockCache, Cache, DualCache, PrefixCache
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.lengths import DAEDAL, LengthRule
from dlm_samplers.models import ModelMismatchError, ModelSpec, Probe, probe
from dlm_samplers.output import GenerationInterrupted, SamplerOutput
from dlm_samplers.policies import (
    AdaBlock,
    AncestralUnmask,
    EntropyBound,
    EventDriven,
    ExploreOne,
    Factor,
    FixedQuota,
    PCSampler,
    Policy,
    Saber,
    Threshold,
    background_frequencies,
)
from dlm_samplers.remask import (
    CappedThreshold,
    ConfidenceDrop,
    Remask,
    ReMDM,
    Revocation,
    SelfPlanning,
    ShadowVerify,
    TokenEditing,
)
from dlm_samplers.sampler import DreamSampler, LLaDASampler, Sampler
from dlm_samplers.schedules import Linear, Schedule, TimeGrid
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping import EndOfText, Prophet, SchED, StableAndConfident, StoppingRule

__all__ = [
    "DAEDAL",
    "AdaBlock",
    "AncestralUnmask",
    "BlockCache",
    "Cache",
    "CappedThreshold",
    "ConfidenceDrop",
    "DreamSampler",
    "DualCache",
    "EndOfText",
    "EntropyBound",
    "EventDriven",
    "ExploreOne",
    "Factor",
    "FixedQuota",
    "GenerationInterrupted",
    "Guarantee",
    "LLaDASampler",
    "LengthRule",
    "Linear",
    "ModelMismatchError",
    "ModelSpec",
    "PCSampler",
    "Policy",
    "PrefixCache",
    "Probe",
    "Prophet",
    "ReMDM",
    "Remask",
    "Revocation",
    "Saber",
    "Sampler",
    "SamplerOutput",
    "SamplerState",
    "SchED",
    "Schedule",
    "SelfPlanning",
    "ShadowVerify",
    "StableAndConfident",
    "StoppingRule",
    "Threshold",
    "TimeGrid",
    "TokenEditing",
    "background_frequencies",
    "probe",
]
