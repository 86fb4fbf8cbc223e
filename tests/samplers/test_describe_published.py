"""What `describe` says of published code whose own forward has limits, and that it holds."""

from dataclasses import replace

import pytest
import torch
from published.llada import LLaDALlamaBlock, LLaDAModelLM, LlavaLladaForMaskedDiffusion
from published.llada_llama import LLaDAMoEModelLM, LlavaLLaDAModel, LlavaLLaDAModelLM
from published.parts import EOS, MASK, V, seeded
from torch import nn

from dlm_kernels import InvalidArgumentError
from dlm_samplers import (
    DAEDAL,
    LLaDASampler,
    ModelMismatchError,
    ModelSpec,
    PrefixCache,
    Threshold,
    UnknownModelError,
    describe,
    probe,
)


def test_lavidas_trunk_is_the_model():
    outer = seeded(LlavaLladaForMaskedDiffusion, 0)
    with pytest.raises(AttributeError):  # as published: sampling goes past it
        outer(torch.tensor([[5, 6]]))
    with pytest.raises(InvalidArgumentError, match=r"LaViDa .*model\.get_model\(\)"):
        LLaDASampler(outer)
    trunk = outer.get_model()
    found = describe(trunk, mask_id=MASK, eos_id=EOS)
    assert found.family == "LaViDa's trunk"
    states = {"hidden": "forward", "lm_head": "transformer.ff_out", "hidden_after": "transformer.ln_f"}
    assert found.spec == ModelSpec(MASK, EOS, attention_mask="none", **states)
    assert "input_embeddings" in str(found)
    assert probe(trunk, ModelSpec(MASK, EOS, V, attention_mask="none", **states)).head == "agrees"
    trunk.config.scale_logits = True
    assert describe(trunk, mask_id=MASK).spec.hidden is None
    other = type("LlavaLladaModel", (LlavaLLaDAModel,), {})(LlavaLLaDAModelLM().config)  # returns states, as LLaDA-V's
    with pytest.raises(UnknownModelError):
        describe(other)


def test_what_llada_moe_makes_of_a_mask_is_found_out():
    model = seeded(LLaDAMoEModelLM, 0)
    found = describe(model)
    assert "Published code takes an attention_mask and shows it to nothing" in str(found)
    assert probe(model, found.spec).right_padding == "not asked"
    with pytest.raises(ModelMismatchError, match="attention_mask='2d' hides padding"):
        probe(model, replace(found.spec, attention_mask="2d"))


def test_llada_vs_trunk_is_called_and_makes_no_cache():
    model = seeded(LlavaLLaDAModelLM, 0)
    tokens = torch.tensor([[5, 6, 7]])
    with pytest.raises(ValueError, match="unpack"):
        model(tokens, attention_mask=torch.ones_like(tokens))
    model.model.caches = 0
    assert probe(model, describe(model).spec).head == "agrees"
    sampler = LLaDASampler(model)
    asked, settings = [[5, 6], [7, 8, 9, 10], [11]], {"max_new_tokens": 8, "block_length": 4}
    for more in ({}, {"cfg_scale": 1.0}, {"logits_processor": lambda tokens, logits: -logits}):
        out = sampler.generate(asked, **settings, **more)
        for prompt, got in zip(asked, out.completions, strict=True):
            assert torch.equal(sampler.generate([prompt], **settings, **more).completions[0], got)
    assert model.model.caches == 0


class BlindBlock(LLaDALlamaBlock):
    """As in several published copies of modeling_llada.py."""

    def _scaled_dot_product_attention(self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False):
        return super()._scaled_dot_product_attention(q, k, v, None, dropout_p, is_causal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_copy_that_ignores_its_mask_is_given_no_padding(dtype):
    """The class's name cannot tell, so it is tried, once a model, where rows differ in length."""
    ragged, settings = [[5, 6, 7], [8]], {"max_new_tokens": 4}
    honest, blind = seeded(LLaDAModelLM, 0).to(dtype), seeded(LLaDAModelLM, 0).to(dtype)
    for block in blind.model.transformer.blocks:
        block.__class__ = BlindBlock
    calls = []
    for model in (honest, blind):
        model.model.register_forward_pre_hook(lambda module, inputs: calls.append(module))
    for again in range(2):
        calls.clear()
        out = LLaDASampler(honest).generate(ragged, **settings)
        assert len(calls) == int(out.nfe.max()) + (0 if again else 2)
        with pytest.raises(
            InvalidArgumentError, match=r"LLaDAModelLM gives real positions .* its code ignores the mask"
        ):
            LLaDASampler(blind).generate(ragged, **settings)
    calls.clear()
    LLaDASampler(blind).generate([[5, 6, 7], [8, 9, 10]], **settings)
    assert len(calls) == 4
    cached = LLaDASampler(blind, cache=PrefixCache())
    alone = [cached.generate([prompt], request_ids=[row], **settings) for row, prompt in enumerate(ragged)]
    out = cached.generate(ragged, **settings)
    for one, got in zip(alone, out.completions, strict=True):
        assert torch.equal(one.completions[0], got)
    other = type("Other", (nn.Module,), {"forward": lambda self, ids, attention_mask=None: blind(ids)})()
    LLaDASampler(other, mask_id=MASK, eos_id=EOS).generate(ragged, **settings)  # of no published name: as described


def test_a_length_that_grows_makes_padding_too():
    blind = seeded(LLaDAModelLM, 0)
    for block in blind.model.transformer.blocks:
        block.__class__ = BlindBlock
    sampler = LLaDASampler(blind, policy=Threshold(0.3), length=DAEDAL(l_init=4))
    with pytest.raises(InvalidArgumentError, match="its code ignores the mask"):
        sampler.generate([[5, 6]], max_new_tokens=8)
