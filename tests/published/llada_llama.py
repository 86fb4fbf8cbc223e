"""LLaDA-MoE, on OLMoE's code, and LLaDA-V, on Llama's: parts and calls as of Dream, logits and tokens as of LLaDA."""

from types import SimpleNamespace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from published.llama import (
    Causal,
    DecoderLayer,
    DreamAttention,
    Experts,
    LlamaAttention,
    Rotary,
    Trunk,
    repeat_kv,
    turned,
)
from published.parts import Norm


class LLaDAMoEAttention(LlamaAttention):
    """Multiplies matrices itself."""

    normed = True
    forward = DreamAttention.forward

    def attended(self, q, k, v, mask):
        return (q @ k.transpose(2, 3) * self.scaling).softmax(-1) @ v


class LLaDAMoESdpaAttention(LLaDAMoEAttention):
    def attended(self, q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False)


class LLaDAMoESparseMoeBlock(Experts):
    """The shares of a token's two experts do not add up to 1."""

    def shares(self, gated):
        return gated.softmax(-1).topk(2, -1)


class LLaDAMoEDecoderLayer(DecoderLayer):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        if layer_idx:
            self.mlp = LLaDAMoESparseMoeBlock(config)


class LLaDAMoEModel(Trunk):
    """Shows masks to nothing, and makes no cache."""

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(LLaDAMoEDecoderLayer(config, i) for i in range(config.num_hidden_layers))

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
    ):
        assert not use_cache
        assert past_key_values is None
        return super().forward(input_ids, None, position_ids)


class LLaDAMoEModelLM(Causal):
    trunk = LLaDAMoEModel
    size: ClassVar = {**Causal.size, "attention": LLaDAMoESdpaAttention}

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        num_logits_to_keep=0,
    ):
        return super().forward(input_ids, attention_mask, position_ids, use_cache=use_cache)


class LLaDAAttention(LlamaAttention):
    """Makes its rotary angles itself. Multiplies matrices itself."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.rotary_emb = Rotary(config.head_dim, config.rope_theta)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        position_ids=None,
        past_key_value=None,
        output_attentions=False,
        use_cache=False,
        cache_position=None,
    ):
        q, k, v = self.projected(hidden_states)
        q, k = turned(q, k, *self.rotary_emb(v, position_ids))
        k, v = repeat_kv(k, self.num_key_value_groups), repeat_kv(v, self.num_key_value_groups)
        out = self.attended(q, k, v, attention_mask)
        return self.o_proj(out.transpose(1, 2).contiguous().view(*hidden_states.shape[:2], -1)), None, past_key_value

    def attended(self, q, k, v, mask):
        return (q @ k.transpose(2, 3) * self.scaling + mask).softmax(-1) @ v


class LLaDASdpaAttention(LLaDAAttention):
    def attended(self, q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=False, dropout_p=0.0)


class LlavaLLaDAModel(nn.Module):
    """LLaDA-V's trunk: a mask is added, and a cache is made unless it is told not to."""

    def __init__(self, config):
        super().__init__()
        self.config, self.caches = config, 0
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        **kwargs,
    ):
        assert past_key_values is None
        assert not use_cache
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You cannot specify both input_ids and inputs_embeds at the same time")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        self.caches += use_cache is None
        length = x.shape[1]
        hidden = torch.zeros(len(x), 1, length, length, dtype=x.dtype)
        if attention_mask is not None:
            hidden = hidden.masked_fill(attention_mask[:, None, None] == 0, torch.finfo(x.dtype).min)
        if position_ids is None:
            position_ids = torch.arange(length)[None]
        for layer in self.layers:
            x = layer(x, attention_mask=hidden, position_ids=position_ids)[0]
        return SimpleNamespace(last_hidden_state=self.norm(x))


class LlavaLLaDAModelLM(Causal):
    """LLaDA-V: fails on vectors, and on a mask without an image."""

    trunk = LlavaLLaDAModel
    size: ClassVar = {**Causal.size, "attention": LLaDASdpaAttention}

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        images=None,
    ):
        if inputs_embeds is None and attention_mask is not None:
            raise ValueError("not enough values to unpack (expected 7, got 6)")
        if inputs_embeds is not None:
            raise UnboundLocalError("cannot access local variable 'conversation_ids'")
        return super().forward(input_ids, None, position_ids, use_cache=use_cache)
