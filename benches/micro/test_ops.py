"""Microbenchmarks for pytest-benchmark: every op on every backend, at shapes of milliseconds. `make bench` runs them.

For a change of code on one machine: `pytest benches/micro --benchmark-autosave`, then `--benchmark-compare` after the change.
Against other ways to compute the same, and with correctness and memory: `dlm-bench kernels`.
"""

import pytest
import torch

from dlm_benches.kernels.cases import Case, Sizes, title
from dlm_benches.kernels.measure import FAMILIES, OPS, all_cases
from dlm_kernels.dispatch import BACKENDS, backend_status, devices_of, has_kernel

SIZES = Sizes(rows=[4], vocabulary=[32000], dtype=["fp32"])
LEAST = {"length": 64, "dimension": 128}  # where a case's own is larger


def moderate(case):
    shape = {name: min(size, LEAST.get(name, size)) for name, size in case.shape.items()}
    return Case(case.op, shape, case.dtype, case.inputs, case.settings)


def parameters():
    """Every case once (canvases of two lengths become one) on every backend that runs on the CPU."""
    cases = {title(vars(moderate(case))): moderate(case) for case in all_cases(OPS, SIZES)}
    for name, case in cases.items():
        for backend in BACKENDS:
            if has_kernel(case.op, backend) and "cpu" in (devices_of(backend) or ("cpu",)):
                yield pytest.param(case, backend, id=f"{name}-{backend}")


@pytest.fixture(autouse=True)
def one_thread():
    """With more, the scheduler's noise is larger than a millisecond."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("case", "backend"), parameters())
def test_op(case, backend, benchmark):
    available, reason = backend_status(backend)
    if not available:
        pytest.skip(f"backend {backend}: {reason}")
    work = FAMILIES[case.op].build(case, compile_=False)
    benchmark.group = title(vars(case))
    benchmark.extra_info |= {"backend": backend, "bytes_moved": work.traffic.bytes}
    rounds = 5 if backend == "reference" else 30  # the specification takes up to a second
    with torch.inference_mode():
        benchmark.pedantic(work.ours, args=(backend,), setup=work.restore, rounds=rounds, warmup_rounds=1, iterations=1)
