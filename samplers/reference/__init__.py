"""The published samplers, each as one readable function in plain PyTorch: the oracle and the baseline."""

from dlm_samplers.reference.dream import dream_generate
from dlm_samplers.reference.llada import llada_generate
from dlm_samplers.reference.mdlm import mdlm_generate

__all__ = ["dream_generate", "llada_generate", "mdlm_generate"]
