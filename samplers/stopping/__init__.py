"""Stopping rules: when a row is finished before its canvas is full. One method a file."""

from dlm_samplers.stopping.base import StoppingRule
from dlm_samplers.stopping.end_of_text import EndOfText
from dlm_samplers.stopping.prophet import Prophet
from dlm_samplers.stopping.sched import SchED
from dlm_samplers.stopping.stable_and_confident import StableAndConfident

__all__ = ["EndOfText", "Prophet", "SchED", "StableAndConfident", "StoppingRule"]
