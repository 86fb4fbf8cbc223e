import math
from functools import cache

import pytest
import torch
from scipy.stats import chi2
from tolerances import assert_equal, assert_no_worse

from dlm_kernels import TokenScores, score_tokens
from dlm_kernels.rng import gumbel
from kernels.rows import NAMES, awkward_rows

pytestmark = pytest.mark.usefixtures("poisoned_empty")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
STATISTICS = TokenScores._fields[1:]
FALSE_ALARM = 1e-6  # of one frequency test, were its seed drawn anew

CASES = {
    "greedy": {},
    "greedy_sampling_confidence": {"confidence": "sampling", "top_k": 3},
    "t0.7": {"temperature": 0.7},
    "t1": {"temperature": 1.0, "step": 3},
    "t5": {"temperature": 5.0, "confidence": "sampling"},
    "top_k": {"temperature": 1.0, "top_k": 4, "confidence": "sampling"},
    "top_k_of_one": {"temperature": 1.0, "top_k": 1, "confidence": "sampling"},
    "top_p": {"temperature": 1.0, "top_p": 0.9, "confidence": "sampling"},
    "tiny_top_p": {"temperature": 1.0, "top_p": 1e-6, "confidence": "sampling"},
    "both": {"temperature": 0.7, "top_k": 20, "top_p": 0.6, "confidence": "sampling"},
    "both_top_p_first": {
        "temperature": 0.7, "top_k": 20, "top_p": 0.6, "confidence": "sampling", "filter_order": "top_p_first",
    },
    "suppressed": {"temperature": 1.0, "suppress_ids": [0]},
    "cold": {"temperature": 0.01, "top_p": 0.99, "confidence": "sampling"},
}  # fmt: skip
SHAPES = [(1, dtype, case) for dtype in DTYPES for case in CASES]
SHAPES += [(7, dtype, case) for dtype in DTYPES for case in CASES]
SHAPES += [(1000, dtype, case) for dtype in DTYPES for case in CASES]
SHAPES += [(126464, torch.float32, case) for case in ("greedy", "t1", "both")]
SHAPES += [(151936, torch.bfloat16, case) for case in ("greedy", "t1", "both_top_p_first")]
SHAPES += [(126464, torch.float16, "t1"), (151936, torch.float32, "suppressed")]


def distribution(x, token, dtype):
    """The four statistics from their definitions, and the highest probability; one row, in `dtype`."""
    x = x.to(dtype)
    p = torch.softmax(x, -1)
    top = p.sort(descending=True).values
    return torch.stack(
        [
            p[token],
            top[0] - (top[1] if top.numel() > 1 else 0),
            -torch.special.xlogy(p, p).sum(),
            torch.logsumexp(x, -1),
            top[0],
        ]
    )


def keep(x, scaled, top_k, top_p, order):
    """top-k and top-p by definition, one row: what is kept, as a set of values from some value up."""

    def by_k(kept):
        values = x[kept].sort(descending=True).values
        return kept & (x >= values[top_k - 1]) if 0 < top_k < values.numel() else kept

    def by_p(kept):
        if top_p == 1:
            return kept
        p = torch.softmax(scaled.double().masked_fill(~kept, -math.inf), -1)
        values, group = torch.unique(x[kept], return_inverse=True)  # ascending
        mass = torch.zeros(values.numel(), dtype=torch.float64).index_add(0, group, p[kept])
        above = mass.flip(0).cumsum(0).flip(0) - mass
        boundary = values[(above < top_p).nonzero()[0, 0]]
        return kept & (x >= boundary)

    kept = torch.ones_like(x, dtype=torch.bool)
    for rule in (by_k, by_p) if order == "top_k_first" else (by_p, by_k):
        kept = rule(kept)
    return kept


noise = cache(gumbel)  # large vocabularies take a while


