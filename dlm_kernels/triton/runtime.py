"""How the kernels are launched: shapes of the work, compile errors, recording for the resource gate, autotuning.

A row's bits must not depend on the other rows of its batch, so all that orders an fp32 sum (the block, the number of warps)
follows from the vocabulary alone; the number of rows decides only how many programs share them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.errors import TritonError
from triton.runtime.errors import InterpreterError

from dlm_kernels.errors import KernelCompilationError

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
AUTOTUNE_VARIABLE = "DLM_KERNELS_AUTOTUNE"

TILE = 4096  # elements a program holds at a time: 8 warps with 16 a thread, the most that stays within the registers
SMALLEST_BLOCK = 16
# A GPU does a row per program, even a short one: more rows a tile take more registers for what is kept per row. The interpreter
# pays per operation, not per element, and does many rows at a time.
INTERPRETED_ELEMENTS = 2**16
# Whether a program may go on with what others have stored (arrivals.py). On AMD GPUs Triton's barrier names only shared memory.
HANDS_OVER = torch.version.hip is None
CROWD = 4  # programs per multiprocessor, where nothing was measured
MULTIPROCESSORS = 132  # assumed where there is no GPU to ask: H100's


class Tiling(NamedTuple):
    """Rows of V elements in tiles [rows, block]; `tiles` of them cover a row."""

    rows: int
    block: int
    tiles: int

    @property
    def warps(self) -> int:
        return warps(self.rows * self.block)


def tiling(vocabulary: int, tile: int = TILE, most_rows: int = 1) -> Tiling:
    """Rows of that many elements in tiles of up to `tile` elements; `most_rows`: of a GPU's tile, see above."""
    block = min(tile, max(SMALLEST_BLOCK, triton.next_power_of_2(vocabulary)))
    rows = max(1, INTERPRETED_ELEMENTS // block) if INTERPRETED else min(most_rows, tile // block)
    return Tiling(rows, block, triton.cdiv(vocabulary, block))


def warps(elements: int, per_thread: int = 16) -> int:
    """Warps for a tile of so many elements, a power of two up to 16."""
    return min(16, max(1, elements // (32 * per_thread)))


def split(row_programs: int, tiles: int, crowd: int, device: torch.device) -> tuple[int, int]:
    """(programs that share a row, tiles of each): `crowd` programs per multiprocessor, if there are tiles for them."""
    wanted = triton.cdiv(crowd * multiprocessors(device), max(row_programs, 1))
    each = triton.cdiv(tiles, min(wanted, tiles))
    return triton.cdiv(tiles, each), each


@cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def strided(tensor: Tensor | None) -> tuple[Tensor, int, int] | None:
    """A [B, L] tensor as kernels take it; None stays None, a constant for the compiler."""
    return None if tensor is None else (tensor, tensor.stride(0), tensor.stride(1))


class Launch(NamedTuple):
    """One kernel with the arguments it was to be launched with."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]


_recorded: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Launches inside are noted instead of made. With tensors on the "meta" device nothing is allocated either."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, **options: Any) -> None:
    """Launches on the current stream of the first argument's device. Raises KernelCompilationError if it does not compile."""
    options |= {"num_warps": num_warps, "enable_fp_fusion": False}
    if 0 in grid:
        return
    if _recorded is not None:
        _recorded.append(Launch(kernel, arguments, options))
        return
    first = arguments[0]
    device = first[0].device if isinstance(first, tuple) else first.device
    try:
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                kernel[grid](*arguments, **options)
        else:
            kernel[grid](*arguments, **options)
    except InterpreterError:
        raise
    except (TritonError, subprocess.CalledProcessError, OSError) as error:
        raise KernelCompilationError(f"Triton kernel {kernel.__name__}: {error}") from error


def choose(
    op: str,
    vocabulary: int,
    dtype: torch.dtype,
    rows: int,
    device: torch.device,
    candidates: Sequence[str],
    measure: Callable[[str], float],
) -> str:
    """The fastest candidate by `measure` (ms), if DLM_KERNELS_AUTOTUNE=1 asks for measuring; else the first.

    Measured once per (op, V, dtype, power of two of rows, GPU) and kept on disk. Never while a CUDA graph is captured.
    """
    if os.environ.get(AUTOTUNE_VARIABLE) != "1" or device.type != "cuda":
        return candidates[0]
    bucket = triton.next_power_of_2(max(rows, 1))
    key = f"{op} V={vocabulary} {str(dtype).removeprefix('torch.')} R<={bucket} {torch.cuda.get_device_name(device)}"
    known = _load_choices()
    if known.get(key) not in candidates:
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]
        known[key] = min(candidates, key=measure)
        _save_choices(known)
    return known[key]


def _choices_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dlm_kernels" / "autotune.json"


@cache
def _load_choices() -> dict[str, str]:
    try:
        return dict(json.loads(_choices_file().read_text()))
    except (OSError, ValueError):  # absent, or written by something else
        return {}


def _save_choices(choices: dict[str, str]) -> None:
    """Best effort: where nothing can be written, every process measures."""
    path = _choices_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(choices, indent=1, sort_keys=True))
        partial.replace(path)
    except OSError:
        pass


def milliseconds(call: Callable[[], object]) -> float:
    return float(triton.testing.do_bench(call, quantiles=[0.5]))
