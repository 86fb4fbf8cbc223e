"""Adapters to transformers. Models with a loop of their own have a module each, to be imported by its name."""

from dlm_samplers.integrations.transformers.generate import dlm_generate, generate

__all__ = ["dlm_generate", "generate"]
