"""The CUDA kernels compile for GPUs that this machine need not have: by nvcc, and by the NVRTC that users have."""

import shutil
from importlib.util import find_spec

import pytest

from dlm_kernels import KernelCompilationError
from dlm_kernels.cuda import sources

FILES = sorted(path.stem for path in (sources.folder() / "cuda").glob("*.cu"))
NVRTC_TARGET = "sm_90"
STATIC_SHARED = 48 * 1024  # bytes that a block has without asking for more

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")


@pytest.fixture(scope="module")
def nvrtc():
    if find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    from cupy_backends.cuda.libs import nvrtc

    try:
        nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f"NVRTC does not load: {error}")
    return nvrtc


@pytest.fixture
def module(nvrtc, tmp_path, monkeypatch):
    from dlm_kernels.cuda import module

    monkeypatch.setenv(module.CACHE_VARIABLE, str(tmp_path / "cache"))
    return module


def test_there_is_a_kernel_file_for_every_launch():
    from dlm_kernels.cuda import commit, denoise_step, gather_rows, keyed_uniform, revoke, scatter_rows, score_tokens
    from dlm_kernels.cuda import select_positions as select
    from dlm_kernels.cuda.module import Kernel

    modules = (commit, denoise_step, gather_rows, keyed_uniform, revoke, scatter_rows, score_tokens, select)
    kernels = [value for m in modules for value in vars(m).values() if isinstance(value, Kernel)]
    kernels += score_tokens.SCORE.values()
    assert {kernel.file for kernel in kernels} == set(FILES)
    for kernel in kernels:
        assert f"DLMK_KERNEL({kernel.name}," in sources.kernel_source(kernel.file)


@needs_nvcc
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_nvcc_compiles_every_file_within_the_limits(target):
    from dlm_benches.resources import violations
    from dlm_benches.resources_cuda import compiled_kernels

    records = list(compiled_kernels(FILES, [target]))
    assert {record.specimen for record in records} == set(FILES)
    for record in records:
        assert violations(record) == [], record
        assert record.shared <= STATIC_SHARED, record
    widths = {record.kernel: record.widest_load for record in records}
    for kernel in ("dlmk_score_fp32", "dlmk_score_bf16", "dlmk_score_fp16", "dlmk_gather_rows", "dlmk_scatter_rows"):
        assert widths[kernel] == 128, kernel


@needs_nvcc
def test_a_spill_is_an_error(tmp_path):
    """Eight blocks of 256 threads on a multiprocessor leave each thread 32 registers."""
    from dlm_benches.resources_cuda import file_kernels

    crowded = tmp_path / "score_tokens.cu"
    crowded.write_text(sources.kernel_source("score_tokens").replace("kScoreThreads, 2,", "kScoreThreads, 8,"))
    with pytest.raises(RuntimeError, match="Registers are spilled"):
        list(file_kernels(crowded, "sm_90"))


@needs_nvcc
def test_products_and_sums_are_not_contracted(tmp_path):
    """In keyed_uniform, which calls none of CUDA's functions: those have fused operations of their own."""
    from dlm_benches import resources_cuda
    from dlm_kernels.cuda.module import OPTIONS

    def fused(flags):
        out, file = tmp_path / "uniform.ptx", sources.folder() / "cuda" / "keyed_uniform.cu"
        resources_cuda.nvcc(*flags, "-I", str(sources.folder()), "-arch=sm_90", "-ptx", str(file), "-o", str(out))
        return "fma." in out.read_text()

    assert "--fmad=false" in OPTIONS
    assert not fused(resources_cuda.FLAGS)
    assert fused([flag for flag in resources_cuda.FLAGS if "fmad" not in flag]), "otherwise this test shows nothing"


@pytest.mark.parametrize("file", FILES)
def test_nvrtc_compiles_every_file(module, file):
    """What a user's machine does at first use, to machine code."""
    code = module.compile_source(file, NVRTC_TARGET)
    assert code[:4] == b"\x7fELF"
    for line in sources.kernel_source(file).splitlines():
        if line.startswith("DLMK_KERNEL("):
            assert line.removeprefix("DLMK_KERNEL(").split(",")[0].encode() in code


def test_a_file_that_does_not_compile_says_why(module, monkeypatch):
    monkeypatch.setattr(module, "kernel_source", lambda file: '#include "cuda/block.h"\nint x = nonsense;\n')
    with pytest.raises(KernelCompilationError, match=r"(?s)commit\.cu does not compile for sm_90.*nonsense"):
        module.compile_source("commit", NVRTC_TARGET)


def test_what_was_compiled_is_read_from_the_disk(module, monkeypatch):
    compiled = []
    monkeypatch.setattr(module, "compile_source", lambda file, arch: compiled.append(arch) or b"code")
    assert [module.cubin("commit", "sm_90") for _ in range(2)] == [b"code"] * 2
    module.cubin("commit", "sm_80")
    monkeypatch.setattr(module, "source_hash", lambda file: "edited")
    module.cubin("commit", "sm_90")
    assert compiled == ["sm_90", "sm_80", "sm_90"]
    assert {path.suffix for path in module.cache_folder().iterdir()} == {".cubin"}


def test_a_cache_that_cannot_be_written_is_done_without(module, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(module.CACHE_VARIABLE, str(tmp_path / "file" / "below"))
    monkeypatch.setattr(module, "compile_source", lambda file, arch: b"code")
    assert module.cubin("commit", "sm_90") == b"code"


@pytest.mark.parametrize(
    ("driver", "reason"), [(13000, ""), (13020, ""), (12080, "supports CUDA 12.8"), (0, "supports CUDA 0.0")]
)
def test_a_driver_older_than_the_compiler_is_named(nvrtc, monkeypatch, driver, reason):
    import torch
    from cupy_backends.cuda.api import runtime

    from dlm_kernels import cuda

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runtime, "driverGetVersion", lambda: driver)
    monkeypatch.setattr(nvrtc, "getVersion", lambda: (13, 0))
    available, why = cuda.available()
    assert available == (reason == "")
    assert reason in why


def test_a_missing_compiler_is_named(nvrtc, monkeypatch):
    import torch

    from dlm_kernels import cuda

    def missing():
        raise RuntimeError("libnvrtc.so.13 not found\nsearched everywhere")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nvrtc, "getVersion", missing)
    available, why = cuda.available()
    assert not available
    assert "libnvrtc.so.13 not found); pip install cupy-cuda13x nvidia-cuda-nvrtc" in why
