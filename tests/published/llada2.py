"""LLaDA2: as Dream, with experts, half of a head rotated, and masks that are added."""

from types import SimpleNamespace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from published.llama import MLP, Causal, Experts, Rotary, repeat_kv, turned
from published.parts import Norm


class LLaDA2MoeAttention(nn.Module):
    """Multiplies matrices itself."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_heads, self.num_key_value_heads = config.num_attention_heads, config.num_key_value_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.fused = (self.num_heads, self.num_key_value_heads, self.num_key_value_heads)
        self.query_key_value = nn.Linear(config.hidden_size, sum(self.fused) * self.head_dim, bias=False)
        self.query_layernorm, self.key_layernorm = Norm(self.head_dim), Norm(self.head_dim)
        self.dense = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        position_ids=None,
        past_key_value=None,
        output_attentions=False,
        use_cache=False,
        position_embeddings=None,
        **kwargs,
    ):
        rows, length, _ = hidden_states.size()
        qkv = self.query_key_value(hidden_states).view(rows, length, -1, self.head_dim)
        q, k, v = (x.transpose(1, 2) for x in qkv.split(self.fused, dim=-2))
        q, k = turned(self.query_layernorm(q), self.key_layernorm(k), *position_embeddings)
        k, v = repeat_kv(k, self.num_key_value_groups), repeat_kv(v, self.num_key_value_groups)
        if attention_mask is not None and attention_mask.size() != (rows, 1, length, length):
            raise ValueError(f"Attention mask should be of size {(rows, 1, length, length)}")
        out = self.attended(q, k, v, attention_mask).transpose(1, 2).contiguous().reshape(rows, length, -1)
        return self.dense(out), None, past_key_value

    def attended(self, q, k, v, mask):
        scores = q @ k.transpose(2, 3) * self.head_dim**-0.5
        return (scores if mask is None else scores + mask).softmax(-1) @ v


class LLaDA2MoeSdpaAttention(LLaDA2MoeAttention):
    def attended(self, q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.0, is_causal=False)


class LLaDA2MoeSparseMoeBlock(Experts):
    def shares(self, gated):
        share, chosen = gated.sigmoid().topk(2, -1)
        return share / share.sum(-1, keepdim=True), chosen


class LLaDA2MoeDecoderLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.attention = config.attention(config, layer_idx)
        self.mlp = LLaDA2MoeSparseMoeBlock(config) if layer_idx else MLP(config)
        self.input_layernorm, self.post_attention_layernorm = Norm(config.hidden_size), Norm(config.hidden_size)

    def forward(self, hidden_states, **context):
        x = hidden_states + self.attention(hidden_states=self.input_layernorm(hidden_states), **context)[0]
        return (x + self.mlp(self.post_attention_layernorm(x)),)


class LLaDA2MoeModel(nn.Module):
    """Half of each head's components are rotated; a 2D mask with a zero is causal."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LLaDA2MoeDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm, self.rotary_emb = Norm(config.hidden_size), Rotary(config.head_dim // 2, config.rope_theta)

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None, **kwargs
    ):
        x = self.word_embeddings(input_ids)
        length = x.shape[1]
        if attention_mask is not None and attention_mask.dim() == 2:
            seen = torch.ones(length, length, dtype=torch.bool)
            if not attention_mask.all():
                seen = seen.tril() & attention_mask.bool()[:, None] | torch.eye(length, dtype=torch.bool)
            seen = seen.expand(len(x), length, length)[:, None]
            attention_mask = torch.zeros(seen.shape, dtype=x.dtype).masked_fill(~seen, torch.finfo(x.dtype).min)
        elif attention_mask is not None and not attention_mask.is_floating_point():
            raise RuntimeError("expected a floating point mask")
        if position_ids is None:
            position_ids = torch.arange(length)[None]
        angles = self.rotary_emb(x, position_ids)
        for layer in self.layers:
            x = layer(x, attention_mask=attention_mask, position_ids=position_ids, position_embeddings=angles)[0]
        return SimpleNamespace(last_hidden_state=self.norm(x))


class LLaDA2MoeModelLM(Causal):
    trunk = LLaDA2MoeModel
    size: ClassVar = {**Causal.size, "attention": LLaDA2MoeSdpaAttention, "block_length": 4}


class StrictLLaDA2Model(LLaDA2MoeModel):
    """As released with LLaDA2.0: takes a square 4D mask alone."""

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None, **kwargs
    ):
        square = (len(input_ids), 1, input_ids.shape[1], input_ids.shape[1])
        if attention_mask.size() != square:
            raise ValueError(f"LLaDA2.0 only support block attention mask with shape {square}")
        return super().forward(input_ids, attention_mask, position_ids)


class StrictLLaDA2(LLaDA2MoeModelLM):
    trunk = StrictLLaDA2Model
