"""Stopping rules: when a row is finished before its canvas is full."""

from dlm_samplers.stopping.base import StoppingRule
from dlm_samplers.stopping.end_of_text import EndOfText

__all__ = ["EndOfText", "StoppingRule"]
