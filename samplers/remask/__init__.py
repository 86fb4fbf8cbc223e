"""Remasking: which committed tokens are taken back or replaced. One method a file."""

from dlm_samplers.remask.base import Remask, Revocation
from dlm_samplers.remask.remdm import ReMDM

__all__ = ["ReMDM", "Remask", "Revocation"]
