"""`dlm-bench gpu-check`: what needs a GPU: the op tests on its tensors, CUDA graphs, races, and times. Correctness first.

Without a GPU it says so and ends well, so that the same command can run everywhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dlm_benches.environment import environment
from dlm_benches.stats import quantile
from dlm_kernels import denoise_step_, gather_rows, revoke_, score_tokens, select_positions
from dlm_kernels.dispatch import backend_status, has_kernel

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "kernels"
# Those of ops that have GPU kernels, and the graph test. The others check the host's side or CPU backends.
FILES = (
    *("score_tokens", "score_hidden", "select_positions", "denoise_step", "step_buffers", "commit", "revoke"),
    *("absorbing_step", "uniform_step", "score_entropy_step", "gaussian_step"),
    *("nearest_embedding", "topk_kl", "cosine_rows", "rows_changed", "gather_rows", "scatter_rows"),
    "cuda_graph",
)
SANITIZED = (str(TESTS / "test_denoise_step.py"), "-k", "cuda")
BACKENDS = ("cuda", "triton", "reference")
ROUNDS, WARM_UP = 50, 10
FLUSH_BYTES = 2**28  # more than the second-level cache of any GPU in use
VOCABULARIES = (126464, 151936)


def check(out: Path, tests: bool) -> bool:
    """Tests, then times, then `out`/gpu_<name>.json. Whether the tests passed; True where there is no GPU."""
    if not torch.cuda.is_available():
        print("skipped: no GPU")
        return True
    if tests and not run_tests():
        return False
    results = [record for name, case in cases().items() for record in time_case(name, *case)]
    for record in results:
        print("{op:18} {backend:10} {rows:5} rows  {median_ms:8.4f} ms  {gb_per_s:8.1f} GB/s".format(**record))
    document = {"schema": "dlm-bench/gpu/1", "environment": environment(), "tested": tests, "results": results}
    name = re.sub(r"\W+", "_", torch.cuda.get_device_name()).lower()
    out.mkdir(parents=True, exist_ok=True)
    (out / f"gpu_{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    return True


def run_tests() -> bool:
    """Whether the op tests pass on CUDA tensors and, where compute-sanitizer is at hand, without races."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    env = {**os.environ, "DLMK_TEST_DEVICE": "cuda"}
    files = [str(TESTS / f"test_{name}.py") for name in FILES]
    if subprocess.run([*pytest, *files], env=env, cwd=ROOT).returncode != 0:
        return False
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer is not on PATH: races are not looked for")
        return True
    # PyTorch's caching allocator would hide accesses beyond a tensor's end.
    env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    return all(
        subprocess.run(
            [sanitizer, "--tool", tool, "--error-exitcode", "1", *pytest, *SANITIZED], env=env, cwd=ROOT
        ).returncode == 0
        for tool in ("memcheck", "racecheck")
    )  # fmt: skip


Case = tuple[str, int, int, Callable[[str], Any]]


def cases() -> dict[str, Case]:
    """Operator, rows, bytes that must be read, and the call, by a name."""
    listed: dict[str, Case] = {}
    for vocabulary in VOCABULARIES:
        logits = torch.randn(4, 32, vocabulary, device="cuda", dtype=torch.bfloat16) * 3
        size, mask = logits.numel() * logits.element_size(), vocabulary - 1
        for settings in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}):
            label = f"V {vocabulary} {settings or 'greedy'}"
            listed[f"score {label}"] = (
                "score_tokens", 128, size,
                lambda backend, x=logits, s=settings: score_tokens(x, backend=backend, **s),
            )  # fmt: skip
            tokens = torch.full((4, 32), mask, device="cuda")
            listed[f"step {label}"] = (
                "denoise_step_", 128, size,
                lambda backend, x=logits, s=settings, t=tokens, m=mask: denoise_step_(
                    t.clone(), x, mask_id=m, quota=1, backend=backend, **s
                ),
            )  # fmt: skip
    score, eligible = torch.rand(8, 1024, device="cuda"), torch.rand(8, 1024, device="cuda") < 0.5
    listed["select"] = (
        "select_positions", 8, score.numel() * 5,
        lambda backend: select_positions(score, eligible, quota=16, backend=backend),
    )  # fmt: skip
    tokens = torch.zeros(8, 1024, dtype=torch.int64, device="cuda")
    listed["revoke"] = (
        "revoke_", 8, score.numel() * 12,
        lambda backend: revoke_(tokens.clone(), score, mask_id=1, quota=9, committed=16, backend=backend),
    )  # fmt: skip
    cache = torch.randn(8, 1024, 4096, device="cuda", dtype=torch.bfloat16)
    positions = torch.randint(0, 1024, (8, 256), device="cuda")
    listed["gather"] = (
        "gather_rows", 2048, 2048 * 4096 * 2 * 2,
        lambda backend: gather_rows(cache, positions, backend=backend),
    )  # fmt: skip
    return listed


def time_case(name: str, op: str, rows: int, size: int, call: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Medians by CUDA events with a cold second-level cache, the backends taking turns."""
    backends = [b for b in BACKENDS if backend_status(b).available and has_kernel(op, b)]
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {backend: [] for backend in backends}
    for round_ in range(WARM_UP + ROUNDS):
        for backend in backends:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            begin.record()
            call(backend)
            end.record()
            if round_ >= WARM_UP:
                events[backend].append((begin, end))
    torch.cuda.synchronize()
    records = []
    for backend in backends:
        times = [begin.elapsed_time(end) for begin, end in events[backend]]
        low, median, high = (quantile(times, q) for q in (0.2, 0.5, 0.8))
        records.append(
            {"case": name, "op": op, "backend": backend, "rows": rows, "bytes": size, "median_ms": median,
             "p20_ms": low, "p80_ms": high, "gb_per_s": size / median / 1e6}
        )  # fmt: skip
    return records
