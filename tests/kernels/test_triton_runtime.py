"""Launches and tuning of the Triton backend, without a GPU and without the interpreter."""

import pytest
import torch

pytest.importorskip("triton")

from triton.errors import TritonError

from dlm_kernels import KernelCompilationError
from dlm_kernels.triton import runtime


class Kernel:
    """Stands for a compiled kernel; `error` is what its first launch raises."""

    __name__ = "some_kernel"

    def __init__(self, error=None):
        self.error, self.calls = error, []

    def __getitem__(self, grid):
        def run(*arguments, **options):
            if self.error:
                raise self.error
            self.calls.append((grid, options))

        return run


def test_every_launch_forbids_contraction_and_empty_ones_are_left_out():
    kernel = Kernel()
    runtime.launch(kernel, (3,), torch.zeros(1), num_warps=2, BLOCK=8)
    runtime.launch(kernel, (3, 0), torch.zeros(1), num_warps=2, BLOCK=8)
    assert kernel.calls == [((3,), {"BLOCK": 8, "num_warps": 2, "enable_fp_fusion": False})]


def test_compile_errors_are_typed_and_others_pass():
    with pytest.raises(KernelCompilationError, match=r"some_kernel.*no such instruction"):
        runtime.launch(Kernel(TritonError("no such instruction")), (1,), torch.zeros(1), num_warps=1)
    with pytest.raises(RuntimeError, match="illegal memory access") as caught:
        runtime.launch(Kernel(RuntimeError("illegal memory access")), (1,), torch.zeros(1), num_warps=1)
    assert not isinstance(caught.value, KernelCompilationError)


def test_recorded_launches_are_not_made():
    kernel = Kernel()
    with runtime.recording() as launches:
        runtime.launch(kernel, (1,), torch.zeros(1), num_warps=4)
    assert [launch.options["num_warps"] for launch in launches] == [4]
    assert kernel.calls == []


@pytest.mark.parametrize("vocabulary", [1, 61, 1000, 4097, 126464, 2**26])
@pytest.mark.parametrize("rows", [1, 32, 5000])
def test_shares_cover_every_tile_once(vocabulary, rows):
    shape = runtime.tiling(vocabulary)
    assert shape.block * (shape.tiles - 1) < vocabulary <= shape.block * shape.tiles
    assert shape.rows * shape.block <= 16 * 32 * shape.warps or shape.block == runtime.SMALLEST_BLOCK
    shares, each = runtime.split(rows, shape.tiles, 4, torch.device("cpu"))
    assert each * (shares - 1) < shape.tiles <= each * shares


@pytest.fixture
def tuning(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(runtime.AUTOTUNE_VARIABLE, "1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    runtime._load_choices.cache_clear()
    yield tmp_path
    runtime._load_choices.cache_clear()


def choose(measured, rows=30, device="cuda", times=None):
    def measure(candidate):
        measured.append(candidate)
        return (times or {"a": 2.0, "b": 1.0})[candidate]

    return runtime.choose("op", 126464, torch.bfloat16, rows, torch.device(device), ("a", "b"), measure)


def test_the_fastest_candidate_is_kept_on_disk_by_power_of_two_of_rows(tuning):
    measured = []
    assert choose(measured) == "b"
    assert choose(measured, rows=20) == "b"
    assert measured == ["a", "b"]
    runtime._load_choices.cache_clear()  # as in another process
    assert choose(measured, times={"a": 0.0, "b": 1.0}) == "b"
    assert measured == ["a", "b"]
    assert choose(measured, rows=33, times={"a": 0.0, "b": 1.0}) == "a"


def test_nothing_is_measured_unless_asked_for_or_while_a_graph_is_captured(tuning, monkeypatch):
    measured = []
    assert choose(measured, device="cpu") == "a"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose(measured) == "a"
    monkeypatch.delenv(runtime.AUTOTUNE_VARIABLE)
    assert choose(measured) == "a"
    assert measured == []


def test_a_spoilt_or_unwritable_cache_is_no_error(tuning):
    (tuning / "dlm_kernels").write_text("not a folder")
    assert choose([]) == "b"
