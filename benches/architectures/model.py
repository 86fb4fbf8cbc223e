"""Masked diffusion transformers in the form of Hugging Face models, written from the published equations.

Parameter names are those of Llama, Qwen2 and Qwen3 in transformers, whose weights load as they are.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dlm_benches.architectures.config import (
    DreamStyleConfig,
    LLaDA2StyleConfig,
    LLaDAStyleConfig,
    MaskedDiffusionConfig,
    SDARStyleConfig,
)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in fp32 (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * exact.to(x.dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions (arXiv:2104.09864), component i with component i + D / 2. x [B, H, L, D], angles [B, 1, L, D / 2]."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


class Attention(nn.Module):
    """Grouped-query attention through transformers' attention interface, which caches hook into."""

    is_causal = False

    def __init__(self, config: MaskedDiffusionConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        inner, outer = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, outer, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, outer, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
        store_kv: bool,
        **kwargs: Any,
    ) -> Tensor:
        heads = (*x.shape[:-1], -1, self.head_dim)
        query, key, value = (layer(x).view(heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        query, key = rotate(query, *angles), rotate(key, *angles)
        if cache is not None and store_kv:
            key, value = cache.update(key, value, self.layer_idx)
        elif cache is not None and cache.get_seq_length(self.layer_idx):
            past = cache.layers[self.layer_idx]
            key, value = torch.cat([past.keys, key], 2), torch.cat([past.values, value], 2)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        out, _ = attend(self, query, key, value, mask, dropout=0.0, scaling=self.scaling, is_causal=False, **kwargs)
        return self.o_proj(out.reshape(*x.shape[:-1], -1))


class MLP(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, config: MaskedDiffusionConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: MaskedDiffusionConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer_idx)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, **context: Any) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), **context)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Pretrained(PreTrainedModel):
    config_class = MaskedDiffusionConfig
    base_model_prefix = "model"
    _no_split_modules: ClassVar[list[str]] = ["Layer"]
    _supports_sdpa = True
    _supports_attention_backend = True


class Trunk(_Pretrained):
    """Embedding, layers, last norm."""

    def __init__(self, config: MaskedDiffusionConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | str | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        store_kv: bool = True,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """States [B, L, D]. attention_mask: None or "full"; [B, L], 1 on real tokens; [B, 1, L, S] bool or additive.

        With `past_key_values` the inputs follow the cached positions; `store_kv=False` leaves the cache as it is (SDAR).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(past, past + x.shape[1], device=x.device)[None]
        half = torch.arange(0, self.config.head_dim, 2, device=x.device).float() / self.config.head_dim
        angle = position_ids[:, None, :, None].float() / self.config.rope_theta**half
        angles = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        mask = self._mask(attention_mask, x, past)
        for layer in self.layers:
            x = layer(x, angles=angles, mask=mask, cache=past_key_values, store_kv=store_kv, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), past_key_values=past_key_values)

    def _mask(self, given: Tensor | str | None, x: Tensor, past: int) -> Tensor | None:
        """What attention adds or selects by, [B or 1, 1, L, past + L]; None: everything is seen."""
        if isinstance(given, Tensor) and given.ndim == 4:
            return given
        mask = None
        if self.config.block_length is not None:
            block = torch.arange(past + x.shape[1], device=x.device) // self.config.block_length
            mask = (block[past:, None] >= block)[None, None]
        if isinstance(given, Tensor):
            real = given.bool()[:, None, None, :]
            mask = real if mask is None else mask & real
            # A row of padding sees itself, so that its softmax is finite.
            own = torch.eye(x.shape[1], past + x.shape[1], dtype=torch.bool, device=x.device).roll(past, 1)
            mask = mask | own
        return mask


class MaskedDiffusionModel(_Pretrained):
    """Trunk and LM head: logits [B, L, V]."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MaskedDiffusionConfig) -> None:
        super().__init__(config)
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Any = None, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        """Arguments as for the trunk."""
        out = self.model(input_ids, attention_mask, **kwargs)
        return CausalLMOutputWithPast(logits=self.lm_head(out.last_hidden_state), past_key_values=out.past_key_values)


class LLaDAStyleModel(MaskedDiffusionModel):
    """Called as LLaDA is: `model(ids, attention_mask=[B, L] or None)`."""

    config_class = LLaDAStyleConfig


class DreamStyleModel(MaskedDiffusionModel):
    """Called as Dream is: `model(ids, "full" or [B, 1, L, L], position_ids)`; output i predicts position i + 1."""

    config_class = DreamStyleConfig

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        return super().forward(input_ids, attention_mask, position_ids=position_ids, **kwargs)


class SDARStyleModel(MaskedDiffusionModel):
    """Called as SDAR is: `model(ids, mask, position_ids=, past_key_values=, store_kv=)`; no mask: block-causal."""

    config_class = SDARStyleConfig


class LLaDA2StyleModel(MaskedDiffusionModel):
    """Called as LLaDA2's released code is, and reads masks as that does: 4D ones as they are, bool or added; a 2D mask of ones,
    or none, is full attention, and one with a zero causal attention. Blocks are the caller's to ask for.
    """

    config_class = LLaDA2StyleConfig

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Any = None, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        if input_ids is not None and (attention_mask is None or attention_mask.ndim == 2):
            rows, length = input_ids.shape
            seen = torch.ones(rows, 1, length, length, dtype=torch.bool, device=input_ids.device)
            if attention_mask is not None and not bool(attention_mask.all()):
                own = torch.eye(length, dtype=torch.bool, device=input_ids.device)
                seen = (seen.tril() & attention_mask.bool()[:, None, None]) | own
            attention_mask = seen
        return super().forward(input_ids, attention_mask, **kwargs)
