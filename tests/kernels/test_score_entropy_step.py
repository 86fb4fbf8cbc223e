import math

import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import InvalidArgumentError, score_entropy_step_
from dlm_kernels.reference import score_entropy_step as reference
from dlm_kernels.rng import gumbel, make_row_ids
from kernels.frequencies import FALSE_ALARM, assert_draws_from, forward_matrix, p_value, reverse_by_bayes
from kernels.operators import check_compiles, check_operator
from kernels.steps import assert_reference_tokens, every_shape, few, random_problem

OP = "score_entropy_step_"
pytestmark = pytest.mark.usefixtures("poisoned_empty")
every_backend = pytest.mark.usefixtures("in_backend")

STATES = 5
MASK = 4
DRAWS = 30_000
NOISE = {
    "absorb": torch.nn.functional.one_hot(torch.tensor(MASK), STATES).double(),
    "uniform": torch.full((STATES,), 1 / STATES, dtype=torch.float64),
}
PRIOR = {
    "absorb": torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0], dtype=torch.float64),
    "uniform": torch.tensor([0.45, 0.3, 0.15, 0.08, 0.02], dtype=torch.float64),
}
NOISE_LEVELS = [(0.5, 0.1), (0.5, 0.5), (2.0, 0.7), (8.0, 3.0)]  # sigma(t), its drop over the step
JUMPS_FROM = {"absorb": [MASK], "uniform": [0, 4]}


def marginal(graph, sigma):
    return PRIOR[graph] @ forward_matrix(math.exp(-sigma), NOISE[graph])


def log_scores(graph, sigma):
    """[x_t, y]: log p_t(y) / p_t(x_t), exact."""
    p = marginal(graph, sigma)
    return (p[None] / p[:, None]).log().float()


def draw(graph, x_t, log_score, **options):
    tokens = torch.full((1, DRAWS), x_t)
    if graph == "absorb":
        options["mask_id"] = MASK
    changed = score_entropy_step_(tokens, log_score.expand(1, DRAWS, -1), graph=graph, **options)
    assert_equal("changed", changed, tokens != x_t)
    return tokens[0]


def euler(graph, log_score, x_t, delta):
    """one_hot(x_t) + delta (reverse rates), from the rate matrix of the graph; what is negative is 0."""
    rate = NOISE[graph][None] - torch.eye(STATES, dtype=torch.float64)  # [from, to]
    score = log_score.double().exp()
    score[x_t] = 1
    reverse = rate[:, x_t] * score  # to y: the forward rate from y to x_t, times p(y) / p(x_t)
    reverse[x_t] = 0
    reverse[x_t] = -reverse.sum()
    p = (torch.eye(STATES, dtype=torch.float64)[x_t] + delta * reverse).clamp(min=0)
    return p / p.sum()


@every_backend
@pytest.mark.parametrize("graph", NOISE)
@pytest.mark.parametrize(("sigma", "delta"), NOISE_LEVELS)
def test_analytic_step_with_exact_scores_is_the_posterior_by_bayes(graph, sigma, delta):
    wanted = reverse_by_bayes(PRIOR[graph], math.exp(-sigma), math.exp(delta - sigma), NOISE[graph])
    for x_t in JUMPS_FROM[graph]:
        scores = log_scores(graph, sigma)[x_t]
        assert_draws_from(wanted[x_t], draw(graph, x_t, scores, method="analytic", delta_sigma=delta, seed=3))


@every_backend
@pytest.mark.parametrize("graph", NOISE)
@pytest.mark.parametrize(("sigma", "delta"), NOISE_LEVELS)
def test_euler_step_follows_the_reverse_rates(graph, sigma, delta):
    for x_t in JUMPS_FROM[graph]:
        scores = log_scores(graph, sigma)[x_t]
        wanted = euler(graph, scores, x_t, delta)
        assert_draws_from(wanted, draw(graph, x_t, scores, method="euler", delta_sigma=delta, seed=4))


@every_backend
def test_an_euler_step_too_long_for_the_rates_leaves_for_sure():
    """Staying would have probability -0.08 and -1.9."""
    for sigma, delta in ((0.5, 0.7), (2.0, 2.9 * (math.exp(2) - 1))):
        leaving = delta * log_scores("absorb", sigma)[MASK, :MASK].double().exp().sum()
        assert leaving > 1
        assert (draw("absorb", MASK, log_scores("absorb", sigma)[MASK], delta_sigma=delta) != MASK).all()


