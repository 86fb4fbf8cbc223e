import math

import numpy as np
import pytest
import torch
from backends import backends_with
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_equal

from dlm_kernels import select_positions

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SCORES = [0.0, -0.0, 0.1, 0.5, 0.5, 0.75, 0.9, 0.95, 1.0, math.nan, -math.inf, math.inf, -2.0]
ENTROPIES = [0.0, -0.0, 0.01, 0.125, 0.25, 0.25, 1.0, 3.0, 11.5, math.nan]


def expected_row(score, eligible, *, quota=None, threshold=None, factor=None, entropy_bound=None, entropy=None, at_least=1,
                 strict=False):  # fmt: skip
    """One row in plain Python, from the words of the docstring."""
    live = [i for i, ok in enumerate(eligible) if ok]

    def ranked(key):
        return sorted(live, key=lambda i: (math.isnan(key(i)), -math.inf if math.isnan(key(i)) else key(i), i))

    # NaN ranks as -inf: among the -inf, by position.
    best = sorted(live, key=lambda i: (math.inf if math.isnan(score[i]) else -score[i], i))
    chosen = set(best[:at_least])
    if quota is not None:
        chosen |= set(best[:quota])
    if threshold is not None:
        chosen |= {i for i in live if (score[i] > threshold if strict else score[i] >= threshold)}
    if factor is not None:
        f, one = np.float32(factor), np.float32(1)
        met = [n for n in range(1, len(best) + 1) if np.float32(score[best[n - 1]]) >= one - f / np.float32(n + 1)]
        chosen |= set(best[: max(met, default=0)])
    if entropy_bound is not None:
        order = ranked(lambda i: entropy[i])
        met, total = 0, 0.0
        for n, i in enumerate(order, 1):
            total += entropy[i]
            if total - entropy[i] <= float(np.float32(entropy_bound)):
                met = n
        chosen |= set(order[:met])
    return [i in chosen for i in range(len(score))]


def rows(values, length):
    return st.lists(st.sampled_from(values), min_size=length, max_size=length)


@st.composite
def problems(draw):
    """A batch: score, eligible, entropy, and one value per row of every rule, or None."""
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    f32 = [float(np.float32(v)) for v in SCORES], [float(np.float32(v)) for v in ENTROPIES]
    score = [draw(rows(f32[0], length)) for _ in range(batch)]
    eligible = [draw(rows([True, True, False], length)) for _ in range(batch)]
    entropy = [draw(rows(f32[1], length)) for _ in range(batch)]

    def rule(values):
        return draw(st.none() | rows(values, batch))

    return {
        "score": score,
        "eligible": eligible,
        "entropy": entropy,
        "quota": rule([0, 1, 2, 5, 99]),
        "threshold": rule([float(np.float32(v)) for v in (0.1, 0.5, 0.9, 1.0)]),
        "factor": rule([0.1, 0.5, 1.0, 2.0, 5.0]),
        "entropy_bound": rule([0.0, 0.1, 0.5, 4.0]),
        "at_least": draw(rows([0, 1, 2, 50], batch)),
        "strict": draw(st.booleans()),
    }


def as_arguments(problem):
    dtypes = {"quota": torch.int64, "at_least": torch.int64, "eligible": torch.bool}
    return {
        name: value if value is None or name == "strict" else torch.tensor(value, dtype=dtypes.get(name, torch.float32))
        for name, value in problem.items()
    }


@settings(max_examples=300, deadline=None, derandomize=True)
@given(problem=problems())
def test_selection_matches_its_definition(problem):
    batched = {k: v for k, v in problem.items() if k not in ("score", "eligible", "strict")}
    wanted = [
        expected_row(
            problem["score"][b],
            problem["eligible"][b],
            strict=problem["strict"],
            **{name: None if value is None else value[b] for name, value in batched.items()},
        )
        for b in range(len(problem["score"]))
    ]
    for name in backends_with("select_positions", available=True):
        assert select_positions(**as_arguments(problem), backend=name).tolist() == wanted, name


@pytest.mark.parametrize("length", [1, 17, 64, 1000, 4096])
@pytest.mark.parametrize(
    "rules",
    [
        {"quota": 3},
        {"quota": 3, "at_least": 0},
        {"threshold": 0.7},
        {"threshold": 0.7, "strict": True},
        {"factor": 1.0},
        {"entropy_bound": 0.5},
        {"quota": 2, "threshold": 0.95, "factor": 0.3, "entropy_bound": 0.1, "at_least": 5},
    ],
    ids=str,
)
def test_every_backend_selects_as_the_reference(fast_backend, length, rules):
    score = (torch.rand(5, length) * 20).round() / 20  # many ties
    score[torch.rand(5, length) < 0.05] = math.nan
    eligible = torch.rand(5, length) < 0.8
    eligible[4] = False
    entropy = (torch.rand(5, length) * 16).round() / 16
    got, wanted = (
        select_positions(score, eligible, entropy=entropy, backend=name, **rules)
        for name in (fast_backend, "reference")
    )
    assert_equal("selected", got, wanted)


