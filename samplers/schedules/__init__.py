"""Schedules: how many tokens a fixed-quota policy commits in a given step."""

from dlm_samplers.schedules.base import Schedule
from dlm_samplers.schedules.linear import Linear
from dlm_samplers.schedules.time_grid import TimeGrid

__all__ = ["Linear", "Schedule", "TimeGrid"]
