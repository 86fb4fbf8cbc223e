"""Policies: which positions commit in a step. One method a file."""

from dlm_samplers.policies.ada_block import AdaBlock
from dlm_samplers.policies.ancestral import AncestralUnmask
from dlm_samplers.policies.base import Outlook, Policy
from dlm_samplers.policies.credit import Credit
from dlm_samplers.policies.dilated import Dilated
from dlm_samplers.policies.entropy_bound import EntropyBound
from dlm_samplers.policies.event_driven import EventDriven
from dlm_samplers.policies.explore_one import ExploreOne
from dlm_samplers.policies.factor import Factor
from dlm_samplers.policies.fixed_quota import FixedQuota
from dlm_samplers.policies.frozen_confidence import FrozenConfidence
from dlm_samplers.policies.hierarchical import Hierarchical
from dlm_samplers.policies.kl_stable import KLStable
from dlm_samplers.policies.local_leap import LocalLeap
from dlm_samplers.policies.low_confidence_dynamic import LowConfidenceDynamic
from dlm_samplers.policies.margin import Margin
from dlm_samplers.policies.pc_sampler import PCSampler, background_frequencies
from dlm_samplers.policies.saber import Saber
from dlm_samplers.policies.slow_fast import SlowFast
from dlm_samplers.policies.spaced import Spaced
from dlm_samplers.policies.threshold import Threshold
from dlm_samplers.policies.wrapper import Wrapper

__all__ = [
    "AdaBlock",
    "AncestralUnmask",
    "Credit",
    "Dilated",
    "EntropyBound",
    "EventDriven",
    "ExploreOne",
    "Factor",
    "FixedQuota",
    "FrozenConfidence",
    "Hierarchical",
    "KLStable",
    "LocalLeap",
    "LowConfidenceDynamic",
    "Margin",
    "Outlook",
    "PCSampler",
    "Policy",
    "Saber",
    "SlowFast",
    "Spaced",
    "Threshold",
    "Wrapper",
    "background_frequencies",
]
