"""The test architectures against transformers' own Llama, Qwen2 and Qwen3 with the same weights and masks."""

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
    trained,
)
from dlm_benches.tiny.load import CheckpointError, load  # noqa: E402
from dlm_samplers import DreamSampler, LLaDASampler, ModelMismatchError, ModelSpec, Threshold, probe  # noqa: E402
from dlm_samplers.models.spec import DREAM  # noqa: E402

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES = {
    "llada": (LLaDAStyleConfig, LLaDAStyleModel, "Llama", {"rope_theta": 10_000.0}),
    "dream": (DreamStyleConfig, DreamStyleModel, "Qwen2", {"rope_theta": 1_000_000.0}),
    "sdar": (SDARStyleConfig, SDARStyleModel, "Qwen3", {"rope_theta": 1_000_000.0, "head_dim": 12}),
}


def tiny(family, **more):
    config_class, model_class, *_ = FAMILIES[family]
    torch.manual_seed(0)
    return model_class(config_class(**{**SHAPE, "initializer_range": 0.3, **more})).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers_with_the_same_weights(family):
    name, extra = FAMILIES[family][2:]
    config = getattr(transformers, f"{name}Config")(
        **SHAPE, **extra, rms_norm_eps=1e-6, attn_implementation="sdpa", tie_word_embeddings=False
    )
    theirs = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    ours = tiny(family, tie_word_embeddings=False)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(96, (2, 13), generator=torch.Generator().manual_seed(1))
    column = torch.arange(13)
    see = torch.ones(13, 13, dtype=torch.bool)
    if family == "sdar":
        see = column[:, None] // 4 >= column // 4
    bias = torch.zeros(2, 1, 13, 13).masked_fill(~see, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=bias).logits
        got = ours(tokens).logits
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "expected"), [("llada", ("bidirectional", None)), ("sdar", ("block_causal", 4))])
def test_a_probe_sees_what_they_are(family, expected):
    found = probe(tiny(family), check=False)
    assert (found.attention, found.block_length) == expected
    assert found.left_padding == found.right_padding == "honoured" or family == "sdar"
    if family == "sdar":
        with pytest.raises(ModelMismatchError, match="block_causal in blocks of 4"):
            probe(tiny(family))


def test_dream_style_is_called_as_dream_is():
    model = tiny("dream")
    found = probe(model, ModelSpec(mask_id=96, vocab_size=97, **DREAM))
    assert found.attention == "bidirectional"
    assert found.left_padding == "honoured"


@pytest.mark.parametrize(("family", "sampler"), [("llada", LLaDASampler), ("dream", DreamSampler)])
def test_samplers_run_on_them_from_logits_and_from_hidden_states(family, sampler):
    model = tiny(family)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    plain = sampler(model, policy=Threshold(0.3)).generate(prompts, max_new_tokens=12)
    spec = ModelSpec.of(model, **sampler.contract, hidden="model", lm_head="lm_head")
    lean = sampler(model, policy=Threshold(0.3), spec=spec).generate(prompts, max_new_tokens=12)
    assert torch.equal(plain.sequences, lean.sequences)


def test_cached_blocks_give_the_logits_of_the_whole_canvas():
    model = tiny("sdar")
    tokens = torch.randint(96, (2, 12), generator=torch.Generator().manual_seed(2))
    cache = transformers.DynamicCache()
    with torch.no_grad():
        whole = model(tokens).logits
        for start in (0, 4, 8):
            block = tokens[:, start : start + 4]
            draft = model(block, past_key_values=cache, store_kv=False).logits
            assert cache.get_seq_length() == start
            torch.testing.assert_close(draft, whole[:, start : start + 4], rtol=1e-4, atol=1e-4)
            model(block, past_key_values=cache)
            assert cache.get_seq_length() == start + 4


@pytest.mark.parametrize("family", FAMILIES)
def test_they_save_load_and_compile(family, tmp_path):
    model = tiny(family)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(tokens).logits, model(tokens).logits)
    assert again.config.mask_token_id == 96


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="num_key_value_heads must divide"):
        LLaDAStyleConfig(num_attention_heads=4, num_key_value_heads=3)
    with pytest.raises(ValueError, match="block_length must be at least 1"):
        SDARStyleConfig(block_length=0)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        tiny("llada")()


@pytest.mark.parametrize("name", ["reasoning", "reasoning-ar", "text"])
def test_a_bundled_model_is_the_same_here(name, tmp_path):
    native, model = load(name), trained(name)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(native.config.vocab_size, (6, 40), generator=generator)
    real = torch.arange(40) >= torch.tensor([[0], [3], [17], [1], [39], [8]])
    seen = (torch.rand(6, 1, 40, 40, generator=generator) < 0.5) | torch.eye(40, dtype=torch.bool)
    with torch.no_grad():
        for mask in (None, real.long(), real.flip(1).long()):
            of = slice(None) if mask is None else mask.bool()
            assert torch.equal(model(ids, mask).logits[of], native(ids, mask).logits[of])
        places = torch.randint(40, (6, 40), generator=generator)
        assert torch.equal(model(ids, seen, position_ids=places).logits, native(ids, seen, places).logits)
        assert not torch.equal(model(ids, real.long()).logits[1, 5:], model(ids).logits[1, 5:])
        model.save_pretrained(tmp_path)
        again = LLaDAStyleModel.from_pretrained(tmp_path)
        assert torch.equal(again(ids).logits, native(ids).logits)
    assert again.config.eos_token_id == native.config.eos_token_id
    with pytest.raises(CheckpointError, match="name: expected one of"):
        trained("poetry")


def test_the_switches_change_what_they_name():
    """Every switch of a bundled model, one by one from Llama's: its parameters are there, and take part."""
    switches = {
        "norm": ("layer", "model.norm.bias"),
        "activation": ("squared_relu", None),
        "bias": (True, "model.layers.0.mlp.down_proj.bias"),
        "qkv_bias": (True, "model.layers.0.self_attn.v_proj.bias"),
        "fused_qkv": (True, "model.layers.0.self_attn.qkv_proj.weight"),
        "learned_positions": (16, "model.embed_positions.weight"),
    }
    tokens = torch.arange(10)[None]
    for name, (value, parameter) in switches.items():
        model = tiny("llada", tie_word_embeddings=False, **{name: value})
        own = dict(model.named_parameters())
        if parameter is None:
            assert not any("gate_proj" in key for key in own)
            continue
        before = model(tokens).logits.detach()
        with torch.no_grad():
            own[parameter].add_(torch.randn_like(own[parameter]))
        assert not torch.allclose(model(tokens).logits, before, atol=1e-3), name


def test_one_projection_is_the_three_side_by_side():
    three, one = tiny("llada", tie_word_embeddings=False), tiny("llada", tie_word_embeddings=False, fused_qkv=True)
    weights = three.state_dict()
    for layer in range(3):
        at = f"model.layers.{layer}.self_attn."
        weights[f"{at}qkv_proj.weight"] = torch.cat([weights.pop(f"{at}{part}_proj.weight") for part in "qkv"])
    one.load_state_dict(weights)
    tokens = torch.randint(96, (2, 13), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(one(tokens).logits, three(tokens).logits, rtol=1e-5, atol=1e-5)
