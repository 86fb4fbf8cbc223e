"""Caches in plain loops, one row at a time, that keep keys and values by hand; and the small models they are tried on."""

import math

import pytest
import torch

pytest.importorskip("transformers")

from dlm_benches.architectures import (
    LLaDAStyleConfig,
    LLaDAStyleModel,
    SDARStyleConfig,
    SDARStyleModel,
)
from dlm_benches.transformer import rotate
from dlm_kernels import keyed_uniform
from dlm_kernels.reference.philox import SUFFIX_STREAM
from dlm_samplers import (
    DelayedCache,
    DualCache,
    FeatureCache,
    ModelSpec,
    PrefixCache,
    SparseCache,
    SuffixWindow,
)

V, MASK, EOS = 41, 40, 3
SHAPE = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.35,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}


def llada(seed=0):
    torch.manual_seed(seed)
    return LLaDAStyleModel(LLaDAStyleConfig(**SHAPE)).eval()


def sdar(seed=0, block=4):
    torch.manual_seed(seed)
    return SDARStyleModel(SDARStyleConfig(**SHAPE, block_length=block)).eval()


def spec_of(model, **more):
    return ModelSpec(mask_id=MASK, eos_id=EOS, vocab_size=V, hidden="model", lm_head="lm_head", **more)


def prompts(rows=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 14, (rows,), generator=generator).tolist()
    return [torch.randint(MASK, (n,), generator=generator) for n in lengths]


def layer_by_hand(model, number, x, columns, kept, seen, attended=None):
    """A layer's output [n, D] for inputs [n, D] at some columns of one row; kept: [keys, values] of the whole canvas,
    replaced at the columns; seen: the columns attended to."""
    config, layer = model.config, model.model.layers[number]
    half = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    angle = columns[:, None].float() / config.rope_theta**half
    normed = layer.input_layernorm(x)[None]
    query, key, value = (
        project(normed).view(1, len(columns), -1, config.head_dim).transpose(1, 2)
        for project in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
    )
    kept[0][:, :, columns] = rotate(key, angle.cos(), angle.sin())
    kept[1][:, :, columns] = value
    if attended is not None:
        attended.append((rotate(query, angle.cos(), angle.sin())[0], kept[0][0]))
    groups = config.num_attention_heads // config.num_key_value_heads
    keys, values = (one[:, :, seen].repeat_interleave(groups, 1) for one in kept)
    scores = rotate(query, angle.cos(), angle.sin()) @ keys.transpose(-1, -2) * config.head_dim**-0.5
    x = x + layer.self_attn.o_proj((scores.softmax(-1) @ values).transpose(1, 2).reshape(len(columns), -1))
    return x + layer.mlp(layer.post_attention_layernorm(x))


def attend_by_hand(model, tokens, columns, kept, seen, attended=None):
    """Logits [n, V] of one row's columns; kept: per layer [keys, values] of the whole canvas, replaced at the columns; seen:
    one for all layers or a list of them."""
    x = model.model.embed_tokens(tokens[columns])
    for number in range(len(kept)):
        here = seen[number] if isinstance(seen, list) else seen
        x = layer_by_hand(model, number, x, columns, kept[number], here, attended)
    return model.lm_head(model.model.norm(x))


def features_by_hand(model, tokens, columns, kept, seen, memory, share, changed, block):
    """Logits of the columns where layers compute only the `share` of them whose values differ most, the first all `changed`;
    memory: per layer the change [L, D] that it made to each column. share None: all of them."""
    x = model.model.embed_tokens(tokens[columns])
    for number, layer in enumerate(model.model.layers):
        some = torch.arange(len(columns))
        if share is not None:
            value = layer.self_attn.v_proj(layer.input_layernorm(x))
            before = kept[number][1][0, :, columns].transpose(0, 1).flatten(1)
            alike = torch.cosine_similarity(value, before, dim=-1)
            is_open = [bool(tokens[c] == MASK) and c in block for c in columns.tolist()]
            equal = [2 - is_open[i] if a > 1 - 1e-5 else a for i, a in enumerate(alike.tolist())]
            order = sorted(range(len(columns)), key=lambda i: equal[i])
            some = torch.tensor(order[: max(share, changed) if number == 0 else share])
        after = x + memory[number][columns]
        after[some] = layer_by_hand(model, number, x[some], columns[some], kept[number], seen)
        memory[number][columns[some]] = after[some] - x[some]
        x = after
    return model.lm_head(model.model.norm(x))