def expected_row(x, row_id, *, temperature=0.0, top_k=0, top_p=1.0, seed=0, step=0, suppress_ids=(), confidence="model",
                 filter_order="top_k_first"):  # fmt: skip
    """(token, truth fp64 [5], eager fp32 [5]) of one row, from definitions: nothing of the library but its noise."""
    x = x.float()
    x[list(suppress_ids)] = -math.inf
    infinite = int((x == math.inf).sum())
    special = None
    if x.isnan().any():
        special = int(x.isnan().nonzero()[0, 0]), [math.nan] * 5
    elif infinite:
        special = (
            int((x == math.inf).nonzero()[0, 0]),
            [1 / infinite, float(infinite == 1), math.log(infinite), math.inf, 1.0],
        )
    elif (x == -math.inf).all():
        special = 0, [0.0, 0.0, 0.0, -math.inf, 1.0]
    if special:
        return special[0], *(torch.tensor(special[1], dtype=dtype) for dtype in (torch.float64, torch.float32))
    t = torch.tensor(temperature or 1.0)
    scaled = (x - x.max()) / t
    kept = keep(x, scaled, top_k, top_p, filter_order)
    if temperature > 0:
        token = int((scaled + noise(seed, row_id, step, x.numel())).masked_fill(~kept, -math.inf).argmax())
    else:
        token = int((x == x.max()).nonzero()[0, 0])
    if confidence == "model":
        t, kept = torch.tensor(1.0), torch.ones_like(kept)
    truth = distribution(((x.double() - x.max()) / t).masked_fill(~kept, -math.inf), token, torch.float64)
    eager = distribution(((x - x.max()) / t).masked_fill(~kept, -math.inf), token, torch.float32)
    truth[3] += x.max().double() / t
    eager[3] += x.max() / t
    return token, truth, eager


@cache
def expectation(vocabulary, dtype, case):
    rows = awkward_rows(vocabulary, dtype)
    results = [expected_row(row, i, seed=11, **CASES[case]) for i, row in enumerate(rows)]
    tokens, truths, eagers = zip(*results, strict=True)
    return rows, torch.tensor(tokens), torch.stack(truths), torch.stack(eagers)


@pytest.mark.parametrize(("vocabulary", "dtype", "case"), SHAPES, ids=lambda value: str(value).removeprefix("torch."))
def test_scores_match_their_definitions(backend, vocabulary, dtype, case):
    rows, tokens, truth, eager = expectation(vocabulary, dtype, case)
    scores = score_tokens(rows, seed=11, backend=backend, **CASES[case])
    assert_equal("token", scores.token, tokens, NAMES)
    for i, name in enumerate(STATISTICS):
        scale = truth[:, 4] if name == "margin" else 1.0
        assert_no_worse(name, getattr(scores, name), truth[:, i].float(), eager[:, i], NAMES, scale)


