"""The Triton kernels on this machine: the op tests again, in a process where Triton interprets its kernels.

That proves numerics. What the compiler makes of them is checked by `dlm-bench resources`; how fast they are, only by a GPU.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BIG = "126464 or 151936"
# (test files, what of them): large vocabularies once per path, and not what takes minutes there and finds nothing new.
SELECTION = {
    "own": ("test_triton_kernels.py", ""),
    "scores": (
        "test_score_tokens.py",
        f"triton and not ({BIG} or 2049 or 5000 or frequencies or unlikely or independent)",
    ),
    "large_vocabularies": (
        "test_score_tokens.py",
        "triton and match and (126464-float16-t1 or 151936-bfloat16-greedy or 126464-float32-both)",
    ),
    "frequencies": ("test_score_tokens.py", "triton and frequencies and 2.5"),
    "selection": ("test_select_positions.py test_commit.py", "triton and not 4096"),
    "long_selection": ("test_select_positions.py", "triton and 4096 and at_least and threshold"),
    "steps": ("test_denoise_step.py test_step_buffers.py", "triton and not threads"),
    "random_numbers": ("test_rng.py", "triton"),
    "steps_in_tiles": ("test_triton_steps.py", ""),
    "absorbing": (
        "test_absorbing_step.py",
        "triton and (reference_tokens and (triton-7- or 1000-bfloat16) or no_rows or neighbours or score_tokens)",
    ),
    "uniform": (
        "test_uniform_step.py",
        "triton and (reference_tokens and (triton-7- or 1000-bfloat16-leave) or no_rows or neighbours or small_steps)",
    ),
    "score_entropy": (
        "test_score_entropy_step.py",
        "triton and (reference_tokens and triton-7- or no_rows or neighbours or near_ties or triton-9)",
    ),
    "gaussian": ("test_gaussian_step.py", "triton and not order_of_convergence"),
    "revoke": ("test_revoke.py", "triton and (revokes and 7-threshold-quota-probability or fewer or no_rows or draws)"),
    "rows": (
        "test_cosine_rows.py test_gather_rows.py test_scatter_rows.py test_rows_changed.py test_topk_kl.py",
        f"triton and not ({BIG} or 5000)",
    ),
    "nearest": ("test_nearest_embedding.py", f"triton and not ({BIG} or 30522 or memory)"),
    "hidden": (
        "test_score_hidden.py",
        "triton and (1000-33-torch.bfloat16 or strides or no_rows or per_row or eligible or infinities)",
    ),
    "operators": ("test_opcheck_compile.py", "triton"),
}


@pytest.mark.parametrize("name", SELECTION)
def test_ops_pass_in_the_interpreter(name):
    pytest.importorskip("triton")
    files, expression = SELECTION[name]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", expression,
         *(str(HERE / file) for file in files.split())],
        capture_output=True, text=True, cwd=HERE.parent.parent, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert "passed" in result.stdout
