"""Caches against plain loops that keep keys and values by hand, and against no cache where they are exact."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from dlm_benches.architectures import (  # noqa: E402
    DreamStyleConfig,
    DreamStyleModel,
    LLaDAStyleConfig,
    LLaDAStyleModel,
    SDARStyleConfig,
    SDARStyleModel,
)
from dlm_kernels import InvalidArgumentError  # noqa: E402
from dlm_samplers import (  # noqa: E402
    AncestralUnmask,
    BlockCache,
    ConfidenceDrop,
    Credit,
    DreamSampler,
    DualCache,
    EndOfText,
    FixedQuota,
    KLStable,
    LLaDASampler,
    LowConfidenceDynamic,
    ModelSpec,
    PrefixCache,
    Spaced,
    Threshold,
    TokenEditing,
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
POLICIES = [Threshold(0.3), FixedQuota(tokens_per_step=2), FixedQuota("random", tokens_per_step=1), AncestralUnmask()]


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


def attend_by_hand(model, tokens, columns, kept):
    """Logits [n, V] of one row's columns; kept: per layer [keys, values] of the whole canvas, replaced at the columns."""
    from dlm_benches.architectures.model import rotate

    config, trunk = model.config, model.model
    half = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    angle = columns[:, None].float() / config.rope_theta**half
    cosine, sine = angle.cos()[None, None], angle.sin()[None, None]
    x = trunk.embed_tokens(tokens[columns])[None]
    for number, layer in enumerate(trunk.layers):
        normed = layer.input_layernorm(x)
        split = [
            project(normed).view(1, len(columns), -1, config.head_dim).transpose(1, 2)
            for project in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        ]
        query, key = rotate(split[0], cosine, sine), rotate(split[1], cosine, sine)
        kept[number][0][:, :, columns] = key
        kept[number][1][:, :, columns] = split[2]
        scores = query @ kept[number][0].transpose(-1, -2) * config.head_dim**-0.5
        out = (scores.softmax(-1) @ kept[number][1]).transpose(1, 2).reshape(1, len(columns), -1)
        x = x + layer.self_attn.o_proj(out)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(trunk.norm(x))[0]


@torch.no_grad()
def threshold_by_hand(model, prompt, new, block, tau, kind):
    """Fast-dLLM's loop for one row. Returns the canvas, the forwards and the columns computed."""
    length = len(prompt) + new
    tokens = torch.cat([prompt, torch.full((new,), MASK)])
    forwards = computed = 0
    for start in range(len(prompt), length, block):
        end = min(start + block, length)
        shape = (1, model.config.num_key_value_heads, length, model.config.head_dim)
        kept = [[torch.zeros(shape), torch.zeros(shape)] for _ in model.model.layers]
        columns = torch.arange(length)
        while (tokens[start:end] == MASK).any():
            logits = torch.full((length, V), -torch.inf)
            logits[columns] = attend_by_hand(model, tokens, columns, kept)
            logits[:, MASK] = -torch.inf
            confidence, proposal = logits[start:end].softmax(-1).max(-1)
            masked = tokens[start:end] == MASK
            confidence = confidence.masked_fill(~masked, -1.0)
            chosen = (confidence >= tau) & masked
            chosen[confidence.argmax()] = True
            tokens[start:end] = torch.where(chosen, proposal, tokens[start:end])
            forwards, computed = forwards + 1, computed + len(columns)
            columns = torch.arange(start, length if kind == "prefix" else end)
    return tokens, forwards, computed


@pytest.mark.parametrize(("kind", "cache"), [("prefix", PrefixCache()), ("dual", DualCache())])
def test_kept_keys_and_values_are_those_of_the_published_loop(kind, cache):
    differ = 0
    for seed in range(5):
        model = llada(seed)
        asked = prompts(rows=5, seed=seed)
        budgets = [5 + 3 * row for row in range(len(asked))]
        sampler = LLaDASampler(model, policy=Threshold(0.15), cache=cache, spec=spec_of(model))
        settings = {"max_new_tokens": budgets, "block_length": 8}
        out = sampler.generate(asked, batch_size=3, **settings)
        plain = LLaDASampler(model, policy=Threshold(0.15), spec=spec_of(model)).generate(asked, **settings)
        differ += int((plain.sequences != out.sequences).sum())
        for row, (prompt, new) in enumerate(zip(asked, budgets, strict=True)):
            tokens, forwards, computed = threshold_by_hand(model, prompt, new, 8, 0.15, kind)
            assert torch.equal(out.sequences[row, : len(tokens)], tokens)
            assert (out.nfe[row], out.positions[row]) == (forwards, computed)
    assert differ > 0, "the cache approximates nothing here, so the test shows nothing"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_block_cache_changes_nothing_in_a_block_causal_model(policy, temperature):
    model = sdar()
    spec = spec_of(model, block_length=4)
    asked = prompts(rows=7)  # they end in the middle of a block
    settings = {"max_new_tokens": [3, 9, 14, 0, 8, 20, 5], "temperature": temperature, "seed": 2}
    plain = LLaDASampler(model, policy=policy, spec=spec).generate(asked, **settings)
    for batch_size in (None, 1, 3):
        cached = LLaDASampler(model, policy=policy, spec=spec, cache=BlockCache()).generate(
            asked, batch_size=batch_size, **settings
        )
        assert torch.equal(cached.sequences, plain.sequences)
        assert torch.equal(cached.nfe, plain.nfe)
        assert cached.positions.sum() < plain.positions.sum() / 2


