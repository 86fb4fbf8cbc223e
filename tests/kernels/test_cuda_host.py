"""The CUDA kernels' own lines, run on the CPU by emulated blocks (cuda_host.py), against the reference.

Tokens, masks and copies are equal; what threads, splits and the order of the threads leave open is shown to decide nothing.
Races within a warp, and speed, need a GPU.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import denoise_step_, gather_rows, revoke_, scatter_rows_, score_tokens, select_positions
from dlm_kernels.rng import gumbel, make_row_ids
from kernels import cuda_host

pytestmark = [
    pytest.mark.usefixtures("poisoned_empty"),
    pytest.mark.skipif(cuda_host.compiler() is None, reason="no C++ compiler"),
]

HERE = Path(__file__).parent
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ("cuda", "reference")
NAN = math.nan


@pytest.fixture(autouse=True)
def emulation(monkeypatch):
    cuda_host.install(monkeypatch.setattr)
    monkeypatch.setattr(cuda_host, "threads", 8)


def test_philox_known_answers():
    """Random123's vectors: zeros, ones, and the digits of pi."""
    ones = 0xFFFFFFFF
    counter = [[0] * 4, [ones] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]]
    counters = np.array(counter, dtype=np.uint32)
    keys = np.array([[0, 0], [ones, ones], [0xA4093822, 0x299F31D0]], dtype=np.uint32)
    out = np.empty((3, 4), dtype=np.uint32)
    cuda_host.library().host_philox(*(a.ctypes.data_as(cuda_host.ctypes.c_void_p) for a in (counters, keys)),
                                    cuda_host.ctypes.c_int64(3), out.ctypes.data_as(cuda_host.ctypes.c_void_p))  # fmt: skip
    wanted = [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ]
    assert out.tolist() == wanted


def test_op_tests_pass_on_the_kernels():
    """The tests of every op that the CUDA backend has, but for the largest vocabularies."""
    files = (
        "score_tokens",
        "select_positions",
        "denoise_step",
        "step_buffers",
        "commit",
        "rng",
        "revoke",
        "gather_rows",
        "scatter_rows",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "kernels.cuda_host"]
    selection = ["-k", "cuda and not 126464 and not 151936", *(str(HERE / f"test_{name}.py") for name in files)]
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [*command, *selection],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=HERE.parent.parent,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert "passed" in result.stdout


