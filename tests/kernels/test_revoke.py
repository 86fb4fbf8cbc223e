import itertools
import math

import pytest
import torch
from scipy.stats import chi2
from tolerances import assert_equal

from dlm_kernels import InvalidArgumentError, revoke_
from dlm_kernels.rng import keyed_uniform, make_row_ids
from kernels.operators import check_compiles, check_operator

OP = "revoke_"
pytestmark = pytest.mark.usefixtures("poisoned_empty")
every_backend = pytest.mark.usefixtures("in_backend")

MASK = 9
FALSE_ALARM = 1e-6  # of one frequency test, were its seed drawn anew
NAN = math.nan


def revoked_one_by_one(tokens, confidence, eligible, committed, threshold=None, quota=None):
    """The rules in plain Python, for one row."""
    candidates = [i for i, token in enumerate(tokens) if token != MASK and eligible[i]]
    order = sorted(candidates, key=lambda i: (math.isnan(confidence[i]), confidence[i], i))
    chosen = {i for i in candidates if threshold is not None and confidence[i] < threshold}
    chosen |= set(order[: quota or 0])
    kept = [i for i in order if i in chosen][: max(committed - 1, 0)]
    return [i in kept for i in range(len(tokens))]


def problem(rows=40, length=17):
    tokens = torch.randint(0, MASK + 1, (rows, length))
    confidence = torch.randint(0, 6, (rows, length)) / 5  # with ties
    confidence[torch.rand(rows, length) < 0.1] = NAN
    return tokens, confidence, torch.rand(rows, length) < 0.8


@every_backend
@pytest.mark.parametrize("rules", [("threshold",), ("quota",), ("threshold", "quota")], ids="-".join)
def test_rules_match_plain_python(rules):
    tokens, confidence, eligible = problem()
    rows = len(tokens)
    options = {"threshold": torch.randint(1, 6, (rows,)) / 5, "quota": torch.randint(0, 5, (rows,))}
    options = {name: options[name] for name in rules}
    committed = torch.randint(0, 6, (rows,))
    wanted = torch.tensor([
        revoked_one_by_one(
            tokens[b].tolist(), confidence[b].tolist(), eligible[b].tolist(), int(committed[b]),
            **{name: value[b].item() for name, value in options.items()},
        )
        for b in range(rows)
    ])  # fmt: skip
    assert wanted.any()
    before = tokens.clone()
    stats = revoke_(tokens, confidence, mask_id=MASK, eligible=eligible, committed=committed.int(), **options)
    assert_equal("revoked", stats.revoked, wanted)
    assert_equal("remasked", stats.remasked, wanted.sum(-1, dtype=torch.int32))
    assert_equal("tokens", tokens, before.masked_fill(wanted, MASK))


@every_backend
@pytest.mark.parametrize("rule", [{"threshold": 1.0}, {"quota": 99}, {"probability": 1.0}], ids=str)
@pytest.mark.parametrize("committed", [0, 1, 2, 7])
def test_fewer_are_remasked_than_were_committed(rule, committed):
    tokens, confidence, _ = problem()
    confidence = torch.rand(tokens.shape) * 0.9
    there = (tokens != MASK).sum(-1)
    stats = revoke_(tokens, confidence, mask_id=MASK, committed=committed, **rule)
    assert_equal("remasked", stats.remasked.long(), there.clamp(max=max(committed - 1, 0)))


@every_backend
def test_every_loop_that_commits_more_than_it_revokes_ends():
    """The worst verifier there is: it distrusts everything, always."""
    tokens = torch.full((3, 12), MASK)
    for step in range(12):  # a gain of one position a step
        masked = tokens == MASK
        commits = masked & (masked.cumsum(-1) <= 2)
        tokens[commits] = 1
        stats = revoke_(tokens, torch.zeros(3, 12), mask_id=MASK, threshold=1.0, committed=commits.sum(-1), step=step)
        assert (stats.remasked < commits.sum(-1)).all()
    assert (tokens != MASK).all()


@every_backend
def test_probabilities_are_those_asked_for():
    """Chi-square over 4 probabilities; 0 never happens and 1 always does."""
    draws = 20_000
    sigma = torch.tensor([0.0, 0.03, 0.5, 0.9, 1.0])
    tokens = torch.zeros(draws, 5, dtype=torch.int64)
    stats = revoke_(tokens, torch.zeros(draws, 5), mask_id=MASK, probability=sigma, seed=3)
    counts = stats.revoked.sum(0).double()
    assert counts[0] == 0
    assert counts[-1] == draws
    p = sigma[1:-1].double()
    statistic = ((counts[1:-1] - draws * p) ** 2 / (draws * p * (1 - p))).sum()
    assert chi2.sf(float(statistic), 3) > FALSE_ALARM, counts


RULES = ("threshold", "quota", "probability")


