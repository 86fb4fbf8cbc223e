"""Policies: which positions commit in a step. One method a file."""

from dlm_samplers.policies.ada_block import AdaBlock
from dlm_samplers.policies.ancestral import AncestralUnmask
from dlm_samplers.policies.base import Policy
from dlm_samplers.policies.entropy_bound import EntropyBound
from dlm_samplers.policies.event_driven import EventDriven
from dlm_samplers.policies.explore_one import ExploreOne
from dlm_samplers.policies.factor import Factor
from dlm_samplers.policies.fixed_quota import FixedQuota
from dlm_samplers.policies.pc_sampler import PCSampler, background_frequencies
from dlm_samplers.policies.saber import Saber
from dlm_samplers.policies.threshold import Threshold
from dlm_samplers.policies.wrapper import Wrapper

__all__ = [
    "AdaBlock",
    "AncestralUnmask",
    "EntropyBound",
    "EventDriven",
    "ExploreOne",
    "Factor",
    "FixedQuota",
    "PCSampler",
    "Policy",
    "Saber",
    "Threshold",
    "Wrapper",
    "background_frequencies",
]