def most_attended_by_hand(rule, query, keys, block, length):
    """bool [L]: the block and the columns beside it that its mean query [H, n, D] goes with best, keys [H of keys, L, D]."""
    mean = query[:, block].mean(1)
    group = len(mean) // len(keys)
    score = [float(sum(mean[h] @ keys[h // group, c] for h in range(len(mean)))) for c in range(length)]
    others = [c for c in range(length) if c not in block]
    reach = rule.kernel // 2
    near = [max(score[c] for c in others[max(i - reach, 0) : i + reach + 1]) for i in range(len(others))]
    best = sorted(range(len(others)), key=lambda i: -near[i])[: int(len(others) * rule.keep_ratio)]
    return torch.tensor([c in block or c in {others[i] for i in best} for c in range(length)])


def left_by_hand(rule, prompt, length, start, end, seed, request):
    """bool [L]: what DPad's suffix dropout leaves of one row's canvas for a block."""
    left = torch.ones(length, dtype=torch.bool)
    for column in range(end, length):
        distance = column - end
        x = rule.k_sigma * distance / max(rule.window, 1)
        chance = rule.scale * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        keys = torch.tensor([[seed]]), torch.tensor([[(request << 32) | column]]), torch.tensor([[start]])
        left[column] = distance < rule.window and float(keyed_uniform(*keys, stream=SUFFIX_STREAM)) < chance
    return left


@torch.no_grad()
def threshold_by_hand(model, prompt, new, block, tau, rule, request=0):
    """A threshold sampler's loop for one row, the cache by hand. Returns the canvas, the forwards and the columns computed."""
    length = len(prompt) + new
    tokens = torch.cat([prompt, torch.full((new,), MASK)])
    forwards = computed = 0
    shape = (1, model.config.num_key_value_heads, length, model.config.head_dim)
    kept = [[torch.zeros(shape), torch.zeros(shape)] for _ in model.model.layers]
    memory = [torch.zeros(length, model.config.hidden_size) for _ in kept]
    before = torch.full((length,), -1)
    everything = torch.arange(length)
    for start in range(len(prompt), length, block):
        end = min(start + block, length)
        inner = rule.inner if isinstance(rule, SuffixWindow) else rule
        left = torch.ones(length, dtype=torch.bool)
        if isinstance(rule, SuffixWindow):
            left = left_by_hand(rule, prompt, length, start, end, 0, request)
        opening, inside, attended_to = True, 0, [left] * len(kept)
        while (tokens[start:end] == MASK).any():
            wanted = torch.ones(length, dtype=torch.bool)
            if isinstance(inner, PrefixCache) and not opening:
                wanted = everything >= start
            elif isinstance(inner, DualCache) and not opening:
                wanted = (everything >= start) & (everything < end)
            elif isinstance(inner, DelayedCache) and forwards % inner.refresh:
                wanted = (tokens == MASK) | (tokens != before)
            elif isinstance(inner, FeatureCache) and forwards % inner.prompt_interval:
                wanted = everything >= len(prompt)
            elif isinstance(inner, SparseCache) and inside > inner.delay:
                wanted = (everything >= start) & (everything < end)
            columns = (wanted & left).nonzero()[:, 0]
            share, changed = None, int((tokens != before)[columns].sum())
            if isinstance(inner, FeatureCache) and forwards % inner.prompt_interval and forwards % inner.gen_interval:
                share = max(int(len(columns) * inner.ratio), 1)
            logits = torch.full((length, V), -torch.inf)
            if isinstance(inner, FeatureCache):
                logits[columns] = features_by_hand(
                    model, tokens, columns, kept, left, memory, share, changed, range(end)
                )
            elif isinstance(inner, SparseCache):
                attended = []
                logits[columns] = attend_by_hand(model, tokens, columns, kept, attended_to, attended)
                if inside == inner.delay:
                    block_now = range(start, end)
                    attended_to = [most_attended_by_hand(inner, *of, block_now, length) for of in attended]
            else:
                logits[columns] = attend_by_hand(model, tokens, columns, kept, left)
            before, opening, inside = tokens.clone(), False, inside + 1
            logits[:, MASK] = -torch.inf
            confidence, proposal = logits[start:end].softmax(-1).max(-1)
            masked = tokens[start:end] == MASK
            confidence = confidence.masked_fill(~masked, -1.0)
            chosen = (confidence >= tau) & masked
            chosen[confidence.argmax()] = True
            tokens[start:end] = torch.where(chosen, proposal, tokens[start:end])
            forwards, computed = forwards + 1, computed + (len(columns) if share is None else share)
    return tokens, forwards, computed
