"""Drop-in samplers for diffusion language models."""

from dlm_samplers.caches import BlockCache, Cache, DualCache, PrefixCache
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.lengths import DAEDAL, LengthRule
from dlm_samplers.models import ModelMismatchError, ModelSpec, Probe, probe
from dlm_samplers.output import GenerationInterrupted, SamplerOutput
from dlm_samplers.policies import AncestralUnmask, EntropyBound, EventDriven, Factor, FixedQuota, Policy, Threshold
from dlm_samplers.remask import CappedThreshold, Remask, ReMDM, Revocation, ShadowVerify
from dlm_samplers.sampler import DreamSampler, LLaDASampler, Sampler
from dlm_samplers.schedules import Linear, Schedule, TimeGrid
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping import EndOfText, Prophet, SchED, StableAndConfident, StoppingRule

__all__ = [
    "DAEDAL",
    "AncestralUnmask",
    "BlockCache",
    "Cache",
    "CappedThreshold",
    "DreamSampler",
    "DualCache",
    "EndOfText",
    "EntropyBound",
    "EventDriven",
    "Factor",
    "FixedQuota",
    "GenerationInterrupted",
    "Guarantee",
    "LLaDASampler",
    "LengthRule",
    "Linear",
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
    "StableAndConfident",
    "StoppingRule",
    "Threshold",
    "TimeGrid",
    "probe",
]
