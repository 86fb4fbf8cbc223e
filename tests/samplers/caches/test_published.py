"""Caches on stand-ins of published model code, which attends by itself."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from published.llada import FusedLLaDA, LLaDAModelLM, LlavaLladaForMaskedDiffusion, llada_from
from published.llada2 import LLaDA2MoeAttention, LLaDA2MoeModelLM, StrictLLaDA2
from published.llada_llama import LLaDAAttention, LLaDAMoEAttention, LLaDAMoEModelLM, LlavaLLaDAModelLM
from published.llama import (
    DreamAttention,
    DreamModel,
    DreamSdpaAttention,
    DroppingModel,
    FastDream,
    LlamaAttention,
    SDARForCausalLM,
)
from published.parts import EOS, MASK, Norm, V, seeded, take

from dlm_kernels import InvalidArgumentError
from dlm_samplers import (
    BlockCache,
    DelayedCache,
    DreamSampler,
    DualCache,
    FeatureCache,
    FixedQuota,
    LLaDASampler,
    LowConfidenceDynamic,
    ModelSpec,
    PrefixCache,
    SparseCache,
    SuffixWindow,
    Threshold,
    accelerate,
    describe,
)
from dlm_samplers.caches.attention import Window, window_attention
from dlm_samplers.compat import dkv_cache, fast_dllm
from dlm_samplers.models import Adapter
from dlm_samplers.models.own_attention import own_attention

MODELS = {
    "LLaDA": lambda: seeded(LLaDAModelLM, 0),
    "LLaDA, grouped": lambda: seeded(lambda: LLaDAModelLM(effective_n_kv_heads=2), 1),
    "LLaDA, fused": lambda: seeded(FusedLLaDA, 2),
    "LLaDA, half rotary": lambda: seeded(lambda: LLaDAModelLM(rope_full_precision=False), 3),
    "LLaDA, LaViDa's": lambda: seeded(LlavaLladaForMaskedDiffusion, 0).get_model(),
    "LLaDA-V": lambda: seeded(LlavaLLaDAModelLM, 4),
    "LLaDA-MoE": lambda: seeded(LLaDAMoEModelLM, 5),
    "Dream": lambda: seeded(DreamModel, 4),
    "Dream, Fast-dLLM's": lambda: seeded(FastDream, 4),
    "LLaDA2": lambda: seeded(LLaDA2MoeModelLM, 5),
    "LLaDA2, strict": lambda: seeded(StrictLLaDA2, 5),
    "SDAR": lambda: seeded(SDARForCausalLM, 6),
}
BIDIRECTIONAL = [name for name in MODELS if not name.startswith(("LLaDA2", "SDAR"))]
BLOCK_CAUSAL = ["LLaDA2", "LLaDA2, strict", "SDAR"]
APPROXIMATE = [
    PrefixCache(),
    DualCache(),
    DelayedCache(refresh=3),
    SuffixWindow(window=9, inner=DualCache()),
    SparseCache(keep_ratio=0.1, delay=0, kernel=1),
    FeatureCache(prompt_interval=6, gen_interval=3),
]


def adapter_of(model):
    return Adapter(model, describe(model).require_spec())


def sampler_of(model, **parts):
    kind = DreamSampler if describe(model).spec.logit_shift else LLaDASampler
    return kind(model, **{"policy": Threshold(0.15), **parts})


def prompts(rows=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 14, (rows,), generator=generator).tolist()
    return [torch.randint(MASK, (n,), generator=generator) for n in lengths]


def whole_window(columns, adapter, store, rows=None, batch=None):
    """A window of `columns` [b, n] of canvases as long as these that attends as the model does."""
    length = int(columns.max()) + 1
    seen = torch.ones(len(columns), 1, length, dtype=torch.bool)
    if (block := adapter.spec.block_length) is not None:
        seen = torch.arange(length) // block <= (columns // block)[:, :, None]
    return Window(columns, seen, store, rows, len(columns), length, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_window_of_all_columns_is_the_plain_forward(name, dtype):
    """In any order. Canvases are longer than LLaDA's tables are at first."""
    model = MODELS[name]().to(dtype)
    adapter = adapter_of(model)
    tokens = torch.randint(V, (3, 20), generator=torch.Generator().manual_seed(7))
    plain = adapter.hidden(tokens, None)
    logits = adapter.forward(tokens, None)
    columns = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(row)) for row in range(3)])
    with window_attention(adapter):
        states = adapter.window(tokens.gather(1, columns), whole_window(columns, adapter, {}))
    back = torch.empty_like(states).scatter(1, columns[..., None].expand_as(states), states)
    tolerance = 2e-5 if dtype == torch.float32 else 0.15
    assert (back - plain).abs().max() <= tolerance * plain.abs().max()
    assert (adapter.apply_head(plain) - logits).abs().max() <= 1e-5 * logits.abs().max()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_kept_keys_stand_in_for_columns_that_are_not_computed(name):
    """Tokens unchanged, so part of the columns after all of them says the same; and no more heads are kept than there are."""
    model = MODELS[name]()
    adapter, store = adapter_of(model), {}
    tokens = torch.randint(V, (2, 12), generator=torch.Generator().manual_seed(7))
    every, some = torch.arange(12).expand(2, 12), torch.tensor([[3, 9, 4], [0, 11, 11]])
    with window_attention(adapter):
        plain = adapter.window(tokens, whole_window(every, adapter, store))
        seen = torch.ones(2, 3, 12, dtype=torch.bool)
        if (block := adapter.spec.block_length) is not None:
            seen = torch.arange(12) // block <= (some // block)[:, :, None]
        states = adapter.window(tokens.gather(1, some), Window(some, seen, store, None, 2, seen.shape[-1], False))
    expected = plain.gather(1, some[..., None].expand_as(states))
    assert (states - expected).abs().max() <= 2e-5 * plain.abs().max()
    heads = 4 if name in ("LLaDA", "LLaDA, fused", "LLaDA, half rotary", "LLaDA, LaViDa's") else 2
    assert {value.shape for value in store.values()} == {(2, 12, heads, 8)}
    assert len(store) == 2 * 3


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_a_cache_that_keeps_nothing_changes_nothing(name):
    model = MODELS[name]()
    budgets = [3, 9, 14, 0, 8, 20, 5]
    settings = {"block_length": 6, "temperature": 0.8, "seed": 2}
    plain = sampler_of(model)
    alone = [
        plain.generate([prompt], max_new_tokens=new, request_ids=[row], **settings)
        for row, (prompt, new) in enumerate(zip(prompts(7), budgets, strict=True))
    ]
    settings |= {"max_new_tokens": budgets, "batch_size": 3}
    fused = {"value": lambda block, x: block.att_proj(block.attn_norm(x)).split(block.fused_dims, -1)[2]}
    feature = FeatureCache(prompt_interval=1, **(fused if name == "LLaDA, fused" else {}))
    samplers = [
        sampler_of(model, cache=cache)
        for cache in (DelayedCache(refresh=1), feature, SuffixWindow(window=100, scale=100.0))
    ]
    if plain.spec.attention_mask == "none":
        with pytest.raises(InvalidArgumentError, match="rows of one length at a time, or with a cache"):
            plain.generate(prompts(7), **settings)
    else:
        samplers.append(plain)
    for sampler in samplers:
        out = sampler.generate(prompts(7), **settings)
        for row, one in enumerate(alone):
            assert torch.equal(out.sequences[row, : one.sequences.shape[1]], one.sequences[0])
        assert out.nfe.tolist() == [int(one.nfe) for one in alone]


