"""LLaDA, on OLMo's code: blocks attend, positions come from lengths, the trunk returns logits. And LaViDa, made of it."""

from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from published.parts import EOS, MASK, Norm, V, half_turn, take


class RotaryEmbedding(nn.Module):
    def __init__(self, config, cache):
        super().__init__()
        self.config, self.__cache = config, cache
        self.get_rotary_embedding(config.max_sequence_length, torch.device("cpu"))

    def get_rotary_embedding(self, seq_len, device):
        if "rope_pos_sin" not in self.__cache or self.__cache["rope_pos_sin"].shape[-2] < seq_len:
            dim = self.config.d_model // self.config.n_heads
            frequency = 1.0 / self.config.rope_theta ** (torch.arange(0, dim, 2, device=device).float() / dim)
            angle = torch.outer(torch.arange(seq_len, device=device).float(), frequency)
            angle = torch.cat([angle, angle], -1)[None, None]
            self.__cache["rope_pos_sin"], self.__cache["rope_pos_cos"] = angle.sin(), angle.cos()
        return self.__cache["rope_pos_sin"][:, :, :seq_len], self.__cache["rope_pos_cos"][:, :, :seq_len]

    def forward(self, q, k):
        full = self.config.rope_full_precision
        q_, k_ = (q.float(), k.float()) if full else (q, k)
        query_len, key_len = q_.shape[-2], k_.shape[-2]
        sin, cos = (table.type_as(q_) for table in self.get_rotary_embedding(key_len, q_.device))
        last = slice(key_len - query_len, key_len)
        q_ = q_ * cos[:, :, last] + half_turn(q_) * sin[:, :, last]
        k_ = k_ * cos + half_turn(k_) * sin
        return q_.type_as(q), k_.type_as(k)


class LLaDABlock(nn.Module):
    def __init__(self, config, cache):
        super().__init__()
        self.config, self.rotary_emb, self.flash_attn_func = config, RotaryEmbedding(config, cache), None
        self.attn_norm, self.ff_norm = Norm(config.d_model), Norm(config.d_model)
        self.attn_out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.kv_dim = config.d_model // config.n_heads * config.effective_n_kv_heads

    def _scaled_dot_product_attention(self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False):
        if self.flash_attn_func is not None and attn_mask is None:
            return self.flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
        groups = q.size(1) // k.size(1)
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=False)

    def attention(self, q, k, v, attention_bias=None):
        rows, length, width = q.size()
        size = width // self.config.n_heads
        q, k, v = (x.view(rows, length, -1, size).transpose(1, 2) for x in (q, k, v))
        q, k = self.rotary_emb(q, k)
        att = self._scaled_dot_product_attention(q, k, v, attn_mask=attention_bias)
        return self.attn_out(att.transpose(1, 2).contiguous().view(rows, length, width))


class LLaDALlamaBlock(LLaDABlock):
    def __init__(self, config, cache):
        super().__init__(config, cache)
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(config.d_model, self.kv_dim, bias=False) for _ in range(2))
        self.ff_proj, self.up_proj = (nn.Linear(config.d_model, config.mlp_hidden_size, bias=False) for _ in range(2))
        self.ff_out = nn.Linear(config.mlp_hidden_size, config.d_model, bias=False)

    def forward(self, x, attention_bias=None, layer_past=None, use_cache=False):
        normed = self.attn_norm(x)
        x = x + self.attention(self.q_proj(normed), self.k_proj(normed), self.v_proj(normed), attention_bias)
        normed = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed)), None


class LLaDASequentialBlock(LLaDABlock):
    def __init__(self, config, cache):
        super().__init__(config, cache)
        self.fused_dims = (config.d_model, self.kv_dim, self.kv_dim)
        self.att_proj = nn.Linear(config.d_model, sum(self.fused_dims), bias=False)
        self.ff_proj = nn.Linear(config.d_model, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, config.d_model, bias=False)

    def forward(self, x, attention_bias=None, layer_past=None, use_cache=False):
        x = x + self.attention(*self.att_proj(self.attn_norm(x)).split(self.fused_dims, dim=-1), attention_bias)
        return x + self.ff_out(F.silu(self.ff_proj(self.ff_norm(x)))), None


class LLaDAOutput(NamedTuple):
    logits: torch.Tensor
    attn_key_values: None
    hidden_states: None


