"""Configurations of the test architectures."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class MaskedDiffusionConfig(PretrainedConfig):
    """What the three styles share: pre-norm blocks, rotary positions, SwiGLU, grouped queries.

    qk_norm: RMS norm of queries and keys, per head. qkv_bias: biases of the three projections.
    block_length: of block-causal attention; None: every position sees every other.
    logit_shift: 1 if output i predicts position i + 1.
    """

    model_type = "dlm_kernels_masked_diffusion"
    qk_norm = False
    qkv_bias = False
    logit_shift = 0

    def __init__(
        self,
        vocab_size: int = 512,
        hidden_size: int = 64,
        intermediate_size: int = 176,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        num_key_value_heads: int = 4,
        head_dim: int | None = None,
        rope_theta: float = 10_000.0,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        block_length: int | None = None,
        mask_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        if num_attention_heads % num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_attention_heads = {num_attention_heads}, got {num_key_value_heads}"
            )
        if block_length is not None and block_length < 1:
            raise ValueError(f"block_length must be at least 1 or None, got {block_length}")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = hidden_size // num_attention_heads if head_dim is None else head_dim
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.block_length = block_length
        self.mask_token_id = vocab_size - 1 if mask_token_id is None else mask_token_id
        super().__init__(**kwargs)


class LLaDAStyleConfig(MaskedDiffusionConfig):
    """LLaDA (arXiv:2502.09992): Llama's block without biases, bidirectional."""

    model_type = "dlm_kernels_llada_style"

    def __init__(self, **kwargs: Any) -> None:  # transformers 5 writes one of its own where a class has none
        super().__init__(**kwargs)


class DreamStyleConfig(MaskedDiffusionConfig):
    """Dream (arXiv:2508.15487): Qwen2's block with biases on queries, keys and values, shifted outputs."""

    model_type = "dlm_kernels_dream_style"
    qkv_bias = True
    logit_shift = 1

    def __init__(self, num_key_value_heads: int = 2, rope_theta: float = 1_000_000.0, **kwargs: Any) -> None:
        super().__init__(num_key_value_heads=num_key_value_heads, rope_theta=rope_theta, **kwargs)


class SDARStyleConfig(MaskedDiffusionConfig):
    """SDAR and LLaDA2: Qwen3's block with norms of queries and keys, block-causal attention."""

    model_type = "dlm_kernels_sdar_style"
    qk_norm = True

    def __init__(
        self,
        num_key_value_heads: int = 2,
        block_length: int | None = 4,
        rope_theta: float = 1_000_000.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_key_value_heads=num_key_value_heads, block_length=block_length, rope_theta=rope_theta, **kwargs
        )


class LLaDA2StyleConfig(SDARStyleConfig):
    """LLaDA2 (arXiv:2512.15745): blocks of 32."""

    model_type = "dlm_kernels_llada2_style"

    def __init__(self, block_length: int | None = 32, **kwargs: Any) -> None:
        super().__init__(block_length=block_length, **kwargs)
