"""What `describe` says of published code whose own forward has limits, and that it holds."""

from dataclasses import replace

import pytest
import torch
from published.llada import LlavaLladaForMaskedDiffusion
from published.llada_llama import LLaDAMoEModelLM, LlavaLLaDAModel, LlavaLLaDAModelLM
from published.parts import EOS, MASK, V, seeded

from dlm_kernels import InvalidArgumentError
from dlm_samplers import LLaDASampler, ModelMismatchError, ModelSpec, UnknownModelError, describe, probe


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
