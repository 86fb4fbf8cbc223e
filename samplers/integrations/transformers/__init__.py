"""Adapters to transformers."""

from dlm_samplers.integrations.transformers.generate import dlm_generate, generate

__all__ = ["dlm_generate", "generate"]