@pytest.mark.parametrize("vocabulary", [613, 2049, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_backend_picks_the_reference_tokens(fast_backend, dtype, vocabulary):
    """Many random rows with parameters of their own: the whole chain down to the last bit of the noise."""
    rows = 100
    x = torch.randn(rows, vocabulary) * torch.rand(rows, 1) * 8
    x[torch.arange(rows), torch.randint(vocabulary, (rows,))] += torch.rand(rows) * 60  # from flat to peaked
    x = x.to(dtype)
    parameters = {
        "temperature": torch.rand(rows) * 3 * (torch.rand(rows) < 0.8),
        "top_k": torch.randint(0, 40, (rows,)),
        "top_p": (torch.rand(rows) * 1.3).clamp(0.01, 1),
        "seed": torch.randint(-(2**62), 2**62, (rows,)),
        "row_ids": torch.randint(2**62, (rows,)),
        "step": torch.randint(2**31, (rows,)),
    }
    for confidence in ("model", "sampling"):
        for order in ("top_k_first", "top_p_first"):
            options = {**parameters, "confidence": confidence, "filter_order": order, "suppress_ids": [3, 600, 3]}
            got = score_tokens(x, backend=fast_backend, **options)
            wanted = score_tokens(x, backend="reference", **options)
            assert_equal("token", got.token, wanted.token)
            for name in STATISTICS:
                truth = getattr(wanted, name)
                assert_no_worse(name, getattr(got, name), truth, truth)


def test_thousands_of_short_rows_have_the_reference_tokens(fast_backend):
    """12,000 rows with parameters of their own, half of them in bf16: no token differs."""
    rows, vocabulary = 6000, 67
    options = {
        "temperature": torch.rand(rows) * 1.5 * (torch.rand(rows) < 0.9),
        "top_k": torch.randint(0, vocabulary, (rows,)),
        "top_p": 1 - torch.rand(rows) * (torch.rand(rows) < 0.7),
        "seed": torch.randint(-(2**63), 2**63 - 1, (rows,)),
        "step": torch.arange(rows) % 7,
    }
    for dtype, order in ((torch.float32, "top_k_first"), (torch.bfloat16, "top_p_first")):
        x = (torch.randn(rows, vocabulary) * 4).to(dtype)
        got, wanted = (
            score_tokens(x, filter_order=order, backend=name, **options).token for name in (fast_backend, "reference")
        )
        assert_equal("token", got, wanted)


def test_per_row_parameters_are_those_rows_alone(backend):
    x = torch.randn(6, 50)
    temperature = torch.tensor([0.0, 0.5, 1.0, 2.0, 1.0, 0.0])
    top_k, top_p = torch.tensor([0, 3, 0, 5, 1, 2]), torch.tensor([1.0, 0.9, 0.5, 1.0, 0.3, 0.4])
    seed, step = torch.tensor([1, 2, 3, -4, 5, 6]), torch.tensor([0, 1, 2, 3, 4, 5])
    options = {"confidence": "sampling", "backend": backend}
    batch = score_tokens(x, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, step=step, **options)
    for i in range(6):
        alone = score_tokens(
            x[i], temperature=float(temperature[i]), top_k=int(top_k[i]), top_p=float(top_p[i]), seed=int(seed[i]),
            step=int(step[i]), row_ids=i, **options,
        )  # fmt: skip
        for name, value in alone._asdict().items():
            assert_equal(name, value, getattr(batch, name)[i])


@pytest.mark.parametrize("vocabulary", [7, 1000, 126464])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_neighbours_strides_or_threads(backend, two_threads, vocabulary, dtype):
    if backend == "reference" and vocabulary > 1000:
        pytest.skip("the reference takes seconds there and is row by row anyway")
    x = torch.randn(2, 5, vocabulary).mul(4).to(dtype)
    ids = torch.arange(10).view(2, 5)
    options = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "seed": 3, "backend": backend}
    whole = score_tokens(x, row_ids=ids, **options)

    def check(name, got, select):
        for field, value in got._asdict().items():
            assert_equal(f"{field} ({name})", value, select(getattr(whole, field)))

    check("one row alone", score_tokens(x[1, 2], row_ids=7, **options), lambda t: t[1, 2])
    shuffle = torch.tensor([3, 0, 4, 1, 2])
    check("shuffled", score_tokens(x[:, shuffle], row_ids=ids[:, shuffle], **options), lambda t: t[:, shuffle])
    check("strided", score_tokens(x[:, ::2], row_ids=ids[:, ::2], **options), lambda t: t[:, ::2])
    check("transposed", score_tokens(x.transpose(0, 1), row_ids=ids.T, **options), lambda t: t.T)
    check("four dimensions", score_tokens(x[:, None], row_ids=ids[:, None], **options), lambda t: t[:, None])
    column_major = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert vocabulary == 1 or column_major.stride(-1) != 1
    check("last stride not 1", score_tokens(column_major, row_ids=ids, **options), lambda t: t)
    padded = torch.full((2, 7, vocabulary + 3), math.nan).to(dtype)
    padded[:, 1:6, 1:-2] = x
    check("a window of a larger tensor", score_tokens(padded[:, 1:6, 1:-2], row_ids=ids, **options), lambda t: t)
    expanded = x[:1].expand(3, -1, -1)
    check("expanded", score_tokens(expanded, row_ids=ids[:1], **options), lambda t: t[:1].expand(3, -1))
    torch.set_num_threads(1)
    check("one thread", score_tokens(x, row_ids=ids, **options), lambda t: t)
    check("one thread, one row", score_tokens(x[1, 2], row_ids=7, **options), lambda t: t[1, 2])


def test_rows_that_are_not_eligible_are_not_read(backend):
    x = torch.randn(3, 4, 200)
    eligible = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    clean = score_tokens(x, temperature=1.0, backend=backend)
    x[~eligible] = math.nan
    before = x.clone()
    scores = score_tokens(x, temperature=1.0, eligible=eligible, backend=backend)
    assert_equal("logits", x, before)
    skipped = {"token": 0, "confidence": 0.0, "margin": 0.0, "entropy": 0.0, "logsumexp": -math.inf}
    for name, value in scores._asdict().items():
        assert_equal(name, value, torch.where(eligible, getattr(clean, name), skipped[name]))
    flat = score_tokens(x.flatten(0, 1), temperature=1.0, eligible=eligible.flatten(), backend=backend)
    assert_equal("token of flat rows", flat.token, scores.token.flatten())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_suppressed_ids_count_as_minus_infinity(backend, temperature):
    x = torch.randn(5, 40)
    ids = [0, 7, 39, 7]
    x[0, 7], x[1, 0], x[2, 39] = math.nan, math.inf, 1e30
    cleared = x.clone()
    cleared[:, ids] = -math.inf
    before = x.clone()
    wanted = score_tokens(cleared, temperature=temperature, top_k=5, confidence="sampling", backend=backend)
    for given in (ids, torch.tensor(ids)):
        got = score_tokens(
            x, temperature=temperature, top_k=5, confidence="sampling", suppress_ids=given, backend=backend
        )
        for name, value in got._asdict().items():
            assert_equal(name, value, getattr(wanted, name))
    assert_equal("logits", x, before)
    all_gone = score_tokens(x, temperature=temperature, suppress_ids=list(range(40)), backend=backend)
    assert all_gone.token.eq(0).all()
    assert all_gone.confidence.eq(0).all()
    assert all_gone.logsumexp.eq(-math.inf).all()


@pytest.mark.parametrize("shape", [(0, 9), (0, 3, 9), (2, 0, 9), (2, 0, 3, 9)])
def test_no_rows(backend, shape):
    for name, value in score_tokens(torch.empty(shape), temperature=1.0, top_k=2, backend=backend)._asdict().items():
        assert value.shape == shape[:-1], name


def test_nothing_eligible(backend):
    scores = score_tokens(torch.randn(2, 9), eligible=torch.zeros(2, dtype=torch.bool), backend=backend)
    assert scores.token.tolist() == [0, 0]
    assert scores.logsumexp.tolist() == [-math.inf] * 2


def test_draws_change_with_seed_row_and_step(backend):
    x = torch.zeros(64, 1000)
    options = {"temperature": 1.0, "backend": backend}
    base = score_tokens(x, **options).token
    assert base.unique().numel() > 50
    for change in ({"seed": 1}, {"seed": 2**32}, {"row_ids": torch.arange(64) + (1 << 32)}, {"step": 1}):
        assert (score_tokens(x, **options, **change).token == base).sum() < 5, change
    assert_equal("token", score_tokens(x, **options).token, base)
    large = score_tokens(x, seed=2**64 - 1, **options).token
    assert_equal("unsigned seeds", large, score_tokens(x, seed=-1, **options).token)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 2.5},
        {"temperature": 1.0, "top_k": 4},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 0.7, "top_k": 6, "top_p": 0.9},
        {"temperature": 0.7, "top_k": 6, "top_p": 0.9, "filter_order": "top_p_first"},
    ],
    ids=str,
)
def test_sampled_frequencies(backend, options):
    """Chi-square over 60,000 draws; what is filtered out is never drawn."""
    draws = 60_000
    x = torch.tensor([2.0, 1.5, 1.4, 1.0, 0.4, 0.2, 0.0, -0.5, -1.0, -3.0, -6.0])
    scores = score_tokens(x.expand(draws, -1), seed=2024, backend=backend, **options)
    scaled = (x - x.max()) / options["temperature"]
    kept = keep(
        x, scaled, options.get("top_k", 0), options.get("top_p", 1.0), options.get("filter_order", "top_k_first")
    )
    p = torch.softmax(scaled.double().masked_fill(~kept, -math.inf), -1)
    counts = torch.bincount(scores.token, minlength=x.numel()).double()
    assert counts[~kept].sum() == 0
    statistic = ((counts[kept] - draws * p[kept]) ** 2 / (draws * p[kept])).sum()
    assert chi2.sf(float(statistic), int(kept.sum()) - 1) > FALSE_ALARM, counts


