"""What all tests share: fixed seeds, and outputs that show when they were not written."""

import math

import pytest
import torch
from backends import DEVICE, backends_with

if DEVICE != "cpu":  # before the test modules make the tensors of their tables
    torch.set_default_device(DEVICE)

INTEGER_POISON = 0x55
BOOL_POISON = True


def pytest_generate_tests(metafunc):
    """A test that takes `backend` runs on every backend that can take its tensors; `fast_backend`: all but the reference.

    `OP = "<op>"` in a test's module leaves out the backends that have no kernel for it.
    """
    names = backends_with(getattr(metafunc.module, "OP", None))
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", names, indirect=True)
    if "fast_backend" in metafunc.fixturenames:
        metafunc.parametrize("fast_backend", [name for name in names if name != "reference"], indirect=True)


def _available(name):
    from dlm_kernels.dispatch import backend_status

    available, reason = backend_status(name)
    if not available:
        pytest.skip(f"backend {name}: {reason}")
    return name


@pytest.fixture
def backend(request):
    return _available(request.param)


@pytest.fixture
def fast_backend(request):
    return _available(request.param)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    """For many tiny tensors: on a busy machine threads that wait for each other take many times as long."""
    yield from threads(1)


@pytest.fixture
def two_threads():
    """Two threads, whatever the machine has; restored afterwards."""
    yield from threads(2)


def poison(tensor):
    if tensor.is_floating_point():
        return tensor.fill_(math.nan)
    return tensor.fill_(BOOL_POISON if tensor.dtype == torch.bool else INTEGER_POISON)


@pytest.fixture
def poisoned_empty(monkeypatch):
    """Fresh memory holds NaN instead of whatever was there, so that an output an op forgets to write fails its test.

    The idea is flash-linear-attention's.
    """
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _original=original, **k: poison(_original(*a, **k)))
