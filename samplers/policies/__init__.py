"""Policies: which positions commit in a step. One method a file."""

from dlm_samplers.policies.ancestral import AncestralUnmask
from dlm_samplers.policies.base import Outlook, Policy
from dlm_samplers.policies.entropy_bound import EntropyBound
from dlm_samplers.policies.factor import Factor
from dlm_samplers.policies.fixed_quota import FixedQuota
from dlm_samplers.policies.frozen_confidence import FrozenConfidence
from dlm_samplers.policies.threshold import Threshold

__all__ = [
    "AncestralUnmask",
    "EntropyBound",
    "Factor",
    "FixedQuota",
    "FrozenConfidence",
    "Outlook",
    "Policy",
    "Threshold",
]