@pytest.mark.parametrize("name", BLOCK_CAUSAL)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_block_cache_changes_nothing(name, temperature):
    model = MODELS[name]()
    settings = {"max_new_tokens": [3, 9, 14, 0, 8, 20, 5], "temperature": temperature, "seed": 2}
    parts = {"policy": LowConfidenceDynamic(0.3)}
    plain = sampler_of(model, **parts).generate(prompts(7), **settings)
    for batch_size in (None, 1, 3):
        cached = sampler_of(model, cache=BlockCache(), **parts).generate(prompts(7), batch_size=batch_size, **settings)
        assert torch.equal(cached.sequences, plain.sequences)
        assert torch.equal(cached.nfe, plain.nfe)
        assert cached.positions.sum() < plain.positions.sum() / 2


@pytest.mark.parametrize("cache", APPROXIMATE, ids=str)
@pytest.mark.parametrize("heads", [4, 2])
def test_a_cache_says_on_lladas_code_what_it_says_by_hand(cache, heads):
    pytest.importorskip("transformers")
    from by_hand import SHAPE, threshold_by_hand

    from dlm_benches.architectures import LLaDAStyleConfig, LLaDAStyleModel

    differ = 0
    for seed in range(3):
        torch.manual_seed(seed)
        style = LLaDAStyleModel(LLaDAStyleConfig(**SHAPE, num_key_value_heads=heads)).eval()
        model, asked = llada_from(style), prompts(5, seed)
        budgets = [5 + 3 * row for row in range(len(asked))]
        settings = {"max_new_tokens": budgets, "block_length": 8}
        out = sampler_of(model, cache=cache).generate(asked, batch_size=3, **settings)
        differ += int((sampler_of(model).generate(asked, **settings).sequences != out.sequences).sum())
        for row, (prompt, new) in enumerate(zip(asked, budgets, strict=True)):
            tokens, forwards, computed = threshold_by_hand(style, prompt, new, 8, 0.15, cache, row)
            assert torch.equal(out.sequences[row, : len(tokens)], tokens)
            assert (out.nfe[row], out.positions[row]) == (forwards, computed)
    assert differ > 0, "the cache approximates nothing here, so the test shows nothing"


