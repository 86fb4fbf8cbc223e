"""Policies: which positions commit in a step. One method a file."""

from dlm_samplers.policies.ancestral import AncestralUnmask
from dlm_samplers.policies.base import Policy
from dlm_samplers.policies.entropy_bound import EntropyBound
from dlm_samplers.policies.event_driven import EventDriven
from dlm_samplers.policies.factor import Factor
from dlm_samplers.policies.fixed_quota import FixedQuota
from dlm_samplers.policies.threshold import Threshold

__all__ = ["AncestralUnmask", "EntropyBound", "EventDriven", "Factor", "FixedQuota", "Policy", "Threshold"]