def test_draws_of_neighbouring_positions_and_steps_are_independent(backend):
    """Chi-square over pairs of draws of adjacent keys, on a 4 x 4 table."""
    draws = 40_000
    x = torch.zeros(draws, 4)
    first = score_tokens(x, temperature=1.0, seed=5, backend=backend).token
    for second in (first.roll(1), score_tokens(x, temperature=1.0, seed=5, step=1, backend=backend).token):
        counts = torch.bincount(first * 4 + second, minlength=16).double()
        statistic = ((counts - draws / 16) ** 2 / (draws / 16)).sum()
        assert chi2.sf(float(statistic), 15) > FALSE_ALARM


def test_nucleus_ends_where_its_mass_reaches_p(backend):
    """Masses of exactly 1, 1/2 and 1/2: at p = 1/2 the first token is the nucleus, a hair above it all three are."""
    half = -math.log(2)  # portable_math.exp gives exactly 0.5 here
    x = torch.tensor([[half, 0.0, half]]).expand(2, -1)
    top_p = torch.tensor([0.5, 0.5 + 2.0**-24])
    scores = score_tokens(x, top_p=top_p, confidence="sampling", backend=backend)
    assert scores.confidence.tolist() == [1.0, 0.5]


def test_every_bit_of_the_noise_counts(backend):
    """Two candidates a row whose noised values are equal or a bit apart: noise off by one bit changes many tokens."""
    rows, vocabulary, low, high = 30_000, 64, 5, 38
    noise = gumbel(12, torch.arange(rows), 0, vocabulary)[:, [low, high]]
    logits = torch.zeros(rows, 2)
    behind = noise.argmax(-1, keepdim=True)  # the one with more noise gets the lower logit
    gap = -noise.diff(dim=-1).abs()
    gap[1::2] = torch.nextafter(gap[1::2], torch.tensor(-math.inf))
    logits.scatter_(1, behind, gap)
    noised = logits + noise
    assert (noised[:, 0] == noised[:, 1]).float().mean() > 0.3
    x = torch.full((rows, vocabulary), -math.inf)
    x[:, [low, high]] = logits
    wanted = torch.where(noised[:, 0] >= noised[:, 1], low, high)
    assert_equal("token", score_tokens(x, temperature=1.0, seed=12, backend=backend).token, wanted)