@pytest.mark.parametrize("rules", [r for n in range(4) for r in itertools.combinations(RULES, n)], ids="-".join)
@pytest.mark.parametrize("length", [1, 7, 256])
def test_every_backend_revokes_what_the_reference_does(fast_backend, length, rules):
    """Ties, signed zeros, NaN and infinities, in views of larger tensors."""
    rows = 100
    canvas, wide, _ = problem(rows, 2 * length)
    values = torch.tensor([0.0, -0.0, 0.3, 0.3, 0.7, 1.0, NAN, math.inf, -math.inf])
    wide = torch.where(torch.rand(wide.shape) < 0.5, values[torch.randint(len(values), wide.shape)], wide)
    confidence, eligible = wide.T.contiguous().T[:, ::2], torch.rand(rows, length) < 0.8
    everything = {
        "threshold": torch.rand(rows).clamp(min=0.01),
        "quota": torch.randint(0, length + 2, (rows,)),
        "probability": torch.rand(rows, length),
    }
    options = {name: everything[name] for name in rules}
    keys = {"seed": torch.randint(2**62, (rows, 1)), "step": torch.randint(2**31, (rows, length))}
    limits = [{"committed": torch.randint(0, length + 3, (rows,))}]
    if not {"threshold", "quota"} & set(rules):
        limits.append({})
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for given in (*limits, {**limits[0], "eligible": eligible}):
            got, wanted = canvas.clone(), canvas.clone()
            stats, truth = (
                revoke_(t[:, ::2], confidence.to(dtype), mask_id=MASK, **given, **keys, **options, backend=name)
                for t, name in ((got, fast_backend), (wanted, "reference"))
            )
            assert_equal("revoked", stats.revoked, truth.revoked)
            assert_equal("remasked", stats.remasked, truth.remasked)
            assert_equal("canvas", got, wanted)


@every_backend
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_no_rows(shape):
    stats = revoke_(torch.zeros(shape, dtype=torch.int64), torch.zeros(shape), mask_id=MASK, quota=2, committed=3)
    assert stats.remasked.tolist() == [0] * shape[0]
    assert stats.revoked.shape == shape


@every_backend
def test_draws_do_not_depend_on_batch_neighbours():
    tokens, confidence, _ = problem(6, 8)
    ids, seed = make_row_ids(torch.arange(6)[:, None], torch.arange(8)), torch.arange(6)[:, None]
    whole = tokens.clone()
    revoke_(whole, confidence, mask_id=MASK, probability=0.5, seed=seed, step=4)
    pick = torch.tensor([4, 1])
    part = tokens[pick]
    revoke_(part, confidence[pick], mask_id=MASK, probability=0.5, seed=seed[pick], row_ids=ids[pick], step=4)
    assert_equal("tokens", part, whole[pick])
    other = tokens.clone()
    revoke_(other, confidence, mask_id=MASK, probability=0.5, seed=seed, step=5)
    assert (other != whole).any()


@every_backend
def test_the_draw_is_not_that_of_the_random_order():
    """`denoise_step_(score="random")` uses stream 1; with it here, what was committed would decide what is revoked."""
    tokens, ids = torch.zeros(4, 50, dtype=torch.int64), make_row_ids(torch.arange(4)[:, None], torch.arange(50))
    stats = revoke_(tokens, torch.zeros(4, 50), mask_id=MASK, probability=0.5)
    assert (stats.revoked != (keyed_uniform(0, ids, 0, stream=1) < 0.5)).any()


@every_backend
def test_without_a_rule_nothing_is_revoked_and_views_are_written_through():
    canvas, confidence, _ = problem(4, 10)
    before = canvas.clone()
    assert not revoke_(canvas, confidence, mask_id=MASK).revoked.any()
    assert_equal("canvas", canvas, before)
    wanted = before.clone()
    wanted[:, ::2] = MASK
    revoke_(canvas[:, ::2], confidence[:, ::2], mask_id=MASK, probability=1.0)
    assert_equal("canvas", canvas, wanted)


@every_backend
def test_opcheck_and_compile(in_backend):
    tokens, confidence, eligible = problem(3, 6)
    full = {
        "eligible": eligible,
        "threshold": 0.5,
        "quota": torch.tensor([1, 2, 0]),
        "committed": 3,
        "probability": 0.2,
    }
    check_operator(
        "revoke_",
        lambda: revoke_(tokens, confidence, mask_id=MASK),
        lambda: revoke_(tokens, confidence.half(), mask_id=MASK, **full),
    )
    check_compiles(
        lambda t, c, e: (*revoke_(t, c, mask_id=MASK, **{**full, "eligible": e}), t + 1),
        *problem(3, 6),
        backend=in_backend,
    )


IDS, SCORE, YES = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("tokens", "confidence", "options", "argument", "says"),
    [
        (IDS.int(), SCORE, {}, "tokens", "int32"),
        (IDS[:1].expand(2, 3), SCORE, {}, "tokens", "expanded"),
        (IDS, SCORE.double(), {}, "confidence", "float64"),
        (IDS, SCORE[:1], {}, "confidence", r"\[2, 3\]"),
        (IDS, SCORE, {"mask_id": -1}, "mask_id", "-1"),
        (IDS, SCORE, {"eligible": YES[:1]}, "eligible", r"\[2, 3\]"),
        (IDS, SCORE, {"threshold": 0.5}, "committed", "so that the loop ends"),
        (IDS, SCORE, {"quota": 2}, "committed", "so that the loop ends"),
        (IDS, SCORE, {"threshold": 0.0, "committed": 1}, "threshold", "0.0"),
        (IDS, SCORE, {"quota": -1, "committed": 1}, "quota", "-1"),
        (IDS, SCORE, {"quota": 1, "committed": -1}, "committed", "-1"),
        (IDS, SCORE, {"quota": 1, "committed": 1.0}, "committed", "float"),
        (IDS, SCORE, {"probability": 1.5}, "probability", "1.5"),
        (IDS, SCORE, {"probability": torch.zeros(2)}, "probability", r"\[2, 3\]"),
        (IDS, SCORE, {"step": -1}, "step", "-1"),
        (IDS, SCORE, {"seed": 0.5}, "seed", "0.5"),
    ],
)
def test_bad_input(tokens, confidence, options, argument, says):
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        revoke_(tokens, confidence, **{"mask_id": MASK, **options})
    assert str(caught.value).split()[0] == argument