@pytest.mark.parametrize("name", ["Dream", "SDAR"])
def test_a_cache_says_what_it_says_on_the_same_weights_behind_the_interface(name):
    pytest.importorskip("transformers")
    from by_hand import SHAPE

    from dlm_benches.architectures import DreamStyleConfig, DreamStyleModel, SDARStyleConfig, SDARStyleModel

    torch.manual_seed(3)
    if name == "Dream":
        style = DreamStyleModel(DreamStyleConfig(**SHAPE)).eval()
        model, caches = DreamModel(), [PrefixCache(), DualCache(), DelayedCache(3), FeatureCache(6, 3)]
    else:
        style = SDARStyleModel(SDARStyleConfig(**SHAPE)).eval()
        model, caches = SDARForCausalLM(), [BlockCache()]
    take(model, style.state_dict())
    spec = describe(model).require_spec()
    settings = {"max_new_tokens": [3, 9, 14, 0, 8, 20, 5], "block_length": 4}
    kind = DreamSampler if spec.logit_shift else LLaDASampler
    for cache in caches:
        parts = {"policy": Threshold(0.3), "cache": cache}
        mine = sampler_of(model, **parts).generate(prompts(7), batch_size=3, **settings)
        other = kind(style, spec=spec, **parts).generate(prompts(7), batch_size=3, **settings)
        assert torch.equal(mine.sequences, other.sequences)
        assert torch.equal(mine.positions, other.positions)


@pytest.mark.parametrize("cache", APPROXIMATE, ids=str)
def test_bf16(cache):
    """A row says the same in any batch of caches in bf16, up to ties; here there are none."""
    model = MODELS["LLaDA, grouped"]().to(torch.bfloat16)
    out = sampler_of(model, cache=cache).generate(prompts(4), max_new_tokens=12, block_length=4)
    assert not (out.sequences == MASK).any()