@every_backend
def test_negative_probabilities_of_inexact_scores_count_as_zero():
    scores = torch.tensor([0.0, 3.0, -6.0, -7.0, 0.3])
    e = math.exp(-0.4)
    s = scores.double().exp()
    s[0] = 1
    staggered = s / e - (1 - e) / (STATES * e) * s.sum()
    assert (staggered < 0).sum() >= 2
    wanted = (staggered * forward_matrix(e, NOISE["uniform"])[:, 0]).clamp(min=0)
    draws = draw("uniform", 0, scores, method="analytic", delta_sigma=0.4)
    assert_draws_from(wanted / wanted.sum(), draws)


@every_backend
@pytest.mark.parametrize("graph", NOISE)
@pytest.mark.parametrize("method", ["euler", "analytic"])
def test_a_whole_chain_ends_in_the_target(graph, method):
    """From noise, with exact scores. Analytic steps: chi-square. Euler steps have a bias of their own: total variation."""
    steps, top = (8, 8.0) if method == "analytic" else (96, 8.0)
    grid = [top * (1 - i / steps) ** 2 for i in range(steps + 1)]
    tokens = torch.multinomial(marginal(graph, top), DRAWS, replacement=True)[None]
    mask = {"mask_id": MASK} if graph == "absorb" else {}
    for step in range(steps):
        last = graph == "absorb" and step == steps - 1
        score_entropy_step_(
            tokens, log_scores(graph, grid[step])[tokens], graph=graph, method=method, step=step, denoise=last,
            delta_sigma=grid[step] - grid[step + 1], **mask,
        )  # fmt: skip
    if method == "analytic":
        assert_draws_from(PRIOR[graph], tokens[0])
    else:
        assert (torch.bincount(tokens[0], minlength=STATES) / DRAWS - PRIOR[graph]).abs().sum() / 2 < 0.03


@every_backend
def test_the_frequency_test_sees_a_wrong_step():
    wanted = reverse_by_bayes(PRIOR["uniform"], math.exp(-0.5), math.exp(-0.4), NOISE["uniform"])[4]
    scores = log_scores("uniform", 0.5)[4]
    assert p_value(draw("uniform", 4, scores, method="analytic", delta_sigma=0.12), wanted) < FALSE_ALARM
    wanted = reverse_by_bayes(PRIOR["uniform"], math.exp(-0.5), math.exp(-0.2), NOISE["uniform"])[4]
    assert p_value(draw("uniform", 4, scores, method="euler", delta_sigma=0.3), wanted) < FALSE_ALARM


@every_backend
def test_the_last_step_leaves_no_mask_and_draws_by_the_scores():
    scores = log_scores("absorb", 1.0)[MASK]
    assert_draws_from(PRIOR["absorb"], draw("absorb", MASK, scores, denoise=True, delta_sigma=0.0))


@every_backend
def test_the_score_of_x_t_is_not_read():
    scores = log_scores("uniform", 1.0)[2]
    for method in ("euler", "analytic"):
        wanted = draw("uniform", 2, scores, method=method, delta_sigma=0.3)
        poisoned = scores.clone()
        poisoned[2] = math.nan
        assert_equal("tokens", draw("uniform", 2, poisoned, method=method, delta_sigma=0.3), wanted)
    scores = log_scores("absorb", 1.0)[MASK]
    poisoned = scores.clone()
    poisoned[MASK] = math.nan
    assert_equal(
        "tokens", draw("absorb", MASK, poisoned, delta_sigma=0.3), draw("absorb", MASK, scores, delta_sigma=0.3)
    )


KINDS = [
    ("absorb", "euler", False), ("absorb", "analytic", False), ("absorb", "euler", True),
    ("uniform", "euler", False), ("uniform", "analytic", False),
]  # fmt: skip


@pytest.mark.parametrize(("graph", "method", "denoise"), KINDS)
@every_shape
def test_every_backend_picks_the_reference_tokens(fast_backend, vocabulary, dtype, graph, method, denoise):
    """Awkward rows among them. Enough like the reference's for equality: see below for the near ties of many rows."""
    mask_id = vocabulary - 1 if graph == "absorb" else None
    problem = random_problem(vocabulary, dtype, mask_id, scale=0.5)
    keys = {name: problem.scoring[name] for name in ("seed", "row_ids", "step")}
    mean_score = (
        torch.logsumexp(problem.logits[2:].double(), -1).exp().mean() if len(problem.logits) > 2 else vocabulary
    )
    some = torch.rand(len(problem.canvas), dtype=torch.float64)
    some[0] = 0.0  # nothing may move, but for infinite scores
    everything = {"eligible": problem.eligible, **keys}
    cases = ((some * 3, {}), (some, everything), (some / mean_score, everything))
    for delta, options in few(cases, vocabulary):
        assert_reference_tokens(
            lambda t, x, delta=delta, o=options: score_entropy_step_(
                t, x, graph=graph, method=method, mask_id=mask_id, denoise=denoise, delta_sigma=delta, **o
            ),
            problem,
            fast_backend,
        )


