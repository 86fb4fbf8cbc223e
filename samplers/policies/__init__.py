"""Policies: which positions commit in a step. One method a file."""

from dlm_samplers.policies.ancestral import AncestralUnmask
from dlm_samplers.policies.base import Outlook, Policy
from dlm_samplers.policies.credit import Credit
from dlm_samplers.policies.dilated import Dilated
from dlm_samplers.policies.entropy_bound import EntropyBound
from dlm_samplers.policies.event_driven import EventDriven
from dlm_samplers.policies.factor import Factor
from dlm_samplers.policies.fixed_quota import FixedQuota
from dlm_samplers.policies.frozen_confidence import FrozenConfidence
from dlm_samplers.policies.hierarchical import Hierarchical
from dlm_samplers.policies.kl_stable import KLStable
from dlm_samplers.policies.local_leap import LocalLeap
from dlm_samplers.policies.margin import Margin
from dlm_samplers.policies.slow_fast import SlowFast
from dlm_samplers.policies.spaced import Spaced
from dlm_samplers.policies.threshold import Threshold

__all__ = [
    "AncestralUnmask",
    "Credit",
    "Dilated",
    "EntropyBound",
    "EventDriven",
    "Factor",
    "FixedQuota",
    "FrozenConfidence",
    "Hierarchical",
    "KLStable",
    "LocalLeap",
    "Margin",
    "Outlook",
    "Policy",
    "SlowFast",
    "Spaced",
    "Threshold",
]
