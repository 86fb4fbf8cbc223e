"""Dream and SDAR, on Llama's code: modules attend, the trunk takes position ids and returns hidden states."""

from types import SimpleNamespace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from published.parts import EOS, MASK, Norm, V, half_turn


class Rotary(nn.Module):
    def __init__(self, size, theta):
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / theta ** (torch.arange(0, size, 2).float() / size), persistent=False)

    def forward(self, x, position_ids):
        angle = position_ids[..., None].float() * self.inv_freq
        angle = torch.cat([angle, angle], -1)
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


def turned(q, k, cos, sin):
    """Rotary positions in the first of the components that there are angles for."""
    size, cos, sin = cos.shape[-1], cos[:, None], sin[:, None]
    return (torch.cat([x[..., :size] * cos + half_turn(x[..., :size]) * sin, x[..., size:]], -1) for x in (q, k))


def repeat_kv(x, times):
    rows, heads, length, size = x.shape
    return x[:, :, None].expand(rows, heads, times, length, size).reshape(rows, heads * times, length, size)


class LlamaAttention(nn.Module):
    bias, normed = False, False

    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        inner, outer = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=self.bias)
        self.k_proj, self.v_proj = (nn.Linear(config.hidden_size, outer, bias=self.bias) for _ in range(2))
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)
        if self.normed:
            self.q_norm, self.k_norm = Norm(self.head_dim), Norm(self.head_dim)

    def projected(self, x):
        q, k, v = (layer(x).view(*x.shape[:2], -1, self.head_dim) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if self.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class DreamAttention(LlamaAttention):
    """Multiplies matrices itself."""

    bias = True

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        position_ids=None,
        past_key_value=None,
        output_attentions=False,
        use_cache=False,
        cache_position=None,
        position_embeddings=None,
    ):
        q, k, v = self.projected(hidden_states)
        q, k = turned(q, k, *position_embeddings)
        k, v = repeat_kv(k, self.num_key_value_groups), repeat_kv(v, self.num_key_value_groups)
        out = self.attended(q, k, v, attention_mask if isinstance(attention_mask, torch.Tensor) else None)
        return self.o_proj(out.transpose(1, 2).contiguous().view(*hidden_states.shape[:2], -1)), None, past_key_value

    def attended(self, q, k, v, mask):
        scores = q @ k.transpose(2, 3) * self.scaling
        return (scores if mask is None else scores.masked_fill(~mask, -1e30)).softmax(-1) @ v


class DreamSdpaAttention(DreamAttention):
    def attended(self, q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.0, is_causal=False)


class SDARAttention(LlamaAttention):
    """Where its mask hides nothing it calls flash_attn_func."""

    normed = True

    def forward(
        self,
        hidden_states,
        position_embeddings,
        attention_mask,
        past_key_value=None,
        cache_position=None,
        **kwargs,
    ):
        q, k, v = self.projected(hidden_states)
        q, k = turned(q, k, *position_embeddings)
        attention_mask = attention_mask.bool() if attention_mask is not None else None
        if torch.all(attention_mask):
            raise ImportError("flash_attn is not installed")
        out = F.scaled_dot_product_attention(
            query=q, key=k, value=v, attn_mask=attention_mask, is_causal=False, scale=self.scaling, enable_gqa=True
        )
        return self.o_proj(out.transpose(1, 2).flatten(2)), None


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj, self.up_proj = (
            nn.Linear(config.hidden_size, config.intermediate_size, bias=False) for _ in range(2)
        )
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """Each token goes to the two of four experts that its gate prefers."""

    def __init__(self, config):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, 4, bias=False)
        self.experts = nn.ModuleList(MLP(config) for _ in range(4))

    def forward(self, x):
        gated = self.gate(x)
        share, chosen = self.shares(gated)
        weight = torch.zeros_like(gated).scatter(-1, chosen, share)
        return sum(weight[..., i, None] * expert(x) for i, expert in enumerate(self.experts))


class DecoderLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn, self.mlp = config.attention(config, layer_idx), MLP(config)
        self.input_layernorm, self.post_attention_layernorm = Norm(config.hidden_size), Norm(config.hidden_size)

    def forward(self, hidden_states, **context):
        x = hidden_states + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **context)[0]
        return (x + self.mlp(self.post_attention_layernorm(x)),)


class Trunk(nn.Module):
    """Of Dream and SDAR."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm, self.rotary_emb = Norm(config.hidden_size), Rotary(config.head_dim, config.rope_theta)

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None, **kwargs
    ):
        x = self.embed_tokens(input_ids)
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        angles = self.rotary_emb(x, position_ids)
        for layer in self.layers:
            x = layer(x, attention_mask=attention_mask, position_ids=position_ids, position_embeddings=angles)[0]
        return SimpleNamespace(last_hidden_state=self.norm(x))


class DreamBaseModel(Trunk):
    """Takes no other keyword."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        return super().forward(input_ids, attention_mask, position_ids)


class DroppingModel(DreamBaseModel):
    """As Fast-dLLM's copy of Dream: takes position ids and makes its own."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        return super().forward(input_ids, attention_mask, torch.arange(input_ids.shape[1])[None])


class Causal(nn.Module):
    """Trunk and head."""

    trunk = Trunk
    size: ClassVar = {
        "vocab_size": V,
        "mask_token_id": MASK,
        "eos_token_id": EOS,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_theta": 1_000_000.0,
    }

    def __init__(self, **config):
        super().__init__()
        self.config = SimpleNamespace(**{**self.size, **config})
        self.model = self.trunk(self.config)
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        self.device = torch.device("cpu")

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None, **kwargs
    ):
        out = self.model(input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache)
        return SimpleNamespace(logits=self.lm_head(out.last_hidden_state))


class DreamModel(Causal):
    trunk = DreamBaseModel
    size: ClassVar = {**Causal.size, "attention": DreamSdpaAttention}


class FastDream(DreamModel):
    trunk = DroppingModel


class SDARForCausalLM(Causal):
    _supports_attention_backend = True  # as published; its attention does not look
    size: ClassVar = {**Causal.size, "attention": SDARAttention, "block_size": 4}
