"""Caches against plain loops that keep keys and values by hand, and against no cache where they are exact."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from by_hand import MASK, SHAPE, llada, prompts, sdar, spec_of, threshold_by_hand  # noqa: E402

from dlm_benches.architectures import (  # noqa: E402
    DreamStyleConfig,
    DreamStyleModel,
)
from dlm_kernels import InvalidArgumentError  # noqa: E402
from dlm_samplers import (  # noqa: E402
    AncestralUnmask,
    BlockCache,
    ConfidenceDrop,
    Credit,
    DelayedCache,
    DreamSampler,
    DualCache,
    EndOfText,
    FeatureCache,
    FixedQuota,
    KLStable,
    LLaDASampler,
    LowConfidenceDynamic,
    ModelSpec,
    PrefixCache,
    Spaced,
    SparseCache,
    StableAndConfident,
    SuffixWindow,
    Threshold,
    TokenEditing,
)
from dlm_samplers.compat import dkv_cache  # noqa: E402
from dlm_samplers.compat import llada as llada_swap  # noqa: E402

POLICIES = [Threshold(0.3), FixedQuota(tokens_per_step=2), FixedQuota("random", tokens_per_step=1), AncestralUnmask()]

APPROXIMATE = [
    PrefixCache(),
    DualCache(),
    DelayedCache(refresh=3),
    SuffixWindow(window=12),
    SuffixWindow(window=9, inner=PrefixCache()),
    SuffixWindow(window=9, inner=DualCache()),
    SparseCache(keep_ratio=0.2),
    SparseCache(keep_ratio=0.3, delay=0, kernel=1),
    FeatureCache(prompt_interval=6, gen_interval=3),
    FeatureCache(prompt_interval=100, gen_interval=4, ratio=0.5),
]


@pytest.mark.parametrize("cache", APPROXIMATE, ids=str)
def test_kept_keys_and_values_are_those_of_a_plain_loop(cache):
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
            tokens, forwards, computed = threshold_by_hand(model, prompt, new, 8, 0.15, cache, row)
            assert torch.equal(out.sequences[row, : len(tokens)], tokens)
            assert (out.nfe[row], out.positions[row]) == (forwards, computed)
    assert differ > 0, "the cache approximates nothing here, so the test shows nothing"


@pytest.mark.parametrize(
    "cache",
    [
        DelayedCache(refresh=1),
        SuffixWindow(window=100, scale=100.0),
        FeatureCache(prompt_interval=1),
        SparseCache(delay=1000),
    ],
    ids=str,
)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_at_its_limit_a_cache_changes_nothing(policy, cache):
    model = llada()
    settings = {"max_new_tokens": [3, 9, 14, 0, 8, 20, 5], "temperature": 0.8, "block_length": 6, "batch_size": 3}
    plain = LLaDASampler(model, policy=policy, spec=spec_of(model)).generate(prompts(rows=7), **settings)
    cached = LLaDASampler(model, policy=policy, spec=spec_of(model), cache=cache).generate(prompts(rows=7), **settings)
    assert torch.equal(cached.sequences, plain.sequences)
    assert torch.equal(cached.nfe, plain.nfe)


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


def attention_calls(monkeypatch, sampler, asked, **settings):
    """(keys, whether there was a mask) of every layer of every forward."""
    attend, calls = torch.nn.functional.scaled_dot_product_attention, []

    def note(query, key, value, attn_mask=None, **kwargs):
        calls.append((key.shape[2], attn_mask is not None))
        return attend(query, key, value, attn_mask=attn_mask, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", note)
        sampler.generate(asked, max_new_tokens=12, **settings)
    return calls


def test_attention_gets_a_mask_only_where_something_is_hidden_and_no_key_that_all_hide(monkeypatch):
    model = llada()
    sampler = LLaDASampler(model, cache=DualCache(), spec=spec_of(model))
    alike, unequal = [[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5]]
    assert {mask for _, mask in attention_calls(monkeypatch, sampler, alike, block_length=4)} == {False}
    assert {mask for _, mask in attention_calls(monkeypatch, sampler, unequal, block_length=4)} == {True}
    model = sdar()
    sampler = LLaDASampler(model, cache=BlockCache(), spec=spec_of(model, block_length=4))
    calls = attention_calls(monkeypatch, sampler, [[1, 2, 3, 4]])
    # A block of four steps: the first computes the block before it too, which does not see this one.
    layers = model.config.num_hidden_layers
    steps = [(8, True), *[(8, False)] * 3, (12, True), *[(12, False)] * 3, (16, True), *[(16, False)] * 3]
    assert calls == [step for step in steps for _ in range(layers)]


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


@pytest.mark.parametrize("cache", APPROXIMATE, ids=str)
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


def dream(seed=0):
    torch.manual_seed(seed)
    return DreamStyleModel(DreamStyleConfig(**SHAPE)).eval()


class Everything(PrefixCache):
    """Computes every column in every forward: exact, whatever the alignment."""

    def window(self, state):
        return state.valid


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_shifted_outputs_keep_their_alignment_under_a_cache(policy):
    model = dream()
    spec = ModelSpec.of(model, **DreamSampler.contract, hidden="model", lm_head="lm_head")
    settings = {"max_new_tokens": [3, 9, 14, 0, 8, 20, 5], "block_length": 4, "temperature": 0.7}
    asked = prompts(rows=7)
    plain = DreamSampler(model, spec=spec, policy=policy).generate(asked, **settings)
    every = DreamSampler(model, spec=spec, policy=policy, cache=Everything()).generate(asked, **settings)
    assert torch.equal(every.sequences, plain.sequences)
    cached = DreamSampler(model, spec=spec, policy=policy, cache=DualCache()).generate(asked, batch_size=3, **settings)
    for row, prompt in enumerate(asked):
        alone = DreamSampler(model, spec=spec, policy=policy, cache=DualCache()).generate(
            [prompt], request_ids=[row], **settings | {"max_new_tokens": settings["max_new_tokens"][row]}
        )
        assert torch.equal(alone.completions[0], cached.completions[row])
    steps = cached.nfe[5] - 5  # blocks of 4 in 20 tokens, each opened by one forward over everything
    if policy == POLICIES[2]:  # one token a forward
        assert cached.positions[5] == 5 * (len(asked[5]) + 20) + steps * (4 + 1), "the block and the column before it"


@pytest.mark.parametrize("cache", [PrefixCache(), FeatureCache()], ids=str)
def test_the_model_is_left_as_it_was_even_after_an_error(cache):
    model = llada()
    attributes = [sorted(vars(module)) for module in model.modules()]
    before = model.config._attn_implementation
    sampler = LLaDASampler(model, policy=Threshold(0.3), cache=cache, spec=spec_of(model))
    plain = model(torch.arange(9)[None]).logits
    sampler.generate(prompts(), max_new_tokens=4)
    assert model.config._attn_implementation == before

    def stop(*_):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        sampler.generate(prompts(), max_new_tokens=4, callback_on_step_end=stop)
    assert model.config._attn_implementation == before
    assert torch.equal(model(torch.arange(9)[None]).logits, plain)
    assert [sorted(vars(module)) for module in model.modules()] == attributes


def test_a_windows_forward_has_the_keywords_of_the_description(monkeypatch):
    model, seen = llada(), []
    forward = model.model.forward
    monkeypatch.setattr(
        model.model, "forward", lambda *args, **kw: seen.append(kw.get("use_cache")) or forward(*args, **kw)
    )
    spec = spec_of(model, keywords={"use_cache": False})
    LLaDASampler(model, policy=Threshold(0.3), cache=DualCache(), spec=spec).generate(prompts(2), max_new_tokens=4)
    assert set(seen) == {False}


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

    for build, message in (
        (lambda: DelayedCache(0), "refresh must be an int >= 1, got 0"),
        (lambda: SuffixWindow(window=-1), "window must be an int >= 0, got -1"),
        (lambda: SuffixWindow(scale=0.0), "scale must be above 0"),
        (lambda: SuffixWindow(inner=SuffixWindow()), "inner must be another cache or None"),
        (lambda: SparseCache(keep_ratio=0.0), r"keep_ratio must be in \(0, 1\], got 0.0"),
        (lambda: SparseCache(delay=-1), "delay must be an int >= 0, got -1"),
        (lambda: SparseCache(kernel=2), "kernel must be an odd int >= 1, got 2"),
        (lambda: FeatureCache(gen_interval=0), "gen_interval must be an int >= 1, got 0"),
        (lambda: FeatureCache(ratio=0.0), r"ratio must be in \(0, 1\], got 0.0"),
        (lambda: LLaDASampler(model, cache=FeatureCache(layers="x"), spec=spec_of(model)), "layers = 'x' is no list"),
        (lambda: LLaDASampler(sdar(), cache=DelayedCache(), spec=spec_of(model, block_length=4)), "use BlockCache"),
        (
            lambda: LLaDASampler(model, cache=SuffixWindow(), stopping=[StableAndConfident()], spec=spec_of(model)),
            "SuffixWindow computes a part of what follows the block alone",
        ),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            build()

    class Foreign(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.lm_head = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    with pytest.raises(InvalidArgumentError, match="does not attend through transformers' attention interface"):
        LLaDASampler(Foreign(), cache=PrefixCache(), spec=spec_of(model))


def test_the_swap_for_dkv_cache_is_llada_with_a_delayed_cache():
    model = llada()
    torch.manual_seed(1)
    prompt = torch.randint(MASK, (3, 6))
    settings = {"steps": 6, "gen_length": 12, "block_length": 6, "mask_id": MASK}
    plain = llada_swap.generate(model, prompt, **settings)
    assert torch.equal(dkv_cache.generate(model, None, prompt, **settings), plain)
    reloaded = dkv_cache.generate(model, None, prompt, enable_cache=True, cache_reloading_step=1, **settings)
    assert torch.equal(reloaded, plain), "nothing is kept from one forward to the next"
    cached = dkv_cache.generate(model, None, prompt, enable_cache=True, cache_reloading_step=4, **settings)
    sampler = LLaDASampler(
        model, cache=DelayedCache(4), spec=ModelSpec(mask_id=MASK, hidden="model", lm_head="lm_head")
    )
    expected = sampler.generate(prompt, max_new_tokens=12, block_length=6, steps=6)
    assert torch.equal(cached, expected.sequences)
    assert expected.positions.sum() < 3 * 6 * 18
    with pytest.raises(InvalidArgumentError, match="cfg_scale must be 0 with enable_cache=True"):
        dkv_cache.generate(model, None, prompt, enable_cache=True, cfg_scale=1.0, **settings)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]] * 3)
    with pytest.raises(InvalidArgumentError, match="pad the prompts on the left"):
        dkv_cache.generate(model, None, prompt, enable_cache=True, attention_mask=mask, **settings)
