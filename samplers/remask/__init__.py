"""Remasking: which committed tokens are taken back or replaced. One method a file."""

from dlm_samplers.remask.base import Companions, Remask, Revocation
from dlm_samplers.remask.confidence_drop import ConfidenceDrop
from dlm_samplers.remask.remdm import ReMDM
from dlm_samplers.remask.self_planning import SelfPlanning
from dlm_samplers.remask.token_editing import TokenEditing
from dlm_samplers.remask.wino import CappedThreshold, ShadowVerify

__all__ = [
    "CappedThreshold",
    "Companions",
    "ConfidenceDrop",
    "ReMDM",
    "Remask",
    "Revocation",
    "SelfPlanning",
    "ShadowVerify",
    "TokenEditing",
]