def state_of(model):
    """What a use could leave behind."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_always_called")
    return [(sorted(vars(m)), [len(getattr(m, name)) for name in hooks]) for m in model.modules()]


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_what_it_was_even_after_an_error(name):
    model = MODELS[name]()
    spec = describe(model).require_spec()
    adapter, before = Adapter(model, spec), state_of(model)
    tokens = torch.randint(V, (2, 16), generator=torch.Generator().manual_seed(7))
    plain = adapter.forward(tokens, None)
    cache = BlockCache() if spec.block_length else FeatureCache(3) if "fused" not in name else PrefixCache()
    sampler = sampler_of(model, cache=cache)
    whole = sampler.generate(prompts(3), max_new_tokens=8)
    assert state_of(model) == before

    def stop(*_):
        assert state_of(model) != before  # inside a generation it is another
        assert torch.equal(adapter.forward(tokens, None), plain)  # and says what it always says
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        sampler.generate(prompts(3), max_new_tokens=8, callback_on_step_end=stop)
    assert state_of(model) == before
    broken = [module for module in model.modules() if isinstance(module, Norm)][2]

    def fail(x):
        raise RuntimeError("inside a forward")

    broken.forward = fail
    with pytest.raises(RuntimeError, match="inside a forward"):
        sampler.generate(prompts(3), max_new_tokens=8)
    del broken.forward
    assert state_of(model) == before
    assert torch.equal(adapter.forward(tokens, None), plain)
    assert torch.equal(sampler.generate(prompts(3), max_new_tokens=8).sequences, whole.sequences)


def test_lladas_head_sees_the_positions_that_may_be_committed_alone():
    model = MODELS["LLaDA"]()
    spec = describe(model).require_spec()
    assert (spec.hidden, spec.hidden_after) == ("model", "model.transformer.ln_f")
    assert spec.lm_head == "model.transformer.ff_out"
    model.model.heads = 0
    mine = LLaDASampler(model, policy=Threshold(0.3)).generate(prompts(5), max_new_tokens=12, block_length=4)
    assert model.model.heads == 0
    bare = ModelSpec(MASK, EOS, V)
    plain = LLaDASampler(model, policy=Threshold(0.3), spec=bare).generate(
        prompts(5), max_new_tokens=12, block_length=4
    )
    assert model.model.heads > 0
    assert torch.equal(mine.sequences, plain.sequences)


@pytest.mark.parametrize("flag", ["scale_logits", "weight_tying"])
def test_logits_that_are_more_than_the_heads_product_are_left_to_the_model(flag):
    model = seeded(lambda: LLaDAModelLM(**{flag: True}), 0)
    found = describe(model)
    assert found.spec.hidden is None
    assert flag in str(found)
    LLaDASampler(model).generate(prompts(2), max_new_tokens=4)
    with pytest.raises(InvalidArgumentError, match="PrefixCache scores hidden states"):
        LLaDASampler(model, cache=PrefixCache())


def test_attention_that_cannot_be_answered_is_refused():
    eager = seeded(lambda: DreamModel(attention=DreamAttention), 0)
    with pytest.raises(
        InvalidArgumentError, match=r'DreamAttention does not attend through .*attn_implementation="sdpa"'
    ):
        DreamSampler(eager, cache=PrefixCache())
    for kind, attention in ((LLaDAMoEModelLM, LLaDAMoEAttention), (LlavaLLaDAModelLM, LLaDAAttention)):
        eager = seeded(lambda kind=kind, attention=attention: kind(attention=attention), 0)
        with pytest.raises(InvalidArgumentError, match=f"{attention.__name__} does not attend through"):
            LLaDASampler(eager, cache=PrefixCache())
    eager = seeded(lambda: LLaDA2MoeModelLM(attention=LLaDA2MoeAttention), 0)
    with pytest.raises(InvalidArgumentError, match="LLaDA2MoeAttention does not attend through"):
        LLaDASampler(eager, cache=BlockCache())
    eager._supports_attention_backend = True  # later code of that name, taken at its word
    assert not own_attention(eager)
    flash = MODELS["LLaDA"]()
    flash.model.transformer.blocks[1].flash_attn_func = print
    with pytest.raises(InvalidArgumentError, match=r"LLaDALlamaBlock .* with flash_attention=False in its config"):
        LLaDASampler(flash, cache=PrefixCache())
    LLaDASampler(flash)
    late = MODELS["LLaDA"]()  # what only its forward shows
    sampler = LLaDASampler(late, cache=PrefixCache())
    late.model.transformer.blocks[1].flash_attn_func = lambda q, k, v: v
    with pytest.raises(InvalidArgumentError, match="LLaDALlamaBlock does not attend through"):
        sampler.generate(prompts(2), max_new_tokens=4)
    twice = MODELS["Dream"]()
    attention = twice.model.layers[0].self_attn
    attended = attention.attended
    attention.attended = lambda *args: attended(*args) + attended(*args)
    with pytest.raises(InvalidArgumentError, match=r"DreamSdpaAttention calls .* 2 times a forward"):
        DreamSampler(twice, cache=PrefixCache()).generate(prompts(2), max_new_tokens=4)


class MyAttention(LlamaAttention):
    bias = True
    forward, attended = DreamAttention.forward, DreamSdpaAttention.attended


class Mine(DreamModel):
    """Unknown code."""


def unknown():
    model = seeded(lambda: Mine(attention=MyAttention), 0)
    return model, describe(model).require_spec()


def test_unknown_code_is_refused_until_its_attention_is_named():
    model, spec = unknown()
    with pytest.raises(InvalidArgumentError, match=r"none of its modules is published code .* attention=\.\.\."):
        DreamSampler(model, cache=PrefixCache(), spec=spec)
    named = replace(spec, attention="MyAttention")
    every = DreamSampler(model, policy=Threshold(0.3), cache=DelayedCache(refresh=1), spec=named)
    plain = DreamSampler(model, policy=Threshold(0.3), spec=spec)
    settings = {"max_new_tokens": 9, "block_length": 3}
    assert torch.equal(
        every.generate(prompts(4), **settings).sequences, plain.generate(prompts(4), **settings).sequences
    )
    with pytest.raises(InvalidArgumentError, match=r"spec.attention = 'Other': Mine has no module of that class"):
        DreamSampler(model, cache=PrefixCache(), spec=replace(spec, attention="Other"))


def test_a_model_that_takes_no_positions_or_drops_them_is_refused():
    model, spec = unknown()
    named = replace(spec, attention="MyAttention", position_ids=None)
    DreamSampler(model, cache=PrefixCache(), spec=named)
    model.model.__class__ = DroppingModel
    before = state_of(model)
    with pytest.raises(InvalidArgumentError, match="Mine takes position ids and gives the same states at any"):
        DreamSampler(model, cache=PrefixCache(), spec=named)
    assert state_of(model) == before
    model.model.forward = lambda input_ids, attention_mask=None, **kwargs: None
    with pytest.raises(InvalidArgumentError, match="need positions, and DroppingModel takes no position_ids"):
        DreamSampler(model, cache=PrefixCache(), spec=named)


def test_a_model_that_says_it_uses_the_interface_and_does_not_is_found_out():
    model, spec = unknown()
    model._supports_attention_backend = True
    model.config._attn_implementation = "sdpa"
    forward = model.model.forward
    model.model.forward = lambda *args, dlm_window=None, **kwargs: forward(*args, **kwargs)
    sampler = DreamSampler(model, cache=PrefixCache(), spec=spec)
    with pytest.raises(InvalidArgumentError, match="Mine attends past the cache"):
        sampler.generate(prompts(2), max_new_tokens=4)


@pytest.mark.parametrize("name", ["LLaDA", "Dream"])
def test_a_sampler_inside_a_sampler_on_the_same_model(name):
    """Other users of a model neither see each other's windows nor take each other's interception away."""
    model = MODELS[name]()
    before, sampler = state_of(model), sampler_of(model, cache=PrefixCache())
    settings = {"max_new_tokens": 12, "block_length": 4}
    alone, inside = sampler.generate(prompts(3), **settings), []

    def nest(_, step, __):
        if step == 1:
            inside.append(sampler_of(model, cache=DualCache()).generate(prompts(2), **settings).sequences)

    again = sampler.generate(prompts(3), callback_on_step_end=nest, **settings)
    assert torch.equal(again.sequences, alone.sequences)
    expected = sampler_of(model, cache=DualCache()).generate(prompts(2), **settings).sequences
    assert inside
    assert torch.equal(inside[0], expected)
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda rows: sampler.generate(prompts(rows), **settings).sequences, [1, 2, 3, 4] * 3))
    for rows, found in zip([1, 2, 3, 4] * 3, several, strict=True):
        assert torch.equal(found, sampler.generate(prompts(rows), **settings).sequences)
    assert state_of(model) == before


@pytest.mark.parametrize("name", ["LLaDA", "Dream"])
def test_layers_that_are_compiled_in_place(name):
    model, settings = MODELS[name](), {"max_new_tokens": 12, "block_length": 4}
    expected = sampler_of(model, cache=PrefixCache()).generate(prompts(3), **settings).sequences
    layers = model.model.transformer.blocks if name == "LLaDA" else model.model.layers
    for layer in layers:
        layer.compile(backend="eager")
    tokens = torch.arange(9)[None]
    plain = model(tokens).logits
    assert torch.equal(sampler_of(model, cache=PrefixCache()).generate(prompts(3), **settings).sequences, expected)
    assert torch.equal(model(tokens).logits, plain)


def test_one_line():
    model = MODELS["LLaDA"]()
    before = state_of(model)
    asked = torch.arange(6)[None]
    sampler = LLaDASampler(model, policy=Threshold(0.3), cache=PrefixCache())
    expected = sampler.generate(asked, max_new_tokens=12, block_length=4)
    with accelerate(model, policy=Threshold(0.3), cache=PrefixCache()):
        out = model.generate(asked, max_new_tokens=12, block_length=4, return_dict_in_generate=True)
    assert torch.equal(out.sequences, expected.sequences)
    assert torch.equal(out.positions, expected.positions)
    assert state_of(model) == before


@torch.no_grad()
def test_another_threads_forward_is_whole_while_one_ends_at_the_norm_and_sees_a_window():
    model = MODELS["LLaDA"]()
    adapter, tokens, main, beside = adapter_of(model), torch.arange(9)[None], threading.get_ident(), []
    plain, states = model(tokens).logits, adapter.hidden(tokens, None)

    def other(*_):
        if threading.get_ident() == main:
            with ThreadPoolExecutor(1) as pool:
                beside.append(pool.submit(model, tokens).result().logits)

    model.model.transformer.blocks[1].register_forward_pre_hook(other)
    with window_attention(adapter):
        assert torch.equal(adapter.hidden(tokens, None), states)
        adapter.window(tokens, whole_window(torch.arange(9)[None], adapter, {}))
    assert len(beside) == 2
    assert all(torch.equal(logits, plain) for logits in beside)


def test_the_swaps_for_fast_dllm_and_dkv_cache_take_lladas_code_as_it_is():
    model, prompt = MODELS["LLaDA"](), torch.arange(12).view(2, 6)
    spec = replace(describe(model).require_spec(), eos_id=None)
    settings = {"gen_length": 12, "block_length": 6, "mask_id": MASK}
    for swap, cache in (
        (lambda **kw: fast_dllm.generate_with_prefix_cache(model, prompt, threshold=0.3, **kw)[0], PrefixCache()),
        (lambda **kw: fast_dllm.generate_with_dual_cache(model, prompt, threshold=0.3, **kw)[0], DualCache()),
        (lambda **kw: dkv_cache.generate(model, None, prompt, enable_cache=True, cache_reloading_step=4, **kw), None),
    ):
        policy = FixedQuota() if cache is None else Threshold(0.3)
        sampler = LLaDASampler(model, spec=spec, policy=policy, cache=cache or DelayedCache(4))
        steps = {"steps": 6} if cache is None else {}
        expected = sampler.generate(prompt, max_new_tokens=12, block_length=6, **steps).sequences
        assert torch.equal(swap(steps=6, **settings), expected)
