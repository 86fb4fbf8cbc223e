"""Samplers on models with int8 and bf16 weights, and LM heads that are more than a matrix."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from dlm_benches.tiny import vocab
from dlm_benches.tiny.load import load
from dlm_benches.tiny.tasks import TASKS
from dlm_samplers import (
    DraftVerify,
    EndOfText,
    Factor,
    FixedQuota,
    KLStable,
    LLaDASampler,
    ModelSpec,
    PrefixCache,
    ReMDM,
    ShadowVerify,
    Threshold,
    probe,
)
from dlm_samplers.models import Adapter

LEAN = {"hidden": "hidden", "lm_head": "lm_head"}
pytestmark = pytest.mark.usefixtures("one_thread")


def torch_int8(model):
    """Weights and activations in int8, torch's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # announces that torchao follows it
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def torchao_int8(model):
    """Weights alone in int8, torchao's."""
    quantization = pytest.importorskip("torchao.quantization")
    model = copy.deepcopy(model)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def bf16(model):
    return copy.deepcopy(model).bfloat16()


KINDS = {"torch int8": torch_int8, "torchao int8": torchao_int8, "bf16": bf16}


@pytest.fixture(scope="module")
def model():
    return load("reasoning")


@pytest.fixture(scope="module", params=KINDS)
def small(request, model):
    """The model in smaller numbers, and whether its head is still a matrix."""
    return KINDS[request.param](model), request.param == "bf16"


def questions(each=3):
    rng = np.random.default_rng(5)
    items = [item for name in ("reverse", "addition", "copy") for item in TASKS[name].sample(rng, each)]
    return items, [item.prompt for item in items]


def right(items, out):
    return [TASKS[i.task].check(i.prompt, c.tolist()) for i, c in zip(items, out.completions, strict=True)]


def quietly(model, **parts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return LLaDASampler(model, **parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"policy": FixedQuota()},
        {"policy": Threshold(0.9)},
        {"policy": Factor(1.0)},
        {"policy": KLStable()},
        {"remask": ReMDM("cap")},
        {"policy": FixedQuota("random", tokens_per_step=1), "verify": DraftVerify(4)},
    ],
    ids=lambda parts: " ".join(str(part) for part in parts.values()),
)
@pytest.mark.parametrize("lean", [False, True])
def test_questions_that_the_model_answers_are_answered(small, parts, lean):
    items, prompts = questions()
    spec = ModelSpec.of(small[0], **(LEAN if lean else {}))
    stopping = [] if "remask" in parts else [EndOfText()]
    out = quietly(small[0], spec=spec, stopping=stopping, **parts).generate(prompts, max_new_tokens=32)
    assert bool(out.finished.all())
    assert not bool((out.sequences == vocab.MASK).any())
    assert sum(right(items, out)) >= len(items) - 2


def test_a_verifier_that_shows_the_model_more_than_a_canvas_works(small):
    items, prompts = questions()
    spec = ModelSpec.of(small[0], any_attention=True, position_ids="position_ids")
    out = LLaDASampler(small[0], remask=ShadowVerify(), spec=spec).generate(prompts, max_new_tokens=32)
    assert sum(right(items, out)) >= len(items) - 2


def test_a_quantised_head_is_announced_and_the_models_own_logits_are_used(small):
    model, is_matrix = small
    spec = ModelSpec.of(model, **LEAN)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lean = LLaDASampler(model, spec=spec, policy=Threshold(0.9))
    assert [str(w.message).split(" is a ")[0] for w in said] == [] if is_matrix else ["spec.lm_head = 'lm_head'"]
    _, prompts = questions()
    plain = LLaDASampler(model, policy=Threshold(0.9)).generate(prompts, max_new_tokens=32)
    out = lean.generate(prompts, max_new_tokens=32)
    if not is_matrix:  # the same call of the model; a matrix gives logits rounded otherwise
        assert torch.equal(out.sequences, plain.sequences)
        assert torch.equal(out.nfe, plain.nfe)


def test_a_matrix_is_multiplied_by_the_kernel_and_the_model_never_called(model):
    adapter = Adapter(model, ModelSpec.of(model, **LEAN))
    assert adapter.head is not None
    assert adapter.head.weight is model.lm_head.weight


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(head):
    head.register_forward_hook(lambda module, args, output: output + 1)
    return head


def replaced(head):
    head.forward = lambda x: x @ head.weight.T * 3
    return head


@pytest.mark.parametrize("more", [Scaled, lambda *a: hooked(nn.Linear(*a)), lambda *a: replaced(nn.Linear(*a))])
def test_a_head_that_does_more_than_multiply_is_called(model, more):
    other = copy.deepcopy(model)
    other.lm_head = more(128, vocab.SIZE)
    other.requires_grad_(False)
    spec = ModelSpec.of(other, **LEAN)
    with pytest.warns(RuntimeWarning, match="does more than multiply"):
        lean = LLaDASampler(other, spec=spec, policy=Factor(1.0))
    ids = [vocab.encode("Sqwerty=")]
    want = LLaDASampler(other, policy=Factor(1.0)).generate(ids, max_new_tokens=16)
    assert torch.equal(lean.generate(ids, max_new_tokens=16).sequences, want.sequences)


@pytest.mark.parametrize("kind", ["torch int8", "torchao int8"])
def test_a_cache_works_with_a_quantised_head(kind):
    small = KINDS[kind](pytest.importorskip("dlm_benches.architectures").trained("reasoning"))
    spec = ModelSpec.of(small, hidden="model", lm_head="lm_head")
    items, prompts = questions()
    # The forward that opens a block computes everything.
    out = quietly(small, spec=spec, policy=FixedQuota(), cache=PrefixCache()).generate(prompts, max_new_tokens=1)
    want = LLaDASampler(small, policy=FixedQuota()).generate(prompts, max_new_tokens=1)
    assert torch.equal(out.sequences, want.sequences)
    sampler = quietly(small, spec=spec, policy=FixedQuota(), cache=PrefixCache(), stopping=[EndOfText()])
    longer = sampler.generate(prompts, max_new_tokens=32, block_length=16)
    assert bool(longer.finished.all())
    assert sum(right(items, longer)) >= len(items) - 1


def test_weights_alone_in_int8_keep_rows_independent_of_the_batch(model):
    """torch's own int8 does not: its scale of the activations is the batch's."""
    small = torchao_int8(model)
    _, prompts = questions()
    sampler = LLaDASampler(small, policy=Threshold(0.9))
    together = sampler.generate(prompts, max_new_tokens=32)
    for row, prompt in enumerate(prompts):
        alone = sampler.generate([prompt], max_new_tokens=32)
        assert torch.equal(alone.completions[0], together.completions[row])
    assert probe(small).batch_difference < 1e-5
    assert probe(torch_int8(model), check=False).batch_difference > 1e-3


def test_the_probe_takes_the_rounding_of_bf16_for_what_it_is(model):
    found = probe(bf16(model))
    assert (found.left_padding, found.right_padding) == ("honoured", "honoured")

    class Blind(nn.Module):
        config = model.config

        def __init__(self):
            super().__init__()
            self.inner = bf16(model)

        def forward(self, input_ids, attention_mask=None):
            return self.inner(input_ids)

    assert probe(Blind(), check=False).left_padding == "ignored"
