"""What is timed: a case is a shape, a workload its inputs with everything that computes the same from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlm_kernels.dispatch import backend_status, candidates, has_kernel
from dlm_kernels.roofline import Traffic


class Dtype(str, Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int64": torch.int64}
REFERENCE_UP_TO = 2**25  # bytes; on larger cases the specification, in fp64, takes seconds a call


@dataclass(frozen=True)
class Sizes:
    """What the command line asks for; None: the family's own choice."""

    rows: Sequence[int] | None = None
    vocabulary: Sequence[int] | None = None
    dtype: Sequence[str] | None = None


@dataclass(frozen=True)
class Case:
    """One op on one shape, dtype, kind of inputs and setting."""

    op: str
    shape: Mapping[str, int]
    dtype: str = "fp32"
    inputs: str = "random"
    settings: str = "default"

    def title(self) -> str:
        return title(vars(self))

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def itemsize(self) -> int:
        return self.torch_dtype.itemsize


def title(case: Mapping[str, Any]) -> str:
    """What identifies a case, from its fields or from a result's."""
    shape = ", ".join(f"{name} = {size:,}" for name, size in case["shape"].items())
    return f"{case['op']}: {shape}, {case['dtype']}, {case['inputs']}, {case['settings']}"


class Rival(NamedTuple):
    """Another way to compute the same."""

    run: Callable[[], Any]
    # Raises AssertionError when (our result, its result) disagree; None where the two draw from different random streams.
    agrees: Callable[[Any, Any], None] | None = None


@dataclass
class Workload:
    """A case with its inputs."""

    ours: Callable[[str | None], Any]  # backend -> result
    traffic: Traffic
    read: Tensor  # what a kernel must read, or most of it: how fast that can be read is measured beside it
    rivals: dict[str, Rival] = field(default_factory=dict)
    state: tuple[Tensor, ...] = ()  # what calls overwrite: restored, untimed, before each
    notes: dict[str, str] = field(default_factory=dict)
    # The op on a part of the inputs, to be compared with the reference where that takes seconds on all of them.
    checked: Callable[[str | None], Any] | None = None

    def __post_init__(self) -> None:
        self._saved = [tensor.clone() for tensor in self.state]

    def restore(self) -> None:
        for tensor, saved in zip(self.state, self._saved, strict=True):
            tensor.copy_(saved)

    def result(self, run: Callable[[], Any]) -> tuple[Tensor, ...]:
        """What a call returns and overwrites, from the initial state."""
        self.restore()
        returned = run()
        tensors = (returned,) if isinstance(returned, Tensor) else returned or ()
        return tuple(t.clone() for t in (*self.state, *tensors))


def assert_agree(ours: Sequence[Tensor], other: Sequence[Tensor], rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Integers and flags equal, floats close, those of half precision up to a rounding."""
    for place, (a, b) in enumerate(zip(ours, other, strict=True)):
        if a.is_floating_point():
            rounding = max(rtol, torch.finfo(a.dtype).eps)
            same = torch.allclose(a.float(), b.float(), rtol=rounding, atol=atol, equal_nan=True)
        else:
            same = torch.equal(a, b)
        assert same, f"result {place} differs"


def first_result(ours: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """For a rival that returns no statistics, or others than ours."""
    assert_agree(ours[:1], other[:1])


def ours_by_backend(op: str, traffic: Traffic, wanted: Sequence[str] | None) -> dict[str, str]:
    """{label: backend}, the automatic choice first and labelled with the op alone.

    Without a wish: every backend that is there, the reference only where it is quick or alone.
    """
    if wanted:
        return {op if len(wanted) == 1 else f"{op}, {name}": name for name in wanted if has_kernel(op, name)}
    there = [name for name in candidates(op, "cpu") if backend_status(name).available]
    if len(there) > 1 and traffic.bytes > REFERENCE_UP_TO:
        there = [name for name in there if name != "reference"]
    return {op if place == 0 else f"{op}, {name}": name for place, name in enumerate(there)}


def make_logits(shape: Sequence[int], dtype: torch.dtype, inputs: str, seed: int = 0) -> Tensor:
    """[..., V] standard normal, with one winner a row unless "gaussian".

    "peaked": the winner is 40 above the rest, as a trained model's mostly is. "mixed": about as likely as all others together,
    give or take a factor of e^3, so that confidences spread over (0, 1) as they do in the middle of a generation.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, generator=generator)
    rows = logits.view(-1, shape[-1])
    if inputs != "gaussian":
        winner = torch.randint(shape[-1], (len(rows),), generator=generator)
        height = torch.full((len(rows),), 40.0)
        if inputs == "mixed":
            height = torch.tensor(float(shape[-1])).log() + 0.5 + 3 * torch.randn(len(rows), generator=generator)
        rows[torch.arange(len(rows)), winner] += height
    return logits.to(dtype)
