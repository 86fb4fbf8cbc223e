"""Drop-in samplers for diffusion language models."""

from dlm_samplers.caches import BlockCache, Cache, DualCache, PrefixCache
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.lengths import DAEDAL, LengthRule
from dlm_samplers.models import ModelMismatchError, ModelSpec, Probe, probe
from dlm_samplers.output import GenerationInterrupted, SamplerOutput
from dlm_samplers.policies import (
    AncestralUnmask,
    Credit,
    Dilated,
    EntropyBound,
    EventDriven,
    Factor,
    FixedQuota,
    FrozenConfidence,
    Hierarchical,
    KLStable,
    LocalLeap,
    Margin,
    Policy,
    SlowFast,
    Spaced,
    Threshold,
)
from dlm_samplers.remask import CappedThreshold, Remask, ReMDM, Revocation, ShadowVerify
from dlm_samplers.sampler import DreamSampler, LLaDASampler, Sampler
from dlm_samplers.schedules import Linear, Schedule, TimeGrid
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping import EndOfText, Prophet, SchED, StableAndConfident, StoppingRule
from dlm_samplers.verify import DraftVerify, Verify

__all__ = [
    "DAEDAL",
    "AncestralUnmask",
    "BlockCache",
    "Cache",
    "CappedThreshold",
    "Credit",
    "Dilated",
    "DraftVerify",
    "DreamSampler",
    "DualCache",
    "EndOfText",
    "EntropyBound",
    "EventDriven",
    "Factor",
    "FixedQuota",
    "FrozenConfidence",
    "GenerationInterrupted",
    "Guarantee",
    "Hierarchical",
    "KLStable",
    "LLaDASampler",
    "LengthRule",
    "Linear",
    "LocalLeap",
    "Margin",
    "ModelMismatchError",
    "ModelSpec",
    "Policy",
    "PrefixCache",
    "Probe",
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
    "SlowFast",
    "Spaced",
    "StableAndConfident",
    "StoppingRule",
    "Threshold",
    "TimeGrid",
    "Verify",
    "probe",
]
