import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import (
    BackendUnavailableError,
    DLMKernelsError,
    InvalidArgumentError,
    KernelCompilationError,
    dispatch,
    score_tokens,
    use_backend,
)
from dlm_kernels.library import SCHEMAS

CPU = torch.device("cpu")


@pytest.fixture
def statuses(monkeypatch):
    """Sets which backends are there; the automatic choice and its warning start afresh."""

    def set_statuses(**available):
        monkeypatch.setattr(
            dispatch,
            "backend_status",
            lambda name: dispatch.BackendStatus(
                available.get(name, True), "" if available.get(name, True) else "not on this disk"
            ),
        )

    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "_ANNOUNCED", set())
    monkeypatch.setattr(dispatch, "_FAILED", {})
    dispatch._automatic.cache_clear()
    yield set_statuses
    dispatch._automatic.cache_clear()


def test_argument_beats_context_beats_environment(statuses, monkeypatch):
    statuses()
    assert dispatch.resolve("score_tokens", "auto", CPU) == "cpu"
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "numba")
    assert dispatch.resolve("score_tokens", "auto", CPU) == "numba"
    with use_backend("reference"):
        assert dispatch.resolve("score_tokens", "auto", CPU) == "reference"
        assert dispatch.resolve("score_tokens", "cpu", CPU) == "cpu"
        with use_backend("cpu"):
            assert dispatch.resolve("score_tokens", "auto", CPU) == "cpu"
        assert dispatch.resolve("score_tokens", "auto", CPU) == "reference"
    assert dispatch.resolve("score_tokens", "auto", CPU) == "numba"


def test_context_ends_with_an_error(statuses):
    statuses()
    with pytest.raises(ZeroDivisionError), use_backend("reference"):
        raise ZeroDivisionError
    assert dispatch.resolve("score_tokens", "auto", CPU) == "cpu"


def test_context_belongs_to_its_thread(statuses):
    statuses()
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(dispatch.resolve("score_tokens", "auto", CPU)))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


@pytest.mark.parametrize(
    ("absent", "runs", "lost"),
    [(("cpu",), "numba", "several times slower"), (("cpu", "numba"), "reference", "far slower")],
)
def test_automatic_choice_falls_back_with_one_warning(statuses, absent, runs, lost):
    statuses(**dict.fromkeys(absent, False))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [dispatch.resolve("score_tokens", "auto", CPU) for _ in range(3)] == [runs] * 3
    assert len(caught) == 1
    message = str(caught[0].message)
    assert runs in message
    assert lost in message
    assert "not on this disk" in message


def test_no_warning_when_the_first_choice_is_there(statuses):
    statuses()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.resolve("score_tokens", "auto", CPU) == "cpu"


def test_a_named_backend_that_is_absent_raises_with_the_reason(statuses, monkeypatch):
    statuses(cpu=False)
    for attempt in (
        lambda: dispatch.resolve("score_tokens", "cpu", CPU),
        lambda: use_backend("cpu"),
        lambda: score_tokens(torch.zeros(1, 3), backend="cpu"),
    ):
        with pytest.raises(BackendUnavailableError, match=r"cpu.*not on this disk") as caught:
            attempt()
        assert isinstance(caught.value, DLMKernelsError)
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "cpu")
    with pytest.raises(BackendUnavailableError, match="not on this disk"):
        score_tokens(torch.zeros(1, 3))


def test_unknown_names(statuses, monkeypatch):
    statuses()
    with pytest.raises(InvalidArgumentError, match="name must be one of"):
        use_backend("gpu")
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "fast")
    with pytest.raises(InvalidArgumentError, match=r"DLM_KERNELS_BACKEND must be one of .*'fast'"):
        score_tokens(torch.zeros(1, 3))


def test_backends_for_the_cpu_refuse_other_devices(statuses):
    statuses()
    assert dispatch.resolve("score_tokens", "auto", torch.device("meta")) == "reference"
    for name in ("cpu", "numba"):
        with pytest.raises(BackendUnavailableError, match=f"{name}.*cpu tensors.*meta"):
            dispatch.resolve("score_tokens", name, torch.device("meta"))


def test_reasons_for_absence():
    assert dispatch.backend_status("reference") == (True, "")
    for name in dispatch.BACKENDS:
        available, reason = dispatch.backend_status(name)
        assert available == (reason == "")


