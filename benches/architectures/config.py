"""Configurations of the test architectures: the fields of `Architecture`, with the defaults of a family."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from transformers import PretrainedConfig

from dlm_benches.transformer import Architecture


class MaskedDiffusionConfig(PretrainedConfig):
    """Takes the fields of `Architecture`, and transformers' own.

    initializer_range: standard deviation of random weights. logit_shift: 1 if output i predicts position i + 1.
    """

    model_type = "dlm_kernels_masked_diffusion"
    logit_shift = 0

    def __init__(self, initializer_range: float = 0.02, **kwargs: Any) -> None:
        shape = {field.name: kwargs.pop(field.name) for field in fields(Architecture) if field.name in kwargs}
        for name, value in asdict(Architecture(**shape)).items():
            setattr(self, name, value)
        self.initializer_range = initializer_range
        super().__init__(**kwargs)


class LLaDAStyleConfig(MaskedDiffusionConfig):
    """LLaDA (arXiv:2502.09992): Llama's block without biases, bidirectional. LLaDA's own code, which comes from OLMo, has the
    other norm, activation, biases, fused projection and learned positions behind switches as well: the bundled models."""

    model_type = "dlm_kernels_llada_style"

    def __init__(self, **kwargs: Any) -> None:  # transformers 5 writes one of its own where a class has none
        super().__init__(**kwargs)


class DreamStyleConfig(MaskedDiffusionConfig):
    """Dream (arXiv:2508.15487): Qwen2's block with biases on queries, keys and values, shifted outputs."""

    model_type = "dlm_kernels_dream_style"
    logit_shift = 1

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"num_key_value_heads": 2, "rope_theta": 1_000_000.0, "qkv_bias": True} | kwargs)


class SDARStyleConfig(MaskedDiffusionConfig):
    """SDAR and LLaDA2: Qwen3's block with norms of queries and keys, block-causal attention."""

    model_type = "dlm_kernels_sdar_style"

    def __init__(self, **kwargs: Any) -> None:
        family = {"num_key_value_heads": 2, "block_length": 4, "rope_theta": 1_000_000.0, "qk_norm": True}
        super().__init__(**family | kwargs)


class LLaDA2StyleConfig(SDARStyleConfig):
    """LLaDA2 (arXiv:2512.15745): blocks of 32."""

    model_type = "dlm_kernels_llada2_style"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"block_length": 32} | kwargs)
