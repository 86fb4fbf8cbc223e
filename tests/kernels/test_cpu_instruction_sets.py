"""The instruction set is chosen once per process: the op tests again, in a process for each of the others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlm_kernels.dispatch import backend_status

HERE = Path(__file__).parent
# What most of the code serves, at every run; the other ops with the slow tests.
CORE = ("score_tokens", "select_positions", "denoise_step", "rng")
OTHERS = (
    *("score_hidden", "absorbing_step", "uniform_step", "score_entropy_step", "revoke", "gaussian_step"),
    *("nearest_embedding", "topk_kl", "cosine_rows"),
)


def run(isa, *command):
    environment = {**os.environ, "DLM_KERNELS_CPU_ISA": isa}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=HERE.parent.parent
    )


@pytest.mark.parametrize("ops", [CORE, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["core", "others"])
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_ops_pass_with_this_instruction_set(isa, ops):
    if not backend_status("cpu").available:
        pytest.skip(backend_status("cpu").reason)
    from dlm_kernels import cpu

    if isa == cpu.isa():
        pytest.skip("the tests of this process use it")
    status = run(isa, "-c", "from dlm_kernels import cpu; print(*cpu.available())")
    assert status.returncode == 0, status.stderr
    available, _, reason = status.stdout.strip().partition(" ")
    if available == "False":
        pytest.skip(reason)
    selection = ["-k", "cpu and not 126464 and not 151936", *(str(HERE / f"test_{op}.py") for op in ops)]
    result = run(isa, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selection)
    assert result.returncode == 0, result.stdout[-3000:]
    assert "passed" in result.stdout
