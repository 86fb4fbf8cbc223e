import math

import pytest
import torch
from tolerances import assert_equal, assert_no_worse

from dlm_kernels import InvalidArgumentError, TopK, topk_kl, use_backend
from dlm_kernels.reference import topk_kl as reference
from kernels.operators import check_compiles, check_operator
from kernels.rows import NAMES, awkward_rows

OP = "topk_kl"
pytestmark = pytest.mark.usefixtures("poisoned_empty")


@pytest.fixture
def on_backend(backend):
    """All that the test computes runs on this backend."""
    with use_backend(backend):
        yield backend


def coarse_kl(before, now, k):
    """In fp64 from the two whole distributions: sum of p log(p / q) over the top k of `before` and the rest."""
    p, q = before.double().softmax(-1), now.double().softmax(-1)
    top = sorted(range(len(p)), key=lambda v: (-float(before[v]), v))[:k]
    rest = [v for v in range(len(p)) if v not in top]
    pairs = [(p[v], q[v]) for v in top] + [(p[rest].sum(), q[rest].sum())]
    return sum(float(a * (a / b).log()) if a > 0 else 0.0 for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("vocabulary", "k"), [(40, 1), (40, 8), (40, 40), (1, 1), (700, 20)])
def test_divergence_by_definition(on_backend, monkeypatch, vocabulary, k, dtype):
    monkeypatch.setattr(reference, "ELEMENTS_AT_ONCE", 2 * vocabulary)  # several pieces
    before = (torch.randn(5, vocabulary) * 3).to(dtype)
    now = (before.float() + torch.randn(5, vocabulary) * torch.tensor([0.0, 0.01, 0.3, 2.0, 9.0])[:, None]).to(dtype)
    got = topk_kl(now, 3 if vocabulary > 3 else 1, before=topk_kl(before, k)).kl
    wanted = torch.tensor([coarse_kl(before[i], now[i], k) for i in range(5)])
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)
    assert got[0] < 1e-6
    full = torch.nn.functional.kl_div(
        now.double().log_softmax(-1), before.double().log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    assert (got <= full + 1e-6).all()
    assert (got >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("vocabulary", "k"), [(1, 1), (7, 3), (1000, 1), (1000, 64), (126464, 8), (151936, 64), (5000, 5000)]
)
def test_awkward_rows(backend, vocabulary, k, dtype):
    """Ties, infinities, NaN, huge and tiny logits, and what the step before knew of another row."""
    logits = awkward_rows(vocabulary, dtype)
    before = topk_kl(logits.roll(1, 0), min(k, 5), backend="reference")
    got, wanted = (
        topk_kl(logits, k, before=before, backend=backend),
        topk_kl(logits, k, before=before, backend="reference"),
    )
    assert_equal("ids", got.ids, wanted.ids, NAMES)
    truth, eager = (coarse_log_probs(logits.to(width), wanted.ids).float() for width in (torch.float64, torch.float32))
    assert_no_worse("logsumexp", got.log_probs, truth, eager, NAMES)
    torch.testing.assert_close(got.kl, wanted.kl, atol=1e-6, rtol=1e-5, equal_nan=True)


def coarse_log_probs(logits, ids):
    y = logits.log_softmax(-1)
    return torch.cat((y.gather(1, ids), y.scatter(1, ids, -math.inf).logsumexp(-1, keepdim=True)), dim=-1)


def test_threads_neighbours_and_strides_change_nothing(fast_backend, two_threads):
    wide = torch.randn(3, 60, 2, 2000)
    logits = wide.transpose(0, 2)[:, ::2]  # [2, 30, 3, 2000]
    last = topk_kl(logits * 0.9, 6, backend=fast_backend)
    whole = topk_kl(logits, 4, before=last, backend=fast_backend)
    torch.set_num_threads(1)
    single = topk_kl(logits, 4, before=last, backend=fast_backend)
    alone = topk_kl(logits[1, 29], 4, before=TopK(*(field[1, 29] for field in last)), backend=fast_backend)
    for field in TopK._fields:
        assert_equal(field, getattr(whole, field), getattr(single, field))
        assert_equal(field, getattr(whole, field)[1, 29], getattr(alone, field))


def test_an_id_outside_the_vocabulary_is_refused(fast_backend):
    before = TopK(torch.zeros(1), torch.tensor([[0, 9]]), torch.zeros(1, 3))
    if fast_backend == "triton":  # reads nothing back from the device
        assert topk_kl(torch.zeros(1, 5), 2, before=before, backend=fast_backend).kl.isnan()
        return
    with pytest.raises((InvalidArgumentError, RuntimeError), match=r"before.ids|index"):
        topk_kl(torch.zeros(1, 5), 2, before=before, backend=fast_backend)


def test_what_is_kept(on_backend):
    logits = torch.tensor([1.0, 3.0, 3.0, -math.inf, 3.0])
    result = topk_kl(logits, 2)
    p = logits.softmax(-1)
    assert_equal("ids", result.ids, torch.tensor([1, 2]))
    torch.testing.assert_close(result.log_probs, torch.stack((p[1], p[2], p[0] + p[4])).log())
    assert result.kl == math.inf
    assert_equal("ids", topk_kl(torch.zeros(700), 3).ids, torch.arange(3))
    assert topk_kl(logits, 5).log_probs[-1] == -math.inf
    assert topk_kl(torch.randn(2, 3, 9), 4).log_probs.exp().sum(-1).sub(1).abs().max() < 1e-6


def test_a_tiny_rest_is_not_lost(on_backend):
    """A rest of 1e-12 next to 1: as 1 - p in fp32 it would be 0 or 6e-8."""
    before = torch.tensor([30.0, 0.0, 0.0])
    last = topk_kl(before, 1)
    torch.testing.assert_close(last.log_probs[-1], torch.tensor(math.log(2) - 30))
    assert topk_kl(before, 1, before=last).kl < 1e-12


def test_impossible_tokens_and_rows_without_a_distribution(on_backend):
    a, b = torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([[0.0, -math.inf, 0.0]])
    assert topk_kl(b, 2, before=topk_kl(a, 2)).kl.item() == math.inf
    assert topk_kl(torch.zeros(1, 3), 2, before=topk_kl(a, 2)).kl.item() == pytest.approx(math.log(1.5))
    for broken in (torch.full((1, 3), -math.inf), torch.tensor([[0.0, math.nan, 0.0]])):
        assert topk_kl(a, 2, before=topk_kl(broken, 2)).kl.isnan()
        assert topk_kl(broken, 2, before=topk_kl(a, 2)).kl.isnan()


def test_shapes_and_strides(on_backend):
    logits = torch.randn(9, 3, 2).permute(2, 1, 0)
    whole = topk_kl(logits, 4, before=topk_kl(logits * 2, 3))
    assert [list(field.shape) for field in whole] == [[2, 3], [2, 3, 4], [2, 3, 5]]
    alone = topk_kl(logits[1, 2], 4, before=topk_kl(logits[1, 2] * 2, 3))
    for field in TopK._fields:
        assert_equal(field, getattr(whole, field)[1, 2], getattr(alone, field))


def test_opcheck_and_compile(on_backend):
    logits, other = torch.randn(2, 2, 3, 9)
    check_operator("topk_kl", lambda: topk_kl(logits.half(), 4), lambda: topk_kl(logits, 2, before=topk_kl(other, 5)))
    check_compiles(lambda x, y: tuple(topk_kl(x, 2, before=topk_kl(y * 2, 5))), logits, other)


X = torch.zeros(2, 3, 5)


@pytest.mark.parametrize(
    ("logits", "k", "before", "argument", "says"),
    [
        (X.double(), 2, None, "logits", "float64"),
        (X, 0, None, "k", r"\[1, 5\]"),
        (X, 6, None, "k", "6"),
        (X, 2.0, None, "k", "2.0"),
        (X, 2, (1, 2, 3), "before", "tuple"),
        (X, 2, topk_kl(X[0], 2), "before.ids", r"\[2, 3, any\]"),
        (X, 2, topk_kl(X, 2)._replace(log_probs=torch.zeros(2, 3, 2)), "before.log_probs", r"\[2, 3, 3\]"),
        (X, 2, topk_kl(X, 2)._replace(ids=torch.zeros(2, 3, 2)), "before.ids", "int64"),
    ],
)
def test_bad_input(logits, k, before, argument, says):
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        topk_kl(logits, k, before=before)
    assert str(caught.value).split()[0] == argument