def test_a_named_backend_really_runs(backend, monkeypatch):
    """The table holds this backend's own function, and nobody else's is called."""
    logits = torch.randn(2, 9)
    wanted = score_tokens(logits, backend=backend).token
    with use_backend(backend):
        assert dispatch.resolve("score_tokens", "auto", CPU) == backend
    assert dispatch.kernel("score_tokens", backend).__module__.startswith(f"dlm_kernels.{backend}")
    for key in [key for key in dispatch._TABLE if key[1] != backend]:
        monkeypatch.delitem(dispatch._TABLE, key)
    assert_equal("token", score_tokens(logits, backend=backend).token, wanted)
    assert all(name == backend for _, name in dispatch._TABLE)


@pytest.fixture
def op_without_kernels(monkeypatch):
    """commit_ as if only the reference had it."""
    has_kernel = dispatch.has_kernel
    monkeypatch.setattr(dispatch, "has_kernel", lambda op, name: name == "reference" and has_kernel(op, name))
    monkeypatch.setattr(dispatch, "_TABLE", {})
    return "commit_"


def test_an_op_that_the_best_backend_lacks_runs_on_the_next_without_a_warning(statuses, op_without_kernels):
    statuses()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert dispatch.resolve(op_without_kernels, "auto", CPU) == "reference"


def test_an_op_that_a_named_backend_lacks_raises(statuses, op_without_kernels, monkeypatch):
    statuses()
    says = "'cpu' has no commit_ kernel yet; reference can run it"
    with pytest.raises(BackendUnavailableError, match=says):
        dispatch.resolve(op_without_kernels, "cpu", CPU)
    with pytest.raises(BackendUnavailableError, match=says), use_backend("cpu"):
        dispatch.resolve(op_without_kernels, "auto", CPU)
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "cpu")
    with pytest.raises(BackendUnavailableError, match=says):
        dispatch.resolve(op_without_kernels, "auto", CPU)


def test_on_a_gpu_ranking_prefers_cuda_and_the_rest_triton(statuses, monkeypatch):
    monkeypatch.setattr(dispatch, "has_kernel", lambda op, name: True)
    statuses()
    gpu = torch.device("cuda")
    assert dispatch.resolve("score_tokens", "auto", gpu) == "triton"
    assert dispatch.resolve("denoise_step_", "auto", gpu) == "cuda"
    statuses(cuda=False)
    dispatch._automatic.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"triton backend.*cuda: not on this disk"):
        assert dispatch.resolve("denoise_step_", "auto", gpu) == "triton"


def test_a_kernel_that_does_not_compile_is_left_out_of_the_automatic_choice_with_a_warning(statuses, monkeypatch):
    statuses()

    def broken(*arguments):
        raise KernelCompilationError("no such instruction")

    monkeypatch.setitem(dispatch._TABLE, ("score_tokens", "cpu"), broken)
    logits = torch.randn(2, 9)
    with pytest.raises(KernelCompilationError, match="no such instruction"):
        score_tokens(logits, backend="cpu")
    with pytest.raises(KernelCompilationError), use_backend("cpu"):
        score_tokens(logits)
    with pytest.warns(RuntimeWarning, match=r"numba backend.*no such instruction") as caught:
        tokens = [score_tokens(logits).token for _ in range(2)]
    assert len(caught) == 1
    assert_equal("token", tokens[1], score_tokens(logits, backend="reference").token)
    assert dispatch.resolve("select_positions", "auto", CPU) == "cpu", "only the op that failed"


def test_every_op_has_a_reference_and_a_test_file():
    for op in SCHEMAS:
        assert dispatch.has_kernel(op, "reference"), op
        stem = {"keyed_uniform": "rng"}.get(op, op.rstrip("_"))
        assert (Path(__file__).parent / f"test_{stem}.py").exists(), op


def test_import_is_light():
    code = "import sys, dlm_kernels; print([m for m in ('numba', 'dlm_kernels.cpu', 'triton') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_numba_works_where_nothing_can_be_written():
    """No cache folder can be made: every process compiles, and says so once on stderr."""
    pytest.importorskip("numba")
    code = """
import numba, torch
njit = numba.njit
def without_a_cache(*arguments, **options):
    if options.get("cache"):
        raise RuntimeError("cannot cache function: no locator available")
    return njit(*arguments, **options)
numba.njit = without_a_cache
import dlm_kernels, dlm_kernels.numba.runtime as runtime
runtime.ANNOUNCE_AFTER = 0.05
for _ in range(2):
    print(dlm_kernels.keyed_uniform(0, torch.arange(2), 0, backend="numba").tolist())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first == second
    assert result.stderr.count("compiling") == 1
