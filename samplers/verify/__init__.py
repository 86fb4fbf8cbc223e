"""Verification: several steps of the sampler's own walk in one forward."""

from dlm_samplers.verify.base import Verify
from dlm_samplers.verify.draft_verify import DraftVerify

__all__ = ["DraftVerify", "Verify"]