@pytest.mark.parametrize(("graph", "method", "denoise"), KINDS)
def test_near_ties_alone_may_fall_otherwise(fast_backend, graph, method, denoise):
    """The weights are fp64 exponentials, sums and logarithms, which libraries round differently in the last place.

    A token may change only where two noised weights are equal but for that: less than one row in 10,000, and every such row is
    checked to be one.
    """
    rows, vocabulary = 12_000, 50
    tokens, scores = torch.randint(vocabulary, (rows, 1)), torch.randn(rows, 1, vocabulary) * 2
    mask_id = None
    if graph == "absorb":
        mask_id, tokens = vocabulary - 1, torch.full_like(tokens, vocabulary - 1)
    delta = 10 ** (-3 * torch.rand(rows, dtype=torch.float64))
    options = {"graph": graph, "method": method, "mask_id": mask_id, "denoise": denoise, "delta_sigma": delta}
    got, wanted = tokens.clone(), tokens.clone()
    score_entropy_step_(got, scores, **options, backend=fast_backend)
    changed = score_entropy_step_(wanted, scores, **options, backend="reference")
    assert changed.sum() > rows / 10
    differing = (got != wanted)[:, 0].nonzero()[:, 0]
    assert len(differing) * 10_000 < rows
    for row in differing.tolist():
        s, x_t, d = scores[row].double().exp(), tokens[row], delta[row : row + 1, None]
        if graph == "absorb":
            weight = reference.absorb(s, mask_id, d, method, denoise)[0]
        else:
            step = reference.uniform_euler if method == "euler" else reference.uniform_analytic
            weight = step(s, x_t, d)[0]
        noised = weight.clamp(min=0).log() + gumbel(0, row << 32, 0, vocabulary).double()
        assert (noised[got[row, 0]] - noised[wanted[row, 0]]).abs() < 1e-5


def test_unlikely_states_win_as_often_as_they_should(fast_backend):
    """One tall score and thousands of low ones that together weigh as much: kernels that skip what cannot win must not."""
    rows, vocabulary = 40, 60_000
    scores = torch.zeros(rows, 1, vocabulary)
    scores[..., 5] = math.log(vocabulary)
    options = {"graph": "absorb", "mask_id": 7, "denoise": True, "delta_sigma": 0.1}
    got, wanted = torch.full((2, rows, 1), 7)
    score_entropy_step_(got, scores, **options, backend=fast_backend)
    score_entropy_step_(wanted, scores, **options, backend="reference")
    assert 8 < (got == 5).sum() < 32
    assert_equal("tokens", got, wanted)


def test_the_sum_counts_what_is_far_below_the_maximum(fast_backend):
    """A tenth of the rate out of the mask comes from scores e^-11 as large as the highest, in other parts of the row."""
    rows, vocabulary = 600, 6000
    scores = torch.full((1, 1, vocabulary), -11.0).expand(rows, 1, -1).clone()
    scores[..., 2] = 0.0
    options = {"graph": "absorb", "mask_id": 0, "delta_sigma": torch.linspace(0.8, 0.95, rows)}
    got, wanted = torch.zeros(2, rows, 1, dtype=torch.int64)
    score_entropy_step_(got, scores, **options, backend=fast_backend)
    score_entropy_step_(wanted, scores, **options, backend="reference")
    assert_equal("tokens", got, wanted)


@pytest.mark.parametrize("vocabulary", [9, 5000])
def test_scores_that_overflow_or_vanish_pick_the_reference_tokens(fast_backend, vocabulary):
    """e^x beyond fp64, in its last digits, or 0, alone and side by side."""
    levels = torch.tensor(
        [-math.inf, -1e30, -760.0, -740.0, -700.0, -30.0, 0.0, 650.0, 699.0, 709.0, 715.0, 1e30, math.inf]
    )
    tokens = torch.randint(vocabulary, (40, 3))
    low, high = (levels[torch.randint(len(levels), (40, 3, 1))] for _ in range(2))
    scores = torch.where(torch.rand(40, 3, vocabulary) < 0.1, high, low) + torch.rand(40, 3, vocabulary)
    for graph, method, denoise in KINDS:
        mask_id = 2 if graph == "absorb" else None
        x_t = torch.full_like(tokens, 2) if graph == "absorb" else tokens
        for delta in (0.0, 1e-3, 1.0):
            results = []
            for backend in (fast_backend, "reference"):
                results.append(x_t.clone())
                score_entropy_step_(
                    results[-1], scores, graph=graph, method=method, mask_id=mask_id, denoise=denoise,
                    delta_sigma=delta, backend=backend,
                )  # fmt: skip
            assert_equal(f"tokens ({graph}, {method}, {denoise}, {delta})", *results)


