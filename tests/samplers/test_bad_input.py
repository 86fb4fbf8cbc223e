"""Every refusal is typed, names the argument, and comes before any work."""

from types import SimpleNamespace

import pytest
import torch
from fakes import TableModel

from dlm_kernels import InvalidArgumentError
from dlm_samplers import DreamSampler, EndOfText, EntropyBound, Factor, FixedQuota, LLaDASampler, ModelSpec, Threshold
from dlm_samplers.compat import dream, llada

PROMPT = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": PROMPT.int()}, "input_ids must be an int64"),
        ({"input_ids": PROMPT[0]}, "input_ids must be an int64"),
        ({"input_ids": [[1, 2], ["a"]]}, r"input_ids\[1\]"),
        ({"input_ids": [torch.ones(2, 2).long()]}, r"input_ids\[0\]"),
        ({"input_ids": torch.tensor([[1, 99]])}, r"input_ids\[0, 1\] = 99 is outside the vocabulary.*\[0, 23\)"),
        ({"input_ids": torch.tensor([[1, -1]])}, r"input_ids\[0, 1\] = -1"),
        ({"attention_mask": torch.ones(2, 4)}, r"attention_mask .*\[2, 3\], got shape \[2, 4\]"),
        ({"attention_mask": torch.tensor([[1, 0, 1], [1, 1, 1]])}, "padding in the middle of row 0"),
        ({"attention_mask": torch.full((2, 3), 2)}, "attention_mask must hold only 0 and 1"),
        ({"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 0]])}, "use one side"),
        ({"editable": torch.ones(2, 2, dtype=torch.bool)}, "editable"),
        ({"max_new_tokens": -1}, "max_new_tokens must be >= 0"),
        ({"max_new_tokens": [1, 2, 3]}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"block_length": 0}, "block_length must be an int >= 1"),
        ({"block_length": 2.0}, "block_length"),
        ({"steps": 0}, "steps must be an int >= 1"),
        ({"steps": 5, "max_new_tokens": 8, "block_length": 4}, "steps must be a multiple of the number of blocks, 2"),
        ({"temperature": -0.1}, "temperature must be >= 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": [1, 2, 3]}, "seed must be an int or 2 ints"),
        ({"seed": "x"}, "seed"),
        ({"request_ids": [0, -1]}, "request_ids"),
        ({"request_ids": [0]}, "request_ids"),
        ({"streamer": object()}, "streamer works for a single row"),
    ],
)
def test_generate_refuses(arguments, message):
    model = TableModel(0)
    with pytest.raises(InvalidArgumentError, match=message):
        LLaDASampler(model).generate(**{"input_ids": PROMPT, "max_new_tokens": 8, **arguments})
    assert model.calls == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Threshold(0.0), "tau must be in"),
        (lambda: Threshold(1.5), "tau"),
        (lambda: Threshold(float("nan")), "tau"),
        (lambda: Factor(0.0), "f must be above 0"),
        (lambda: EntropyBound(-1.0), "gamma"),
        (lambda: FixedQuota("best"), "order must be one of"),
        (lambda: FixedQuota(tokens_per_step=0), "tokens_per_step"),
        (lambda: FixedQuota(order_temperature=-1.0), "order_temperature"),
        (lambda: ModelSpec(mask_id=-1), "mask_id"),
        (lambda: ModelSpec(mask_id=50, vocab_size=50), "mask_id = 50 is outside the vocabulary of 50"),
        (lambda: ModelSpec(mask_id=5, logit_shift=2), "logit_shift"),
        (lambda: ModelSpec(mask_id=5, attention_mask="3d"), "attention_mask"),
        (lambda: LLaDASampler(lambda x: x), "mask_id is missing"),
        (lambda: LLaDASampler("model", mask_id=3), "model must be callable"),
        (lambda: LLaDASampler(TableModel(0), policy=0.9), "policy must be a Policy"),
        (lambda: LLaDASampler(TableModel(0), stopping=[EndOfText()]), "EndOfText needs eos_id"),
        (lambda: LLaDASampler(TableModel(0), spec=ModelSpec(mask_id=3), mask_id=3), "belong inside spec"),
    ],
)
def test_construction_refuses(build, message):
    with pytest.raises(InvalidArgumentError, match=message):
        build()


def test_steps_with_an_adaptive_policy():
    with pytest.raises(InvalidArgumentError, match="Threshold decides by itself"):
        LLaDASampler(TableModel(0), policy=Threshold(0.9)).generate(PROMPT, steps=4)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(2, 10, 23), r"expected logits \[B, L, V\] = \[2, 11, V\], got \[2, 10, 23\]"),
        (torch.zeros(2, 11), "expected logits"),
        (SimpleNamespace(scores=1), "model must return logits"),
    ],
)
def test_model_output_of_the_wrong_shape(output, message):
    with pytest.raises(InvalidArgumentError, match=message):
        LLaDASampler(lambda x: output, mask_id=22).generate(PROMPT, max_new_tokens=8)


def test_nan_logits_name_the_row():
    model = TableModel(0)

    def broken(tokens, **kwargs):
        logits = model(tokens).logits
        logits[1, 5, 2] = float("nan")
        return logits

    with pytest.raises(InvalidArgumentError, match="NaN logits in row 1"):
        LLaDASampler(broken, mask_id=22).generate(PROMPT, max_new_tokens=8)


def test_unequal_rows_on_a_model_that_ignores_padding():
    spec = ModelSpec(mask_id=22, attention_mask="none")
    with pytest.raises(InvalidArgumentError, match="cannot ignore padding"):
        LLaDASampler(TableModel(0), spec=spec).generate([[1], [1, 2]], max_new_tokens=4)
    assert LLaDASampler(TableModel(0), spec=spec).generate([[3], [1]], max_new_tokens=4).finished.all()


def test_ids_are_checked_against_the_logits_when_the_config_does_not_tell():
    model = TableModel(0)
    model.config.vocab_size = None
    with pytest.raises(InvalidArgumentError, match="outside the vocabulary"):
        DreamSampler(model).generate(torch.tensor([[99]]), max_new_tokens=4)


def test_function_swaps_refuse_what_upstream_crashes_on():
    model = TableModel(0)
    with pytest.raises(InvalidArgumentError, match="block_length must divide"):
        llada.generate(model, PROMPT, gen_length=10, block_length=4, mask_id=model.mask)
    with pytest.raises(InvalidArgumentError, match="prompt holds mask tokens"):
        llada.generate(model, torch.tensor([[1, model.mask]]), mask_id=model.mask)
    with pytest.raises(InvalidArgumentError, match="pad the prompts on the left"):
        llada.generate(model, PROMPT, torch.tensor([[1, 1, 0], [1, 1, 1]]), mask_id=model.mask)
    with pytest.raises(NotImplementedError):
        llada.generate(model, PROMPT, remasking="best", mask_id=model.mask)
    assert torch.equal(llada.generate(model, PROMPT, gen_length=0, mask_id=model.mask), PROMPT)
    with pytest.raises(InvalidArgumentError, match="unknown arguments"):
        dream.diffusion_generate(model, PROMPT, max_tokens=4)
    with pytest.raises(InvalidArgumentError, match="alg must be"):
        dream.diffusion_generate(model, PROMPT, alg="best", max_new_tokens=4)
    with pytest.raises(InvalidArgumentError, match="shorter than the prompt"):
        dream.diffusion_generate(model, PROMPT, max_length=2)
