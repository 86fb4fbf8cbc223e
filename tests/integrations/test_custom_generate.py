"""`model.generate(custom_generate=...)` of transformers: the callable and the folder give what `accelerate` gives."""

import inspect

import pytest
import torch

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (pip install 'dlm-kernels[hf]')"
)

from transformers import (  # noqa: E402
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)

from dlm_benches.architectures import (  # noqa: E402
    LLaDAStyleConfig,
    LLaDAStyleModel,
    SDARStyleConfig,
    SDARStyleModel,
)
from dlm_kernels import InvalidArgumentError  # noqa: E402
from dlm_samplers import BlockCache, FixedQuota, LLaDASampler, Threshold, accelerate  # noqa: E402
from dlm_samplers.composition import Composition  # noqa: E402
from dlm_samplers.integrations import transformers as integration  # noqa: E402
from dlm_samplers.integrations.transformers import dlm_generate  # noqa: E402
from dlm_samplers.integrations.transformers.generate import DESCRIPTION, PARTS, SETTINGS  # noqa: E402

if not hasattr(GenerationMixin, "load_custom_generate"):
    pytest.skip(f"transformers {transformers.__version__} has no custom_generate", allow_module_level=True)

FOLDER = next(iter(integration.__path__))
MASK, EOS, PAD = 40, 3, 5
SHAPE = {
    "vocab_size": 41,
    "initializer_range": 0.35,
    "hidden_size": 32,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
PROMPTS = torch.tensor([[7, 1, 2, 9, 11], [13, 14, 15, 1, 2]])
PADDED = {"attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])}


class LLaDAModelLM(LLaDAStyleModel, GenerationMixin):
    pass


class SDARForCausalLM(SDARStyleModel, GenerationMixin):
    pass


def build(kind=LLaDAModelLM, config=LLaDAStyleConfig, eos_scale=2.0):
    torch.manual_seed(0)
    model = kind(config(**SHAPE)).eval()
    model.generation_config.pad_token_id = PAD
    with torch.no_grad():
        model.lm_head.weight[EOS] *= eos_scale
    return model


CALLS = [
    {"max_new_tokens": 9},
    {"max_new_tokens": 9, **PADDED},
    {"max_length": 12, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 3, **PADDED},
    {"max_new_tokens": 20, "do_sample": True, "num_return_sequences": 3, "seed": 1},
    {"generation_config": GenerationConfig(max_new_tokens=15, eos_token_id=[EOS, 9, 31])},
    {"max_new_tokens": 9, "policy": Threshold(0.3), "block_length": 4},
    {"max_new_tokens": 9, "policy": FixedQuota("random"), "steps": 3, "block_length": 9, "seed": 5},
    {"max_new_tokens": 6, "logits_processor": LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.9)])},
    {"max_new_tokens": 9, "stopping_criteria": [lambda ids, _, **__: torch.tensor([len(ids[0]) == 8] * len(ids))]},
    {"max_new_tokens": 9, "return_dict_in_generate": True},
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: ", ".join(call))
@pytest.mark.parametrize(
    "family", [(LLaDAModelLM, LLaDAStyleConfig), (SDARForCausalLM, SDARStyleConfig)], ids=["llada", "sdar"]
)
def test_callable_and_folder_are_accelerate(family, call):
    model = build(*family)
    if family[0] is SDARForCausalLM:  # whose blocks are its own
        call = {name: value for name, value in call.items() if name not in ("block_length", "steps")}
    parts = {name: call[name] for name in PARTS if name in call}
    with accelerate(model, **parts):
        expected = model.generate(PROMPTS, **{name: value for name, value in call.items() if name not in parts})
    called = model.generate(PROMPTS, custom_generate=dlm_generate, **call)
    loaded = model.generate(PROMPTS, custom_generate=FOLDER, trust_remote_code=True, **call)
    for got in (called, loaded):
        if call.get("return_dict_in_generate"):
            assert torch.equal(got.nfe, expected.nfe)
            got, wanted = got.sequences, expected.sequences
        else:
            wanted = expected
        assert torch.equal(got, wanted)


def test_transformers_own_processors_come_along():
    """What it makes of its arguments, but for those that the sampler has itself."""
    model = build(eos_scale=8.0)
    plain = model.generate(PROMPTS, custom_generate=dlm_generate, max_new_tokens=9)
    assert (plain[:, 5:12] == EOS).any()
    out = model.generate(PROMPTS, custom_generate=dlm_generate, max_new_tokens=9, min_new_tokens=7)
    assert not (out[:, 5:12] == EOS).any()
    assert not torch.equal(
        plain, model.generate(PROMPTS, custom_generate=dlm_generate, max_new_tokens=9, repetition_penalty=1.9)
    )


def test_streamers_reach_the_folder():
    pieces = []

    class Streamer:
        def put(self, value):
            pieces.extend(value.flatten().tolist())

        def end(self):
            pieces.append("end")

    model = build()
    out = model.generate(
        PROMPTS[:1], custom_generate=FOLDER, trust_remote_code=True, max_new_tokens=7, streamer=Streamer()
    )
    assert pieces == [*out[0].tolist(), "end"]


def test_nothing_of_the_signature_is_forgotten():
    """transformers hands over what the signature names; `generate` knows the same by these lists."""
    named = set(inspect.signature(dlm_generate).parameters)
    assert {*PARTS, *DESCRIPTION, *SETTINGS} <= named
    assert set(inspect.signature(accelerate).parameters) - {"target", *DESCRIPTION} == set(PARTS)
    assert set(inspect.signature(LLaDASampler).parameters) - {"model", *DESCRIPTION} == set(PARTS)
    assert Composition().stopping == ()


def test_what_means_nothing_is_refused():
    model = build()
    for arguments, message in (
        ({"num_beams": 3}, "num_beams"),
        ({"output_attentions": True}, "output_attentions"),
        ({"cache": BlockCache()}, "BlockCache is for block-causal models"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            model.generate(PROMPTS, custom_generate=dlm_generate, max_new_tokens=3, **arguments)
    with pytest.raises(InvalidArgumentError, match=r"unknown arguments \['speed'\]"):
        model.generate(PROMPTS, custom_generate=FOLDER, trust_remote_code=True, speed=9)
    with pytest.raises(ValueError, match="speed"):  # of transformers itself
        model.generate(PROMPTS, custom_generate=dlm_generate, speed=9)
