"""Runs the CUDA kernels on the CPU: compiled by g++, every block emulated thread by thread (csrc/cuda/host_block.h).

As a pytest plugin (`-p kernels.cuda_host`) it makes `backend="cuda"` take CPU tensors, so that the op tests run on the kernels'
own lines. What it cannot show: races between the threads of a warp, the memory model of a GPU, speed.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

from dlm_kernels import dispatch
from dlm_kernels.cuda import module, score_tokens, sources

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "cuda_host"
# No contraction: as the kernels are compiled for a GPU, and as they must round.
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]
# Their number of blocks goes with the number of threads.
COUNTED_BY_THREAD = ("dlmk_finish_scores", "dlmk_commit", "dlmk_keyed_uniform")

threads = 8  # of an emulated block, at most
order = 1  # seeds the order in which the threads run
processors = 4  # of the imagined GPU; decides how rows are split


def compiler():
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


@cache
def library():
    """Compiled anew whenever a source changes."""
    text = repr([sorted(sources.headers().items()), *(sources.kernel_source(p.stem) for p in kernel_files()), FLAGS])
    name = hashlib.sha256((text + (HERE / "cuda_host.cpp").read_text()).encode()).hexdigest()[:16]
    path = BUILD / f"{name}.so"
    if not path.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        command = [compiler(), *FLAGS, "-I", str(sources.folder()), str(HERE / "cuda_host.cpp"), "-o", str(unfinished)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        os.replace(unfinished, path)
    return ctypes.CDLL(str(path))


def kernel_files():
    return sorted((sources.folder() / "cuda").glob("*.cu"))


def launch(kernel, blocks, block_threads, fields, device):
    """`module.launch`, for CPU tensors."""
    assert device.type == "cpu"
    if kernel.name not in COUNTED_BY_THREAD:
        block_threads = min(block_threads, threads)
    arguments = (ctypes.c_int64 * len(fields))(*fields)
    status = getattr(library(), kernel.name)(
        arguments, ctypes.c_int64(blocks), ctypes.c_int(block_threads), ctypes.c_uint64(order)
    )
    assert status == 0, "more threads than the kernel allows"


def install(setattr_=setattr):
    """Lets the CUDA backend take CPU tensors; `setattr_` may be monkeypatch.setattr."""
    devices_of, backend_status = dispatch.devices_of, dispatch.backend_status

    def status(name):
        return dispatch.BackendStatus(True, "") if name == "cuda" else backend_status(name)

    setattr_(dispatch, "devices_of", lambda name: ("cpu",) if name == "cuda" else devices_of(name))
    setattr_(dispatch, "backend_status", status)
    setattr_(module, "launch", launch)
    setattr_(score_tokens, "processors", lambda device: processors)


def pytest_configure(config):
    assert torch.get_num_threads()
    install()