class LLaDAModel(nn.Module):
    block = LLaDALlamaBlock

    def __init__(self, config):
        super().__init__()
        self.config, cache = config, {}
        parts = {"wte": nn.Embedding(config.vocab_size, config.d_model), "ln_f": Norm(config.d_model)}
        parts["blocks"] = nn.ModuleList(self.block(config, cache) for _ in range(config.n_layers))
        if not config.weight_tying:
            parts["ff_out"] = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.transformer = nn.ModuleDict(parts)
        self.heads = 0

    def forward(
        self,
        input_ids,
        input_embeddings=None,
        attention_mask=None,
        attention_bias=None,
        past_key_values=None,
        use_cache=False,
        last_logits_only=False,
        output_hidden_states=None,
    ):
        assert past_key_values is None
        assert not use_cache
        x = self.transformer.wte(input_ids) if input_embeddings is None else input_embeddings
        if attention_mask is not None and 0.0 in attention_mask:
            hidden = (1.0 - attention_mask.float())[:, None, None] * torch.finfo(torch.float).min
            attention_bias = hidden.expand(-1, 1, x.shape[1], -1).to(x.dtype)
        for block in self.transformer.blocks:
            x, _ = block(x, attention_bias=attention_bias)
        x = self.transformer.ln_f(x)
        self.heads += 1
        head = self.transformer.wte.weight if self.config.weight_tying else None
        logits = self.transformer.ff_out(x) if head is None else F.linear(x, head)
        if self.config.scale_logits:
            logits.mul_(self.config.d_model**-0.5)
        return LLaDAOutput(logits, None, None)


class LLaDAModelLM(nn.Module):
    trunk = LLaDAModel

    def __init__(self, **config):
        super().__init__()
        size = {"d_model": 32, "n_heads": 4, "effective_n_kv_heads": 4, "n_layers": 3, "mlp_hidden_size": 64}
        flags = {"rope": True, "rope_full_precision": True, "weight_tying": False, "scale_logits": False}
        tokens = {"vocab_size": V, "mask_token_id": MASK, "eos_token_id": EOS, "rope_theta": 10_000.0}
        self.config = SimpleNamespace(**{**size, **flags, **tokens, "max_sequence_length": 16, **config})
        self.model = self.trunk(self.config)

    def forward(
        self,
        input_ids=None,
        inputs_embeds=None,
        attention_mask=None,
        attention_bias=None,
        past_key_values=None,
        labels=None,
        use_cache=False,
        return_dict=None,
    ):
        outputs = self.model.forward(
            input_ids=input_ids, input_embeddings=inputs_embeds, attention_mask=attention_mask, use_cache=use_cache
        )
        return SimpleNamespace(logits=outputs.logits)


class FusedModel(LLaDAModel):
    block = LLaDASequentialBlock


class FusedLLaDA(LLaDAModelLM):
    trunk = FusedModel


def llada_from(style):
    """LLaDA's code with the weights of a `LLaDAStyleModel`."""
    config = style.config
    names = {"num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "hidden_size": "d_model"}
    names |= {"num_key_value_heads": "effective_n_kv_heads", "intermediate_size": "mlp_hidden_size"}
    model = LLaDAModelLM(**{new: getattr(config, old) for old, new in names.items()})
    renamed = [
        ("model.layers", "model.transformer.blocks"),
        ("model.embed_tokens", "model.transformer.wte"),
        ("model.norm", "model.transformer.ln_f"),
        ("lm_head", "model.transformer.ff_out"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ff_norm"),
        ("self_attn.o_proj", "attn_out"),
        ("self_attn.", ""),
        ("mlp.gate_proj", "ff_proj"),
        ("mlp.up_proj", "up_proj"),
        ("mlp.down_proj", "ff_out"),
    ]
    weights = {}
    for name, weight in style.state_dict().items():
        for old, new in renamed:
            name = name.replace(old, new)
        weights[name] = weight
    return take(model, weights).to(next(style.parameters()).dtype)


class LlavaLladaModel(LLaDAModel):
    """LaViDa's trunk: shows masks to nothing."""

    def forward(
        self,
        input_ids,
        input_embeddings=None,
        attention_mask=None,
        attention_bias=None,
        past_key_values=None,
        use_cache=False,
        last_logits_only=False,
        output_hidden_states=None,
        prefix_length=None,
    ):
        return super().forward(input_ids, input_embeddings)


class LlavaLladaForMaskedDiffusion(LLaDAModelLM):
    """Its forward is a step of training."""

    trunk = LlavaLladaModel

    def get_model(self):
        return self.model

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None, images=None):
        attention_mask = attention_mask.clone()
        labels[input_ids == EOS] = EOS
        raise AssertionError("not for sampling")
