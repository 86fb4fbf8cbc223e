"""Caches on trained weights: through transformers' attention interface the tokens are those of the model's own windows."""

import pytest
import torch

pytest.importorskip("transformers")

from dlm_benches.architectures import trained
from dlm_benches.demo.measure import TEST_SEED, questions
from dlm_benches.samplers.caches import caches_of_tiny
from dlm_benches.tiny.load import load
from dlm_benches.tiny.tasks import TASKS
from dlm_samplers import DualCache, LLaDASampler, ModelSpec, Threshold

A_TASK = 6
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def asked():
    return [item.prompt for task in TASKS.values() for item in questions(task, A_TASK, TEST_SEED)]


def answers(model, prompts, cache, trunk="model", head="lm_head"):
    spec = ModelSpec.of(model, hidden=trunk, lm_head=head, position_ids="position_ids")
    sampler = LLaDASampler(model, policy=Threshold(0.9), cache=cache, spec=spec)
    return sampler.generate(prompts, max_new_tokens=32, block_length=8, batch_size=16)


@pytest.mark.parametrize("cache", caches_of_tiny(), ids=str)
def test_the_attention_interface_gives_the_tokens_of_native_windows(cache, asked):
    model = trained("reasoning")
    assert not hasattr(model, "takes_dlm_window")
    native = answers(load("reasoning"), asked, cache, "hidden")
    through = answers(model, asked, cache)
    assert torch.equal(through.sequences, native.sequences)
    assert torch.equal(through.nfe, native.nfe)
    assert torch.equal(through.positions, native.positions)
    assert cache is None or through.positions.sum() < through.nfe.sum() * through.sequences.shape[1], "nothing is kept"


def test_an_adapter_is_cached_like_the_weights_that_it_merges_into(asked):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    targets = ["qkv_proj", "o_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    adapted = peft.get_peft_model(trained("reasoning"), config).eval()
    inside, some = ("base_model.model.model", "base_model.model.lm_head"), asked[::A_TASK]
    kept = answers(adapted, some, DualCache(), *inside).sequences
    with adapted.disable_adapter():
        plain = answers(adapted, some, DualCache(), *inside).sequences
    assert torch.equal(plain, answers(trained("reasoning"), some, DualCache()).sequences)
    assert not torch.equal(kept, plain), "the adapter changes nothing, so the test shows nothing"
    assert torch.equal(kept, answers(adapted.merge_and_unload(), some, DualCache()).sequences)
