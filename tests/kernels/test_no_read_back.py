"""What the public functions do before their operator runs never waits for the device: nothing is copied to or from the host.

`torch.compile(fullgraph=True)` does not show it, as it traces `.item()`. Here tensors are on the "meta" device, which takes the
place of a GPU: they have no values, so reading one raises, and an operator with a result on the host stands out.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dlm_kernels as dk
from dlm_kernels import arguments

BATCH, LENGTH, VOCABULARY = 2, 5, 33
MASK = VOCABULARY - 1


class NoCopies(TorchDispatchMode):
    """Raises where an operator has a result on the host."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            assert not isinstance(tensor, torch.Tensor) or tensor.is_meta, f"{operator} on the host"
        return result


def number(value, dtype=torch.float32, *shape):
    return torch.full(shape, value, dtype=dtype)


def scoring(tensors):
    """Every argument of `score_tokens` that may be a number, as one or as tensors, some of dtypes to be converted."""
    if not tensors:
        return {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "seed": 2**63 + 1, "step": 4, "suppress_ids": [0, MASK]}
    return {
        "temperature": number(0.8, torch.float64, BATCH, 1),
        "top_k": number(5, torch.int32),
        "top_p": number(0.9),
        "seed": number(3, torch.int64, BATCH, 1),
        "step": number(4, torch.int32),
        "suppress_ids": number(MASK, torch.int64, 2),
    }


def rules(tensors):
    if not tensors:
        return {"quota": 2, "threshold": 0.9, "factor": 0.5, "entropy_bound": 0.1, "at_least": 1}
    return {
        "quota": number(2, torch.int32, BATCH),
        "threshold": number(0.9, torch.float32),
        "factor": number(0.5, torch.float64, BATCH),
        "entropy_bound": number(0.1),
        "at_least": number(1, torch.int64),
    }


def canvas():
    return number(MASK, torch.int64, BATCH, LENGTH), torch.randn(BATCH, LENGTH, VOCABULARY)


def score_tokens(tensors):
    dk.score_tokens(canvas()[1], eligible=number(True, torch.bool, BATCH, LENGTH), **scoring(tensors))


def score_hidden(tensors):
    hidden, weight, bias = torch.randn(BATCH, LENGTH, 8), torch.randn(VOCABULARY, 8), torch.randn(VOCABULARY)
    dk.score_hidden(hidden, weight, bias, eligible=number(True, torch.bool, BATCH, LENGTH), **scoring(tensors))


def select_positions(tensors):
    score = torch.rand(BATCH, LENGTH)
    dk.select_positions(score, score > 0.5, entropy=score.bfloat16(), **rules(tensors))


def commit_(tensors):
    tokens = canvas()[0]
    dk.commit_(tokens, tokens + 1, tokens > 3)


def denoise_step_(tensors):
    tokens, logits = canvas()
    dk.denoise_step_(tokens, logits, mask_id=MASK, eligible=tokens > 3, **scoring(tensors), **rules(tensors))


def denoise_step_out_(tensors):
    tokens, logits = canvas()
    out = dk.step_buffers(tokens, logits, backend="reference")
    dk.denoise_step_(tokens, logits, mask_id=MASK, out=out, **scoring(tensors), **rules(tensors))


def keyed_uniform(tensors):
    row_ids = torch.arange(6)
    dk.keyed_uniform(number(3, torch.int64, 1) if tensors else 3, row_ids, number(4, torch.int32) if tensors else 4)


def revoke_(tensors):
    tokens, logits = canvas()
    options = {"threshold": 0.9, "quota": 2, "probability": 0.5, "committed": 3, "seed": 3, "step": 4}
    if tensors:
        kinds = {float: torch.float64, int: torch.int32}
        options = {name: number(value, kinds[type(value)]) for name, value in options.items()}
    dk.revoke_(tokens, logits[..., 0], mask_id=MASK, eligible=tokens > 3, **options)


OPS = (score_tokens, score_hidden, select_positions, commit_, denoise_step_, denoise_step_out_, keyed_uniform, revoke_)


@pytest.mark.parametrize("tensors", [True, False], ids=["tensors", "numbers"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_nothing_is_copied_to_or_from_the_host(op, tensors):
    with torch.device("meta"), NoCopies():
        op(tensors)


READS = {
    "item": lambda value: value.item(),
    "int": int,
    "bool": bool,
    "tolist": lambda value: value.tolist(),
    "numpy": lambda value: value.numpy(),
    "cpu": lambda value: value.cpu(),
    "from the host": lambda value: value + torch.tensor(1, device="cpu").to(value.device),
    "nonzero": lambda value: value.nonzero(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_copy_is_seen(read, monkeypatch):
    """The test above fails for each way of reading a seed or a step."""
    checked = arguments.integers

    def reading(name, value, *rest, **bounds):
        if name == "step":
            read(value)
        return checked(name, value, *rest, **bounds)

    monkeypatch.setattr(arguments, "integers", reading)
    with pytest.raises((AssertionError, RuntimeError, TypeError), match=r"meta|host"), torch.device("meta"), NoCopies():
        denoise_step_(True)
