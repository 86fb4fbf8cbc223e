import math
from itertools import pairwise

import pytest
import torch
from tolerances import assert_equal, assert_no_worse
from torch.nn.functional import linear

from dlm_kernels import InvalidArgumentError, TokenScores, lm_head, score_hidden, score_tokens
from dlm_kernels.dispatch import backend_status
from dlm_kernels.lm_head import LEAST, Head, bounds, piece_width
from dlm_kernels.rng import gumbel
from kernels.operators import check_compiles, check_operator
from kernels.rows import NAMES, awkward_rows
from kernels.test_score_tokens import CASES, DTYPES, STATISTICS

OP = "score_hidden"
pytestmark = pytest.mark.usefixtures("poisoned_empty")

ROWS = 24  # enough that fp32 logits have the same bits in every split


@pytest.fixture(params=[None, 4096])
def width(request, monkeypatch):
    """Pieces as wide as the number of rows allows, and narrow ones."""
    if request.param:
        monkeypatch.setattr(lm_head, "PIECE_BYTES", 0)


def make_head(vocabulary, dimension, dtype, rows=ROWS, bias=False):
    """Hidden states from flat to peaked: some point along a row of the weight."""
    weight = torch.randn(vocabulary, dimension) / dimension**0.5
    hidden = torch.randn(rows, dimension) * torch.linspace(0.1, 6, rows)[:, None]
    peaked = torch.randint(vocabulary, (rows // 3,))
    hidden[: rows // 3] += weight[peaked] * torch.linspace(5, 60, rows // 3)[:, None]
    return hidden.to(dtype), weight.to(dtype), torch.randn(vocabulary).to(dtype) if bias else None


def assert_same_scores(got, wanted, labels=None):
    assert_equal("token", got.token, wanted.token, labels)
    for name in STATISTICS:
        truth = getattr(wanted, name)
        assert_no_worse(name, getattr(got, name), truth, truth, labels)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("vocabulary", "dimension"), [(1, 3), (7, 16), (1000, 33), (4101, 64)])
def test_scores_are_those_of_the_logits(backend, vocabulary, dimension, dtype, case):
    hidden, weight, bias = make_head(vocabulary, dimension, dtype, bias=case == "t1")
    got = score_hidden(hidden, weight, bias, seed=11, backend=backend, **CASES[case])
    wanted = score_tokens(linear(hidden, weight, bias), seed=11, backend="reference", **CASES[case])
    assert_same_scores(got, wanted)


@pytest.mark.parametrize("case", ["greedy", "t1", "top_k", "both_top_p_first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_of_a_real_vocabulary(fast_backend, dtype, case):
    hidden, weight, _ = make_head(126464, 16, dtype)
    got = score_hidden(hidden, weight, seed=11, backend=fast_backend, **CASES[case])
    assert_same_scores(got, score_tokens(linear(hidden, weight), seed=11, backend=fast_backend, **CASES[case]))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [1, 7, 5000])
def test_awkward_rows(backend, width, vocabulary, dtype, case):
    """One dimension, so that 1 x weight is any logits, infinities and NaN included."""
    for name, row in zip(NAMES, awkward_rows(vocabulary, dtype), strict=True):
        one = torch.ones(1, 1, dtype=dtype)
        got = score_hidden(one, row[:, None], seed=11, backend=backend, **CASES[case])
        assert_same_scores(got, score_tokens(row[None], seed=11, backend="reference", **CASES[case]), [name])


@pytest.mark.parametrize("order", ["top_k_first", "top_p_first"])
@pytest.mark.parametrize("confidence", ["model", "sampling"])
def test_filters_that_held_entries_do_not_settle(fast_backend, width, confidence, order):
    """Long nuclei, large k, ties where filters end: flat, tied and constant rows, and every pair of filters."""
    vocabulary = 9000
    rows = torch.stack(
        [
            torch.randn(vocabulary),
            torch.randn(vocabulary).mul(2).round(),
            torch.zeros(vocabulary),
            torch.randn(vocabulary) * 0.01 - 300,
            torch.randn(vocabulary) * 9,
            torch.where(torch.arange(vocabulary) % 3 == 0, -math.inf, torch.randn(vocabulary)),
        ]
    )
    kinds = rows.shape[0]
    top_k = torch.tensor([0, 1, 600, 2047, 2048, 3000, 8000, 8999]).repeat_interleave(5)
    top_p = torch.tensor([1.0, 0.2, 0.7, 0.999, 1 - 2**-24]).repeat(8)
    for row in range(kinds):
        hidden = torch.ones(top_k.numel(), 1)
        options = {
            "top_k": top_k,
            "top_p": top_p,
            "temperature": 1.3,
            "seed": 4,
            "confidence": confidence,
            "filter_order": order,
        }
        got = score_hidden(hidden, rows[row][:, None], backend=fast_backend, **options)
        wanted = score_tokens(rows[row].expand(top_k.numel(), -1), backend="reference", **options)
        assert_same_scores(got, wanted, [f"row {row}, k {k}, p {p}" for k, p in zip(top_k, top_p, strict=True)])


def test_noised_values_that_are_almost_equal(backend, width):
    """Logits that take back the noise: every entry may win until the last bit, and the row's maximum comes late."""
    for vocabulary, row_id in ((6, 3), (300, 4), (9001, 5)):
        row = -gumbel(12, row_id, 0, vocabulary)
        for order in (row, row.sort().values, row.mul(0.999)):
            got = score_hidden(
                torch.ones(1, 1), order[:, None], temperature=1.0, seed=12, row_ids=row_id, backend=backend
            )
            wanted = score_tokens(order[None], temperature=1.0, seed=12, row_ids=row_id, backend="reference")
            assert_equal("token", got.token, wanted.token)


def test_close_draws_while_the_maximum_rises(backend, width):
    """(x - m) / temperature is rounded, so pairs of noised values a few bits apart change order with m."""
    rows, vocabulary, seed = 400, 5000, 8
    noise = gumbel(seed, torch.arange(rows), 0, vocabulary)
    pair = torch.tensor([17, 4500])
    x = torch.full((rows, vocabulary), -60.0)
    x[:, pair] = 1.7 * (8 - noise[:, pair]) + torch.randint(-2, 3, (rows, 2)) * 2.0**-21
    x[:, 2500] = x.amax(-1) + torch.rand(rows) - 2
    options = {"temperature": 1.7, "seed": seed}
    # One row at a time: hidden states are a basis, and the products with 0 vanish.
    got = score_hidden(torch.eye(rows), x.T.contiguous(), backend=backend, **options)
    assert_equal("token", got.token, score_tokens(x, backend="reference", **options).token)


def test_a_row_that_threads_share(fast_backend, two_threads):
    """Fewer rows than threads: each has some chunks of a row, and what may win in one may not beside the other's."""
    vocabulary, row_id = 70001, 3
    noise = gumbel(12, row_id, 0, vocabulary)
    close = torch.full((vocabulary,), -60.0)
    several, many = close.clone(), close.clone()
    for x, count in ((close, 2), (several, 8), (many, 12)):  # noised values a few bits apart, all over the vocabulary
        at = torch.linspace(1000, vocabulary - 1000, count).long()
        x[at] = 8 - noise[at] + torch.arange(count) * 2.0**-20
    infinite, nan = torch.randn(2, vocabulary)
    infinite[[5, 40000, 69000]], nan[[40001, 69001]] = math.inf, math.nan
    flat = torch.randn(vocabulary)
    for name, row in {"close": close, "several": several, "many": many, "all": -noise, "infinite": infinite, "nan": nan,
                      "flat": flat, "peaked": flat * 9, "-inf": torch.full_like(flat, -math.inf)}.items():  # fmt: skip
        for options in ({}, {"temperature": 1.0}, {"temperature": 0.7, "confidence": "sampling"}):
            options |= {"seed": 12, "row_ids": row_id}
            torch.set_num_threads(2)
            got = score_hidden(torch.ones(1, 1), row[:, None], backend=fast_backend, **options)
            assert_same_scores(got, score_tokens(row[None], backend="reference", **options), [name])
            torch.set_num_threads(1)
            alone = score_hidden(torch.ones(1, 1), row[:, None], backend=fast_backend, **options)
            for field, value in alone._asdict().items():
                assert_equal(f"{field}, {name}", getattr(got, field), value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dimension", [3, 64, 1000])
def test_logits_have_the_same_bits_in_every_split(width, dtype, dimension):
    """What the module says of the BLAS at hand. If this fails on other hardware, the docstrings promise too much there."""
    hidden, weight, bias = make_head(8200, dimension, dtype, rows=40, bias=True)
    for b in (None, bias):
        whole = linear(hidden, weight, b)
        for rows in (LEAST, 17, 40):
            pieces = [logits.clone() for _, logits in Head(hidden[:rows], weight, b, True, False).pieces()]
            assert_equal(f"{rows} rows", torch.cat(pieces, -1), whole[:rows])
        for rows in (1, 2, 3, 5, 9, 15):
            padded = Head(hidden[:rows], weight, b, True, True)
            assert_equal(f"{rows} rows, padded", torch.cat([x.clone() for _, x in padded.pieces()], -1), whole[:rows])
        for begin, end in ((0, 5), (3, 20), (4101, 8001)):
            part = Head(hidden[:2], weight[begin:end], None if b is None else b[begin:end], True, True)
            assert_equal(f"columns {begin} to {end}", part.whole(), whole[:2, begin:end])


@pytest.mark.parametrize("vocabulary", [1, 15, 16, 4095, 4096, 4097, 4111, 4112, 8193, 126464, 126465])
def test_pieces_cover_the_vocabulary_and_none_is_narrow(vocabulary):
    for rows, width in ((0, 2**20), (8, 131072), (33, 28672), (64, 16384), (256, 4096), (4096, 4096)):
        assert piece_width(rows, 4) == width
    assert piece_width(256, 2) == 2 * piece_width(256, 4)
    ends = bounds(vocabulary, 4096)
    sizes = [end - begin for begin, end in pairwise(ends)]
    assert ends[0] == 0
    assert ends[-1] == vocabulary
    assert all(size >= LEAST for size in sizes) or len(sizes) == 1
    assert all(size <= 4096 and begin % 2048 == 0 for begin, size in zip(ends, sizes, strict=False))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_do_not_depend_on_neighbours_or_threads(backend, two_threads, dtype):
    hidden, weight, bias = make_head(5000, 48, dtype, bias=True)
    ids = torch.arange(ROWS)
    options = {"temperature": 0.8, "top_k": 600, "top_p": 0.97, "seed": 3, "batch_invariant": True, "backend": backend}
    whole = score_hidden(hidden, weight, bias, row_ids=ids, **options)

    def check(name, got, select):
        for field, value in got._asdict().items():
            assert_equal(f"{field} ({name})", value, select(getattr(whole, field)))

    check("one row", score_hidden(hidden[5], weight, bias, row_ids=5, **options), lambda t: t[5])
    check("three rows", score_hidden(hidden[4:7], weight, bias, row_ids=ids[4:7], **options), lambda t: t[4:7])
    check("reversed", score_hidden(hidden.flip(0), weight, bias, row_ids=ids.flip(0), **options), lambda t: t.flip(0))
    check("every third", score_hidden(hidden[::3], weight, bias, row_ids=ids[::3], **options), lambda t: t[::3])
    four = score_hidden(hidden.view(2, 3, 4, 48), weight, bias, row_ids=ids.view(2, 3, 4), **options)
    check("four dimensions", four, lambda t: t.view(2, 3, 4))
    wide = torch.full((ROWS, 60), math.nan).to(dtype)
    wide[:, 7:55] = hidden
    check("a window", score_hidden(wide[:, 7:55], weight, bias, row_ids=ids, **options), lambda t: t)
    eligible = torch.rand(ROWS) < 0.2
    some = score_hidden(hidden, weight, bias, row_ids=ids, eligible=eligible, **options)
    check("eligible", TokenScores(*(t[eligible] for t in some)), lambda t: t[eligible])
    torch.set_num_threads(1)
    check("one thread", score_hidden(hidden, weight, bias, row_ids=ids, **options), lambda t: t)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides_of_the_weight(backend, dtype):
    """Compared with the logits of the same weight: fp16 kernels round otherwise when it is laid out otherwise."""
    hidden, weight, _ = make_head(5000, 48, dtype)
    for strided in (weight.T.contiguous().T, weight.repeat(1, 2)[:, ::2], weight.repeat(2, 1)[::2]):
        got = score_hidden(hidden, strided, backend=backend)
        assert_same_scores(got, score_tokens(linear(hidden, strided), backend="reference"))


def test_per_row_parameters(backend):
    hidden, weight, _ = make_head(3000, 32, torch.float32)
    options = {
        "temperature": torch.rand(ROWS) * 2 * (torch.rand(ROWS) < 0.7),
        "top_k": torch.randint(0, 30, (ROWS,)) * (torch.rand(ROWS) < 0.5),
        "top_p": (torch.rand(ROWS) * 1.3).clamp(0.05, 1),
        "seed": torch.randint(-(2**62), 2**62, (ROWS,)),
        "row_ids": torch.randint(2**62, (ROWS,)),
        "step": torch.randint(2**31, (ROWS,)),
        "suppress_ids": [2999, 0, 17, 17],
        "eligible": torch.rand(ROWS) < 0.9,
    }
    logits = linear(hidden, weight)
    for confidence in ("model", "sampling"):
        got = score_hidden(hidden, weight, confidence=confidence, backend=backend, batch_invariant=True, **options)
        assert_same_scores(got, score_tokens(logits, confidence=confidence, backend="reference", **options))


def test_rows_that_are_not_eligible_are_not_computed(backend):
    hidden, weight, _ = make_head(300, 16, torch.float32)
    eligible = torch.arange(ROWS) % 4 != 1
    clean = score_hidden(hidden, weight, temperature=1.0, backend=backend)
    hidden[~eligible] = math.nan
    scores = score_hidden(hidden, weight, temperature=1.0, eligible=eligible, backend=backend)
    skipped = {"token": 0, "confidence": 0.0, "margin": 0.0, "entropy": 0.0, "logsumexp": -math.inf}
    for name, value in scores._asdict().items():
        assert_equal(name, value, torch.where(eligible, getattr(clean, name), skipped[name]))
    none = score_hidden(hidden, weight, temperature=1.0, top_k=3, eligible=eligible & False, backend=backend)
    assert none.token.eq(0).all()
    assert none.logsumexp.eq(-math.inf).all()


def test_nan_and_infinities_in_hidden_states(backend):
    hidden, weight, _ = make_head(5000, 16, torch.float32)
    hidden[3, 2], hidden[7, 0], hidden[9] = math.nan, math.inf, 0.0
    for options in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.8, "confidence": "sampling"}):
        got = score_hidden(hidden, weight, backend=backend, **options)
        assert_same_scores(got, score_tokens(linear(hidden, weight), backend="reference", **options))


@pytest.mark.parametrize("shape", [(0, 9), (0, 3, 9), (2, 0, 9)])
def test_no_rows(backend, shape):
    for options in ({}, {"temperature": 1.0, "top_k": 2}, {"batch_invariant": True}):
        for name, value in (
            score_hidden(torch.empty(shape), torch.zeros(5, 9), backend=backend, **options)._asdict().items()
        ):
            assert value.shape == shape[:-1], name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_of_logits(backend, dtype):
    """Rounded logits tie where fp32 ones do not."""
    hidden, weight, bias = make_head(5000, 32, dtype, bias=True)
    rounded = score_hidden(hidden, weight, bias, backend=backend)
    assert_equal("token", rounded.token, linear(hidden, weight, bias).float().argmax(-1))
    exact = score_hidden(hidden, weight, bias, round_logits=False, backend=backend)
    logits = linear(hidden.float(), weight.float(), bias.float())
    assert_same_scores(exact, score_tokens(logits, backend="reference"))
    tied = torch.tensor([[1.0, 2.0**-12]], dtype=dtype), torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=dtype)
    assert score_hidden(*tied, backend=backend).token.tolist() == [0]
    assert score_hidden(*tied, round_logits=False, backend=backend).token.tolist() == [1]


def test_inputs_that_require_grad(backend):
    hidden, weight, _ = make_head(50, 8, torch.float32)
    scores = score_hidden(hidden.requires_grad_(), weight.requires_grad_(), backend=backend)
    assert not scores.confidence.requires_grad


def peak_bytes(function):
    """The most that PyTorch had allocated at a time for a call, from its profiler: exact, and the same every time."""
    function()  # constants are made
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("case", ["greedy", "noise", "top_p", "flat_top_p"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory(dtype, case):
    """256 rows: less than a twentieth of their logits in fp32, 129 MB, is ever allocated."""
    if not backend_status("cpu").available:
        pytest.skip(backend_status("cpu").reason)
    rows, vocabulary = 256, 126464
    hidden, weight = torch.randn(rows, 8).to(dtype), torch.randn(vocabulary, 8).to(dtype)
    options = {"greedy": {}, "noise": {"temperature": 1.0}}.get(case, {"temperature": 1.0, "top_p": 0.5})
    hidden *= 8
    hidden[: 9 if case == "flat_top_p" else 0] *= 0.01  # to be searched, which takes a while
    peak = peak_bytes(lambda: score_hidden(hidden, weight, backend="cpu", **options))
    assert dtype.itemsize * rows * 4096 <= peak < 0.05 * 4 * rows * vocabulary


def test_what_is_counted_as_memory():
    hidden, weight = torch.randn(50, 8), torch.randn(3000, 8)
    assert peak_bytes(lambda: linear(hidden, weight)) == 4 * 50 * 3000


def test_opcheck_and_compile(backend):
    hidden, weight, _ = make_head(40, 8, torch.float32, rows=6)
    eligible = torch.arange(6) % 2 == 0
    check_operator(
        "score_hidden",
        lambda: score_hidden(hidden, weight, backend=backend),
        lambda: score_hidden(
            hidden.half(), weight.half(), weight[:, 0].half(), temperature=1.0, top_k=5, suppress_ids=[3],
            eligible=eligible, round_logits=False, batch_invariant=True, backend=backend,
        ),
    )  # fmt: skip
    check_compiles(
        lambda hidden, weight: tuple(score_hidden(hidden * 2, weight, temperature=0.7, top_p=0.9)), hidden, weight
    )


H, W = torch.zeros(2, 3, 4), torch.zeros(10, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "argument", "says"),
    [
        ((None, W), {}, "hidden", "NoneType"),
        ((H.double(), W), {}, "hidden", "float64"),
        ((torch.zeros(()), W), {}, "hidden", r"\[\]"),
        ((torch.zeros(3, 0), W), {}, "hidden", r"D >= 1"),
        ((H, W.tolist()), {}, "weight", "list"),
        ((H, W.bfloat16()), {}, "weight", "bfloat16"),
        ((H, W[0]), {}, "weight", r"\[any, 4\]"),
        ((H, W[:, :3]), {}, "weight", r"\[10, 3\]"),
        ((H, W[:0]), {}, "weight", "vocabulary"),
        ((H, W.to("meta")), {}, "weight", "cpu"),
        ((H, W, W[0]), {}, "bias", r"\[10\]"),
        ((H, W, torch.zeros(10).double()), {}, "bias", "float64"),
        ((H, W), {"suppress_ids": [10]}, "suppress_ids", r"\[0, 10\)"),
        ((H, W), {"temperature": -1.0}, "temperature", "-1"),
        ((H, W), {"temperature": torch.zeros(4)}, "temperature", r"\[2, 3\]"),
        ((H, W), {"eligible": torch.ones(3, dtype=torch.bool)}, "eligible", r"\[2, 3\]"),
        ((H, W), {"round_logits": 1}, "round_logits", "True or False"),
        ((H, W), {"batch_invariant": None}, "batch_invariant", "True or False"),
        ((H, W), {"backend": "gpu"}, "backend", "gpu"),
    ],
)
def test_bad_input(arguments, options, argument, says):
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        score_hidden(*arguments, **options)
    assert str(caught.value).split()[0] == argument
