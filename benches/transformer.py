"""The transformer that every model here is: its shape, and modules in plain PyTorch.

`architectures/` gives it the form of Hugging Face models, `tiny/` that of the bundled, trained ones. Parameter names are those
of Llama, Qwen2 and Qwen3 in transformers, whose weights load as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of a trunk: pre-norm blocks, rotary positions, grouped queries. Default: Llama's, small.

    head_dim: default hidden_size / num_attention_heads.
    block_length: of block-causal attention; 1: causal; None: every position sees every other.
    learned_positions: how many learned embeddings of absolute positions there are, beside the rotary ones; None: none.
    norm: "rms" (arXiv:1910.07467) or "layer" (arXiv:1607.06450). qk_norm: RMS norms of queries and keys, per head.
    activation: "swiglu" (arXiv:2002.05202) or "squared_relu" (arXiv:2109.08668), which has no gate.
    bias: of the output projection and the MLP. qkv_bias: of queries, keys and values. fused_qkv: these are one projection.
    mask_token_id: default the last of the vocabulary.
    Raises `ValueError`, naming the field, for an impossible value.
    """

    vocab_size: int = 512
    hidden_size: int = 64
    intermediate_size: int = 176
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int | None = None
    block_length: int | None = None
    learned_positions: int | None = None
    rope_theta: float = 10_000.0
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    qk_norm: bool = False
    activation: Literal["swiglu", "squared_relu"] = "swiglu"
    bias: bool = False
    qkv_bias: bool = False
    fused_qkv: bool = False
    mask_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "head_dim", "learned_positions"):  # fmt: skip
            value, optional = getattr(self, name), name in ("head_dim", "learned_positions")
            if not ((optional and value is None) or (_is_whole(value) and value >= 1)):
                raise ValueError(f"{name}: expected a positive integer{' or None' * optional}, got {value!r}")
        for name, allowed in (("norm", ("rms", "layer")), ("activation", ("swiglu", "squared_relu"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected {allowed[0]!r} or {allowed[1]!r}, got {getattr(self, name)!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_attention_heads = {self.num_attention_heads}, "
                f"got {self.num_key_value_heads}"
            )
        if self.fused_qkv and self.qk_norm:
            raise ValueError("qk_norm: goes with separate projections, got fused_qkv=True")
        if self.block_length is not None and self.block_length < 1:
            raise ValueError(f"block_length must be at least 1 or None, got {self.block_length}")
        if self.head_dim is None:
            if self.hidden_size % (2 * self.num_attention_heads):
                raise ValueError(
                    f"hidden_size: {self.hidden_size} does not divide into {self.num_attention_heads} heads of an even size"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.mask_token_id is None:
            object.__setattr__(self, "mask_token_id", self.vocab_size - 1)
        self.check_token("mask_token_id")

    def check_token(self, name: str) -> None:
        """Raises `ValueError` if the field is no token."""
        value = getattr(self, name)
        if not _is_whole(value) or not 0 <= value < self.vocab_size:
            raise ValueError(f"{name}: expected an integer in [0, {self.vocab_size}), got {value!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


Attend = Callable[..., Tensor]
"""attend(attention, query [B, H, n, D], key [B, H of keys, m, D], value, mask, is_causal=, **kwargs) -> [B, n, H, D]."""

Angles = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary angles, each [B or 1, L, 1, head_dim / 2]."""


def attend(
    attention: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    is_causal: bool,
    dlm_window: Any = None,
    **kwargs: Any,
) -> Tensor:
    """PyTorch's attention, or that of a `dlm_samplers.caches.attention.Window`."""
    if dlm_window is not None:
        return dlm_window.attend(attention.layer_idx, query, key, value)
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal, enable_gqa=grouped)
    return out.transpose(1, 2)


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


def norm_of(config: Architecture) -> nn.Module:
    """The norm of the residual stream."""
    return (RMSNorm if config.norm == "rms" else nn.LayerNorm)(config.hidden_size, config.norm_eps)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions (arXiv:2104.09864), component i with component i + D / 2. x [B, L, H, D], angles [B, L, 1, D / 2]."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


class Attention(nn.Module):
    """Grouped-query attention. `attend` does the attending: where caches hook in."""

    def __init__(self, config: Architecture, layer_idx: int, attend: Attend) -> None:
        super().__init__()
        self.config, self.layer_idx, self.attend = config, layer_idx, attend
        self.is_causal = config.block_length == 1
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        inner, outer = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        if config.fused_qkv:
            self.qkv_proj = nn.Linear(config.hidden_size, inner + 2 * outer, bias=config.qkv_bias)
        else:
            self.q_proj = nn.Linear(config.hidden_size, inner, bias=config.qkv_bias)
            self.k_proj = nn.Linear(config.hidden_size, outer, bias=config.qkv_bias)
            self.v_proj = nn.Linear(config.hidden_size, outer, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=config.bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.norm_eps)

    def project(self, x: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, of x [B, L, D], each [B, heads, L, head_dim]."""
        heads, queries = (*x.shape[:-1], -1, self.head_dim), self.config.num_attention_heads
        if self.config.fused_qkv:
            both = queries + self.config.num_key_value_heads
            query_key, value = self.qkv_proj(x).view(heads).tensor_split((both,), 2)  # half the time of split
        else:
            query, key, value = (layer(x).view(heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
            if self.config.qk_norm:
                query, key = self.q_norm(query), self.k_norm(key)
            query_key = torch.cat([query, key], 2)
        query, key = rotate(query_key, *angles).transpose(1, 2).tensor_split((queries,), 1)
        return query, key, value.transpose(1, 2)

    def forward(
        self, x: Tensor, angles: Angles, mask: Tensor | None, cache: Any, store_kv: bool, **kwargs: Any
    ) -> Tensor:
        query, key, value = self.project(x, angles)
        if cache is not None and store_kv:
            key, value = cache.update(key, value, self.layer_idx)
        elif cache is not None and cache.get_seq_length(self.layer_idx):
            past = cache.layers[self.layer_idx]
            key, value = torch.cat([past.keys, key], 2), torch.cat([past.values, value], 2)
        causal = self.is_causal and mask is None
        return self.o_proj(self.attend(self, query, key, value, mask, is_causal=causal, **kwargs).flatten(2))


class MLP(nn.Module):
    """SwiGLU, or two layers with a squared ReLU between them."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        if self.gated:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(F.relu(self.up_proj(x)).square())


class Layer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: Architecture, layer_idx: int, attend: Attend) -> None:
        super().__init__()
        self.input_layernorm = norm_of(config)
        self.self_attn = Attention(config, layer_idx, attend)
        self.post_attention_layernorm = norm_of(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, **context: Any) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), **context)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Embeddings, layers, last norm. config: an `Architecture`, or what has its fields."""

    def __init__(self, config: Architecture, attend: Attend = attend) -> None:
        super().__init__()
        self.build(config, attend)

    def build(self, config: Architecture, attend: Attend) -> None:
        """Makes the modules: apart, for classes that are made in another way."""
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.learned_positions is not None:
            self.embed_positions = nn.Embedding(config.learned_positions, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i, attend) for i in range(config.num_hidden_layers))
        self.norm = norm_of(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | str | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        store_kv: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """States [B, L, D]. attention_mask: None or "full"; [B, L], 1 on real tokens; [B, 1, L, S] bool or additive, as it is.

        position_ids: [B, L], which may repeat; default: columns from 0, or with learned positions real tokens from 0.
        past_key_values: transformers' `Cache`, or what has its methods; the inputs follow the cached positions.
        store_kv: False leaves the cache as it is (SDAR).
        States at padded positions are finite and mean nothing.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = self._positions(attention_mask, x, past)
        if self.config.learned_positions is not None:
            x = x + self.embed_positions(position_ids)
        angles, mask = self._angles(position_ids, x), self._mask(attention_mask, x, past)
        for layer in self.layers:
            x = layer(x, angles=angles, mask=mask, cache=past_key_values, store_kv=store_kv, **kwargs)
        return self.norm(x)

    def _positions(self, given: Tensor | str | None, x: Tensor, past: int) -> Tensor:
        """Positions of the inputs, [B or 1, L]."""
        if isinstance(given, Tensor) and given.ndim == 2 and self.config.learned_positions is not None:
            return (given.bool().cumsum(1) - 1).clamp_(min=0)[:, past:]
        return torch.arange(past, past + x.shape[1], device=x.device)[None]

    def _angles(self, positions: Tensor, x: Tensor) -> Angles:
        half = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32, device=x.device) / self.config.head_dim
        angle = positions[:, :, None, None] / self.config.rope_theta**half
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)

    def _mask(self, given: Tensor | str | None, x: Tensor, past: int) -> Tensor | None:
        """What attention adds or selects by, [B or 1, 1, L or 1, past + L]; None: all is seen, or plainly causal."""
        if isinstance(given, Tensor) and given.ndim == 4:
            return given
        real = given.bool()[:, None, None] if isinstance(given, Tensor) else None
        blocks = self.config.block_length
        if blocks is None:
            return None if real is None else _added(real, x.dtype)
        if blocks == 1 and past == 0 and real is None:
            return None
        block = torch.arange(past + x.shape[1], device=x.device) // blocks
        seen = (block[past:, None] >= block)[None, None]
        return _added(seen if real is None else seen & real, x.dtype)


def _added(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible. Finite elsewhere, so that a row of padding alone stays finite; exp() of it is 0 beside a real key."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)