@every_backend
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_no_rows(shape):
    tokens, scores = torch.zeros(shape, dtype=torch.int64), torch.zeros(*shape, STATES)
    assert score_entropy_step_(tokens, scores, graph="uniform", delta_sigma=0.2).shape == shape


@every_backend
@pytest.mark.parametrize("graph", NOISE)
def test_draws_do_not_depend_on_batch_neighbours(graph):
    tokens, scores = torch.randint(0, STATES, (5, 9)), torch.randn(5, 9, STATES)
    options = {"graph": graph, "method": "analytic", "step": 2}
    if graph == "absorb":
        options["mask_id"] = MASK
    delta, ids = torch.rand(5), make_row_ids(torch.arange(5)[:, None], torch.arange(9))
    whole = tokens.clone()
    score_entropy_step_(whole, scores, delta_sigma=delta, **options)
    assert (whole != tokens).any()
    pick = torch.tensor([3, 0])
    part = tokens[pick]
    score_entropy_step_(part, scores[pick], delta_sigma=delta[pick], row_ids=ids[pick], **options)
    assert_equal("tokens", part, whole[pick])


@every_backend
@pytest.mark.parametrize("graph", NOISE)
def test_only_eligible_positions_change_and_their_scores_alone_are_read(graph):
    tokens, scores = torch.randint(0, STATES, (4, 12)), torch.randn(4, 12, STATES)
    eligible, before = torch.rand(4, 12) < 0.5, tokens.clone()
    options = {"graph": graph, "delta_sigma": 0.9, "eligible": eligible}
    live = eligible
    if graph == "absorb":
        options["mask_id"] = MASK
        live = eligible & (tokens == MASK)
    score_entropy_step_(tokens, scores.masked_fill(~live[..., None], math.nan), **options)
    assert_equal("tokens", tokens[~live], before[~live])
    score_entropy_step_(before, scores, **options)
    assert_equal("tokens", tokens, before)


@every_backend
@pytest.mark.parametrize("method", ["euler", "analytic"])
@pytest.mark.parametrize("graph", NOISE)
def test_opcheck_and_compile(in_backend, graph, method):
    tokens, scores = torch.randint(0, STATES, (3, 6)), torch.randn(3, 6, STATES)
    mask = {"mask_id": MASK} if graph == "absorb" else {}

    def step(tokens, scores):
        return score_entropy_step_(tokens, scores / 2, graph=graph, method=method, delta_sigma=0.5, **mask), tokens + 1

    check_operator(
        "score_entropy_step_",
        lambda: step(tokens, scores),
        lambda: score_entropy_step_(
            tokens, scores.half(), graph=graph, method=method, delta_sigma=torch.rand(3), eligible=tokens > 2, **mask
        ),
    )
    check_compiles(step, tokens, scores, backend=in_backend)


IDS, X = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, STATES)


@pytest.mark.parametrize(
    ("tokens", "log_score", "options", "argument", "says"),
    [
        (IDS.int(), X, {}, "tokens", "int32"),
        (IDS, X[:, :2], {}, "log_score", r"\[2, 3, V\]"),
        (IDS, X.double(), {}, "log_score", "float64"),
        (IDS, X, {"graph": "mask"}, "graph", "absorb"),
        (IDS, X, {"method": "tweedie"}, "method", "analytic"),
        (IDS, X, {"graph": "absorb"}, "mask_id", "given"),
        (IDS, X, {"mask_id": 4}, "mask_id", "None with graph 'uniform'"),
        (IDS, X, {"graph": "absorb", "mask_id": 5}, "mask_id", "5"),
        (IDS, X, {"denoise": True}, "denoise", "uniform"),
        (IDS, X, {"delta_sigma": -0.1}, "delta_sigma", "-0.1"),
        (IDS, X, {"delta_sigma": torch.zeros(3)}, "delta_sigma", r"\[2\]"),
        (IDS, X, {"eligible": IDS}, "eligible", "bool"),
        (IDS, X, {"step": -1}, "step", "-1"),
    ],
)
def test_bad_input(tokens, log_score, options, argument, says):
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        score_entropy_step_(tokens, log_score, **{"graph": "uniform", "delta_sigma": 0.1, **options})
    assert str(caught.value).split()[0] == argument
