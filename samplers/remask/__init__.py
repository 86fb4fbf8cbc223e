"""Remasking: which committed tokens are taken back or replaced. One method a file."""

from dlm_samplers.remask.base import Remask, Revocation

__all__ = ["Remask", "Revocation"]