def random_step(generator, batch, length, vocabulary, dtype):
    """A canvas, its logits, and one value per row or position of every parameter."""

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    def pick(values, *shape):
        return torch.tensor(values)[torch.randint(len(values), shape, generator=generator)]

    mask = vocabulary - 1
    tokens = torch.randint(0, vocabulary, (batch, length), generator=generator)
    tokens[rand(batch, length) < 0.7] = mask
    logits = torch.randn(batch, length, vocabulary, generator=generator) * pick([0.5, 3.0, 9.0], batch, length, 1)
    logits[rand(batch, length) < 0.1] = 1.5  # ties
    logits[rand(batch, length, vocabulary) < 0.02] = -math.inf
    special = rand(batch, length, vocabulary)
    logits[special < 0.0005] = math.inf
    logits[special > 0.9995] = math.nan
    rows = (batch, length)
    options = {
        "mask_id": mask,
        "eligible": rand(*rows) < 0.9,
        "temperature": pick([0.0, 0.3, 1.0, 2.5], *rows),
        "top_k": pick([0, 0, 1, 4, vocabulary], *rows),
        "top_p": pick([1.0, 1.0, 0.5, 0.95], *rows),
        "seed": torch.randint(-(2**62), 2**62, rows, generator=generator),
        "step": torch.randint(0, 2**32, rows, generator=generator),
        "suppress_ids": [(), (mask,), (mask, 0)][int(rand(1) * 3)],
        "confidence": ["model", "sampling"][int(rand(1) * 2)],
        "filter_order": ["top_k_first", "top_p_first"][int(rand(1) * 2)],
        # Ranked by chance: the other scores may differ in their last bits, and with them what is selected.
        "score": "random",
        "quota": pick([0, 1, 3, 99], batch),
        "at_least": pick([0, 1, 2], batch),
        "threshold": pick([0.5, 0.9], batch),
        "factor": pick([0.3, 1.0], batch),
    }
    return tokens, logits.to(dtype), options


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "vocabulary"), [(1, 1), (3, 2), (17, 7), (40, 33), (64, 100)])
def test_steps_commit_the_reference_tokens(dtype, length, vocabulary):
    """Over ten thousand rows of logits in all these cases together."""
    generator = torch.Generator().manual_seed(length)
    for _ in range(6):
        tokens, logits, options = random_step(generator, 6, length, vocabulary, dtype)
        got, wanted = (tokens.clone() for _ in BACKENDS)
        stats = denoise_step_(got, logits, backend="cuda", **options)
        truth = denoise_step_(wanted, logits, backend="reference", **options)
        assert_equal("tokens", got, wanted)
        for name in ("committed", "remaining", "selected"):
            assert_equal(name, getattr(stats, name), getattr(truth, name))
        assert torch.allclose(stats.confidence, truth.confidence, rtol=5e-6, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("temperature", [1.0, 0.37])
def test_draws_that_only_roundings_decide(temperature):
    """Logits that the noise levels out: all noised values of a row agree to about 1e-6, in three chunks of its vocabulary.

    Each chunk is first drawn relative to its own maximum, so its winner is not always the one that the row's maximum gives.
    """
    rows, vocabulary = 12, 9001
    noise = gumbel(5, torch.arange(rows), 0, vocabulary)
    x = -temperature * noise
    x[:, ::7] -= 30 * temperature  # some that cannot win
    got, wanted = (score_tokens(x, temperature=temperature, seed=5, backend=name) for name in BACKENDS)
    assert_equal("token", got.token, wanted.token)
    assert len(set((wanted.token // 4096).tolist())) > 1
    filtered = {"temperature": temperature, "seed": 5, "top_p": 0.9}
    got, wanted = (score_tokens(x, backend=name, **filtered) for name in BACKENDS)
    assert_equal("token", got.token, wanted.token)


def test_nothing_depends_on_threads_splits_and_the_order_of_threads(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    tokens, _, options = random_step(generator, 2, 3, 50, torch.float32)
    logits = torch.randn(2, 3, 12_345, generator=generator) * 4
    options.update(mask_id=49, score="confidence", top_k=options["top_k"] * 20, entropy_bound=0.5)
    tokens[:] = 49
    results = []
    for threads, processors, order in ((8, 1, 1), (8, 1, 2), (1, 1, 1), (16, 4, 3), (64, 2, 4), (256, 100, 5)):
        monkeypatch.setattr(cuda_host, "threads", threads)
        monkeypatch.setattr(cuda_host, "processors", processors)
        monkeypatch.setattr(cuda_host, "order", order)
        canvas = tokens.clone()
        stats = denoise_step_(canvas, logits, backend="cuda", **options)
        scores = score_tokens(logits, temperature=0.8, seed=1, confidence="sampling", backend="cuda")
        results.append((canvas, *stats, *scores))
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert_equal("bits", a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [64, 61])
def test_rows_that_start_anywhere(dtype, vocabulary):
    """Vector loads where rows are aligned, single ones where not."""
    wide = (torch.randn(3, 5, vocabulary + 9) * 3).to(dtype)
    for first in range(9):
        x = wide[:, ::2, first : first + vocabulary]
        got, wanted = (score_tokens(x, temperature=0.9, top_p=0.8, backend=name).token for name in BACKENDS)
        assert_equal("token", got, wanted)


@pytest.mark.parametrize("length", [4096, 4097, 5000])
def test_long_rows_are_ranked_in_global_memory(length):
    score, eligible = (torch.rand(2, length) * 50).round() / 50, torch.rand(2, length) < 0.8
    entropy = torch.rand(2, length)
    options = {"quota": torch.tensor([3, length]), "factor": 1.0, "entropy_bound": 0.5, "entropy": entropy}
    got, wanted = (select_positions(score, eligible, backend=name, **options) for name in BACKENDS)
    assert_equal("selected", got, wanted)


@pytest.mark.parametrize("length", [0, 1, 9, 130, 5000])
@pytest.mark.parametrize(
    "rules", [(), ("threshold",), ("quota",), ("probability",), ("threshold", "quota", "probability")]
)
def test_revocations_are_those_of_the_reference(length, rules):
    batch, mask = 7, 9
    tokens = torch.randint(0, 10, (batch, length))
    confidence = (torch.rand(batch, length) * 8).round() / 8
    confidence[torch.rand(batch, length) < 0.1] = NAN
    options = {
        "threshold": torch.rand(batch) * 0.5 + 0.1,
        "quota": torch.tensor([0, 1, 2, 3, 50, 9999, 4]),
        "probability": torch.rand(batch, length),
    }
    options = {name: options[name] for name in rules}
    for committed in (torch.tensor([0, 1, 2, 3, 9, 9999, 60]), None if rules == ("probability",) else 4):
        for eligible in (None, torch.rand(batch, length) < 0.7):
            results = []
            for name in BACKENDS:
                canvas = torch.full((batch, 2 * length), -1)
                canvas[:, 1::2] = tokens
                stats = revoke_(
                    canvas[:, 1::2], confidence, mask_id=mask, eligible=eligible, committed=committed,
                    seed=torch.arange(batch)[:, None], step=3, backend=name, **options,
                )  # fmt: skip
                results.append((canvas, *stats))
            for field, a, b in zip(("canvas", "remasked", "revoked"), *results, strict=True):
                assert_equal(field, a, b)


VIEWS = {
    "rows of numbers": lambda dtype: torch.arange(3 * 7).view(3, 7).to(dtype),
    "wide rows": lambda dtype: torch.arange(3 * 7 * 64).view(3, 7, 64).to(dtype),
    "odd rows": lambda dtype: torch.arange(3 * 7 * 5).view(3, 7, 5).to(dtype),
    "heads first": lambda dtype: torch.arange(3 * 4 * 7 * 8).view(3, 4, 7, 8).transpose(1, 2).to(dtype),
    "every other": lambda dtype: torch.arange(3 * 7 * 24).view(3, 7, 24)[..., ::2].to(dtype),
    "unaligned": lambda dtype: torch.arange(3 * 7 * 17).view(3, 7, 17).to(dtype)[..., 1:],
    "scattered in five dimensions": lambda dtype: (
        torch.arange(3 * 7 * 4 * 4 * 4 * 4 * 4).view(3, 7, 4, 4, 4, 4, 4).to(dtype)[:, :, ::2, ::2, ::2, ::2, ::2]
    ),
    "no rows": lambda dtype: torch.zeros(3, 0, 4, dtype=dtype),
    "empty rows": lambda dtype: torch.zeros(3, 7, 0, dtype=dtype),
}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.complex128]
)
@pytest.mark.parametrize("view", VIEWS)
def test_rows_are_gathered_and_scattered_as_by_the_reference(view, dtype):
    source = VIEWS[view](dtype)
    for slots in (0, 1, 40):
        positions = torch.randint(-2, source.shape[1] + 2, (3, slots))
        got, wanted = (gather_rows(source, positions, backend=name) for name in BACKENDS)
        assert_equal("gathered", got, wanted)
        rows = (torch.rand(wanted.shape) * 99).to(dtype)
        targets = [VIEWS[view](dtype) for _ in BACKENDS]
        for target, name in zip(targets, BACKENDS, strict=True):
            scatter_rows_(target, positions, rows, backend=name)
        assert_equal("target", *targets)


def test_rows_of_the_target_are_read_before_they_are_written():
    target = torch.arange(12.0).view(1, 6, 2)
    wanted = target[:, [5, 0, 1, 2, 3, 4]].clone()
    scatter_rows_(target, torch.tensor([[1, 2, 3, 4, 5, 0]]), target, backend="cuda")
    assert_equal("target", target, wanted)


def test_row_ids_key_the_draws():
    logits, tokens = torch.randn(3, 6, 40), torch.full((3, 6), 39)
    ids = make_row_ids(torch.tensor([[5], [3], [8]]), torch.arange(6))
    options = {"mask_id": 39, "temperature": 1.0, "quota": 6, "backend": "cuda"}
    whole = tokens.clone()
    denoise_step_(whole, logits, row_ids=ids, **options)
    alone = tokens[1:2].clone()
    denoise_step_(alone, logits[1:2], row_ids=ids[1:2], **options)
    assert_equal("tokens", alone[0], whole[1])