@pytest.mark.parametrize(("last", "row_id"), [(6, 73527243), (40000, 144456454)])
def test_noised_ties_go_to_the_lowest_index(backend, two_threads, last, row_id):
    """Keys for which, after a search, 0 + noise of the first entry equals 0.25 + noise of the last, to the bit."""
    x = torch.full((1, last + 1), -math.inf)
    x[0, 0], x[0, last] = 0.0, 0.25
    noise = gumbel(0, row_id, 0, last + 1)
    assert (x[0, 0] - x[0, last]) + noise[0] == noise[last]
    assert score_tokens(x, temperature=1.0, row_ids=row_id, backend=backend).token.tolist() == [0]


def test_unlikely_tokens_win_as_often_as_they_should(fast_backend):
    """One tall entry and thousands of low ones that together weigh as much: kernels that skip what cannot win must not."""
    x = torch.zeros(60, 20_000)
    x[:, 5] = math.log(20_000)
    got, wanted = (score_tokens(x, temperature=1.0, seed=6, backend=name).token for name in (fast_backend, "reference"))
    assert 15 < (got == 5).sum() < 45
    assert_equal("token", got, wanted)


def test_logits_that_require_grad_are_read_only(backend):
    x = torch.randn(2, 8, requires_grad=True)
    scores = score_tokens(x, backend=backend)
    assert not scores.confidence.requires_grad
    assert_equal("token", scores.token, x.detach().argmax(-1))