@pytest.mark.parametrize("remask", [TokenEditing(0.1, 3), ConfidenceDrop()], ids=str)
def test_a_block_cache_keeps_up_with_tokens_taken_back(remask):
    model = sdar()
    spec = spec_of(model, block_length=4)
    settings = {"max_new_tokens": [3, 9, 14, 0, 8, 20, 5], "temperature": 1.0, "seed": 2}
    parts = {"policy": LowConfidenceDynamic(0.3), "remask": remask, "spec": spec}
    plain = LLaDASampler(model, **parts).generate(prompts(rows=7), **settings)
    cached = LLaDASampler(model, **parts, cache=BlockCache()).generate(prompts(rows=7), **settings)
    bare = LLaDASampler(model, **(parts | {"remask": None})).generate(prompts(rows=7), **settings)
    assert torch.equal(cached.sequences, plain.sequences)
    assert torch.equal(cached.nfe, plain.nfe)
    assert not torch.equal(bare.sequences, plain.sequences), "nothing was taken back, so the test shows nothing"


@pytest.mark.parametrize("cache", [PrefixCache(), DualCache()], ids=str)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_row_has_the_same_tokens_in_any_batch(policy, cache):
    model = llada()
    sampler = LLaDASampler(model, policy=policy, cache=cache, spec=spec_of(model), stopping=[EndOfText()])
    asked = prompts(rows=6)
    settings = {"max_new_tokens": 14, "block_length": 5, "temperature": 0.8, "seed": 5}
    whole = sampler.generate(asked, **settings)
    few = sampler.generate(asked, batch_size=2, **settings)
    assert torch.equal(whole.sequences, few.sequences)
    for row in (0, 3, 5):
        alone = sampler.generate([asked[row]], request_ids=[row], **settings)
        assert torch.equal(alone.completions[0], whole.completions[row])
        assert alone.nfe[0] == whole.nfe[row]


def test_shifted_outputs_keep_their_alignment_under_a_cache():
    torch.manual_seed(0)
    model = DreamStyleModel(DreamStyleConfig(**SHAPE)).eval()
    spec = ModelSpec.of(model, **DreamSampler.contract, hidden="model", lm_head="lm_head")
    with pytest.raises(InvalidArgumentError, match="the output before a block predicts its first token"):
        DreamSampler(model, spec=spec, policy=Threshold(0.2), cache=DualCache())


def test_the_model_is_left_as_it_was_even_after_an_error():
    model = llada()
    before = model.config._attn_implementation
    sampler = LLaDASampler(model, policy=Threshold(0.3), cache=PrefixCache(), spec=spec_of(model))
    plain = model(torch.arange(9)[None]).logits
    sampler.generate(prompts(), max_new_tokens=4)
    assert model.config._attn_implementation == before

    def stop(*_):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        sampler.generate(prompts(), max_new_tokens=4, callback_on_step_end=stop)
    assert model.config._attn_implementation == before
    assert torch.equal(model(torch.arange(9)[None]).logits, plain)


def test_what_a_cache_cannot_do_is_said_at_construction():
    model = llada()
    with pytest.raises(InvalidArgumentError, match=r"PrefixCache scores hidden states: give spec=ModelSpec"):
        LLaDASampler(model, cache=PrefixCache())
    for policy in (KLStable(), Spaced(Credit())):
        with pytest.raises(InvalidArgumentError, match=r"PrefixCache scores hidden states, and .* reads logits"):
            LLaDASampler(llada(), spec=spec_of(llada()), policy=policy, cache=PrefixCache())
    with pytest.raises(InvalidArgumentError, match="BlockCache is for block-causal models"):
        LLaDASampler(model, cache=BlockCache(), spec=spec_of(model))
    with pytest.raises(InvalidArgumentError, match="is for bidirectional models; use BlockCache"):
        LLaDASampler(sdar(), cache=PrefixCache(), spec=spec_of(model, block_length=4))
    with pytest.raises(InvalidArgumentError, match="cache must be a Cache instance"):
        LLaDASampler(model, cache="prefix", spec=spec_of(model))
    sampler = LLaDASampler(model, cache=PrefixCache(), spec=spec_of(model))
    with pytest.raises(InvalidArgumentError, match="cfg_scale needs logits of the whole canvas"):
        sampler.generate(prompts(), cfg_scale=1.0)
    with pytest.raises(InvalidArgumentError, match="block_length must be 4, the block of the model's attention; got 8"):
        LLaDASampler(sdar(), spec=spec_of(model, block_length=4)).generate(prompts(), block_length=8)

    class Foreign(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.lm_head = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    with pytest.raises(InvalidArgumentError, match="does not attend through transformers' attention interface"):
        LLaDASampler(Foreign(), cache=PrefixCache(), spec=spec_of(model))
