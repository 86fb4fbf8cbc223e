"""What a case takes of the memory, by its shape alone: one that does not fit is refused before anything is made.

Without that the kernel of the machine ends the process, or another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from dlm_benches.kernels.cases import Case
from dlm_kernels.errors import InvalidArgumentError

# Bytes at a case's worst moment in fp32, inputs and the temporaries of the hungriest candidate, for each element of tensors of
# these dimensions. Measured by torch's allocator; the tests do it again.
BYTES = {
    "score_tokens": {("rows", "vocabulary"): 27},
    "score_hidden": {("rows", "vocabulary"): 21, ("vocabulary", "dimension"): 9},
    "denoise_step_": {("batch", "length", "vocabulary"): 21},
    "select_positions": {("batch", "length"): 50},
    "commit_": {("batch", "length"): 60},
    "revoke_": {("batch", "length"): 75},
    "keyed_uniform": {("batch", "length"): 200},
    "absorbing_step_": {("batch", "length", "vocabulary"): 19},
    "uniform_step_": {("batch", "length", "vocabulary"): 61},
    "score_entropy_step_": {("batch", "length", "vocabulary"): 33},
    "nearest_embedding": {("rows", "vocabulary"): 9, ("vocabulary", "dimension"): 9},
    "gaussian_step_": {("batch", "length", "dimension"): 58},
    "rows_changed": {("batch", "length"): 18},
    "topk_kl": {("rows", "vocabulary"): 27},
    "cosine_rows": {("rows", "dimension"): 33},
    "gather_rows": {("batch", "length", "width"): 7},
    "scatter_rows_": {("batch", "length", "width"): 42},
}
BESIDE = 2**28  # the pieces that the reference works through, compilers


def needed(case: Case) -> int:
    """Bytes, about."""
    return (
        sum(size * math.prod(case.shape[d] for d in dimensions) for dimensions, size in BYTES[case.op].items()) + BESIDE
    )


def available() -> float:
    """Bytes that this process may still take without swapping; infinity where Linux does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(dict(line.split(":", 1) for line in lines)["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return math.inf
    return min(free, _left_to_container(Path("/sys/fs/cgroup")))


def _left_to_container(folder: Path) -> float:
    """By control groups of version 2, in which files that were read count until memory is short."""
    try:
        limit = int((folder / "memory.max").read_text())  # "max": none
        used = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
        return limit - used + int(dict(line.split() for line in lines)["inactive_file"])
    except (OSError, ValueError, KeyError):
        return math.inf


def check(cases: Sequence[Case]) -> None:
    """Raises InvalidArgumentError for the case that takes the most, if it does not fit."""
    largest = max(cases, key=needed)
    free = available()
    if needed(largest) > free:
        raise InvalidArgumentError(
            f"{largest.title()}: takes about {needed(largest) / 1e9:,.1f} GB with its rivals, {free / 1e9:,.1f} GB are free; "
            "give a smaller --rows or --vocab, or other ops by --op"
        )
