"""Length rules: how long a row's canvas is. One method a file."""

from dlm_samplers.lengths.base import LengthRule
from dlm_samplers.lengths.daedal import DAEDAL

__all__ = ["DAEDAL", "LengthRule"]