def test_per_row_rules_are_those_rows_alone(backend):
    score, eligible, entropy = torch.rand(4, 20), torch.rand(4, 20) < 0.7, torch.rand(4, 20)
    rules = {
        "quota": torch.tensor([0, 2, 5, 20]),
        "threshold": torch.tensor([0.9, 0.99, 0.5, 1.0]),
        "factor": torch.tensor([0.2, 1.0, 0.5, 0.01]),
        "entropy_bound": torch.tensor([0.1, 0.2, 0.01, 0.0]),
        "at_least": torch.tensor([0, 1, 2, 3]),
    }
    batch = select_positions(score, eligible, entropy=entropy, backend=backend, **rules)
    for b in range(4):
        alone = select_positions(
            score[b : b + 1],
            eligible[b : b + 1],
            entropy=entropy[b : b + 1],
            backend=backend,
            **{name: value[b].item() for name, value in rules.items()},
        )
        assert_equal("selected", alone[0], batch[b])


def test_quota_is_a_size_and_grows_by_the_next_best(backend):
    score, eligible = torch.randn(8, 33), torch.rand(8, 33) < 0.6
    previous = torch.zeros(8, 33, dtype=torch.bool)
    for quota in range(35):
        selected = select_positions(score, eligible, quota=quota, at_least=0, backend=backend)
        assert_equal("size", selected.sum(1), eligible.sum(1).clamp(max=quota))
        assert not (selected & ~eligible).any()
        assert not (previous & ~selected).any()
        lowest_in = score.masked_fill(~selected, math.inf).amin(1)
        highest_out = score.masked_fill(selected | ~eligible, -math.inf).amax(1)
        assert (lowest_in >= highest_out).all()
        previous = selected


def test_rules_together_are_their_union(backend):
    score, eligible, entropy = torch.rand(16, 24), torch.rand(16, 24) < 0.8, torch.rand(16, 24)
    rules = {"quota": 3, "threshold": 0.9, "factor": 0.8, "entropy_bound": 0.2}
    single = [
        select_positions(score, eligible, entropy=entropy, at_least=0, backend=backend, **{name: value})
        for name, value in rules.items()
    ]
    together = select_positions(score, eligible, entropy=entropy, at_least=0, backend=backend, **rules)
    assert_equal("union", together, torch.stack(single).any(0))
    assert len({tuple(s.flatten().tolist()) for s in single}) == 4, "the rules differ here, or this test shows nothing"


def test_ties_go_to_the_lowest_position(backend):
    score = torch.tensor([[0.5, 0.5, 0.5, 0.5], [-0.0, 0.0, -0.0, 0.0], [math.nan, -math.inf, math.nan, -math.inf]])
    eligible = torch.tensor([[False, True, True, True]]).expand(3, -1)
    for quota in range(1, 4):
        selected = select_positions(score, eligible, quota=quota, backend=backend)
        assert selected.int().tolist() == [[0, *([1] * quota), *([0] * (3 - quota))]] * 3


def test_every_live_row_commits_at_least_that_many(backend):
    score = torch.full((3, 6), math.nan)
    eligible = torch.tensor([[True] * 6, [False] * 6, [False] * 5 + [True]])
    assert select_positions(score, eligible, threshold=0.9, backend=backend).sum(1).tolist() == [1, 0, 1]
    assert select_positions(score, eligible, threshold=0.9, at_least=3, backend=backend).sum(1).tolist() == [3, 0, 1]
    assert select_positions(score, eligible, threshold=0.9, at_least=0, backend=backend).sum().item() == 0


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_no_positions(backend, shape):
    empty = torch.empty(shape)
    selected = select_positions(
        empty, torch.empty(shape, dtype=torch.bool), quota=2, threshold=0.5, factor=1.0, entropy_bound=1.0, entropy=empty,
        backend=backend,
    )  # fmt: skip
    assert selected.shape == shape
    assert selected.dtype == torch.bool


def test_strides_and_half_precision_scores(backend):
    score, eligible, entropy = torch.rand(6, 40), torch.rand(6, 40) < 0.7, torch.rand(6, 40)
    rules = {"quota": 2, "threshold": 0.9, "entropy_bound": 0.1, "backend": backend}
    wanted = select_positions(score, eligible, entropy=entropy, **rules)
    window = [torch.empty(6, 80, dtype=t.dtype) for t in (score, eligible, entropy)]
    for target, source in zip(window, (score, eligible, entropy), strict=True):
        target[:, 1::2] = source
    strided = [t[:, 1::2] for t in window]
    assert_equal("strided", select_positions(strided[0], strided[1], entropy=strided[2], **rules), wanted)
    transposed = [t.T.contiguous().T for t in (score, eligible, entropy)]
    assert_equal("transposed", select_positions(transposed[0], transposed[1], entropy=transposed[2], **rules), wanted)
    half = score.half()
    assert_equal(
        "half", select_positions(half, eligible, quota=5, backend=backend),
        select_positions(half.float(), eligible, quota=5, backend=backend),
    )  # fmt: skip
