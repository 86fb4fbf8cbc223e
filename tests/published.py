"""Small models with the names, the signatures and the way to attention of published code, written from scratch.

modeling_llada.py, modeling_dream.py, modeling_llada2_moe.py and modeling_sdar.py attend by torch's scaled_dot_product_attention
and not through transformers' interface, and LLaDA's knows no position ids. Weights are random, or those of an architecture of
`dlm_benches.architectures`, so that what both say can be compared.
"""

from types import SimpleNamespace
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

V, MASK, EOS = 41, 40, 3


class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        exact = x.float()
        return self.weight * (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def half_turn(x):
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def seeded(build, seed):
    """The model with random weights, a bit larger than layers begin with, and ready for use."""
    torch.manual_seed(seed)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.35 + (parameter.ndim == 1))
    return model.eval()


def take(model, weights):
    """Weights {name: tensor} into a model; all of them have to fit."""
    model.load_state_dict(weights)
    return model.eval()


# LLaDA: blocks attend, positions come from lengths, the trunk returns logits.


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
        x = self.transformer.wte(input_ids)
        if attention_mask is not None and 0.0 in attention_mask:
            hidden = (1.0 - attention_mask.float())[:, None, None] * torch.finfo(torch.float).min
            attention_bias = hidden.expand(-1, 1, input_ids.shape[1], -1).to(x.dtype)
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


# Dream, SDAR and LLaDA2: modules attend, the trunk takes position ids and returns hidden states.


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


class LLaDA2MoeSparseMoeBlock(nn.Module):
    """Each token goes to the two experts that its gate prefers."""

    def __init__(self, config):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, 4, bias=False)
        self.experts = nn.ModuleList(MLP(config) for _ in range(4))

    def forward(self, x):
        share, chosen = self.gate(x).sigmoid().topk(2, -1)
        weight = torch.zeros_like(self.gate(x)).scatter(-1, chosen, share / share.sum(-1, keepdim=True))
        return sum(weight[..., i, None] * expert(x) for i, expert in enumerate(self.experts))


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
