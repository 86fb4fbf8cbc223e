import math

import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import InvalidArgumentError, uniform_step_
from dlm_kernels.rng import make_row_ids
from kernels.frequencies import FALSE_ALARM, assert_draws_from, forward_matrix, p_value, reverse_by_bayes
from kernels.operators import check_compiles, check_operator
from kernels.steps import assert_reference_tokens, every_shape, few, random_problem

OP = "uniform_step_"
pytestmark = pytest.mark.usefixtures("poisoned_empty")
every_backend = pytest.mark.usefixtures("in_backend")

VOCABULARY = 5
DRAWS = 30_000
PRIOR = torch.tensor([0.45, 0.3, 0.15, 0.08, 0.02], dtype=torch.float64)
UNIFORM = torch.full((VOCABULARY,), 1 / VOCABULARY, dtype=torch.float64)
TIMES = [(0.0, 0.2), (0.2, 0.5), (0.5, 0.501), (0.7, 1.0), (0.4, 0.4)]
KINDS = ("posterior", "leave_one_out")


def denoiser_of(kind, prior, alpha_t, x_t):
    """p(x_0) for one position: of nothing, or of nothing but what stands there."""
    if kind == "leave_one_out":
        return prior
    joint = prior * forward_matrix(alpha_t, UNIFORM)[:, x_t]
    return joint / joint.sum()


def draw(x_t, p, **options):
    tokens = torch.full((1, DRAWS), x_t)
    changed = uniform_step_(tokens, p.log().float().expand(1, DRAWS, -1), **options)
    assert_equal("changed", changed, tokens != x_t)
    return tokens[0]


@every_backend
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alpha_t", "alpha_s"), TIMES)
def test_each_kind_of_denoiser_gives_the_posterior_by_bayes(kind, alpha_t, alpha_s):
    wanted = reverse_by_bayes(PRIOR, alpha_t, alpha_s, UNIFORM)
    for x_t in (0, 4):  # likely and unlikely
        p = denoiser_of(kind, PRIOR, alpha_t, x_t)
        assert_draws_from(wanted[x_t], draw(x_t, p, denoiser=kind, alpha_t=alpha_t, alpha_s=alpha_s, seed=x_t))


@every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_the_wrong_kind_of_denoiser_is_far_off(kind):
    alpha_t, alpha_s, x_t = 0.4, 0.7, 2
    wanted = reverse_by_bayes(PRIOR, alpha_t, alpha_s, UNIFORM)[x_t]
    other = KINDS[1 - KINDS.index(kind)]
    p = denoiser_of(other, PRIOR, alpha_t, x_t)
    draws = draw(x_t, p, denoiser=kind, alpha_t=alpha_t, alpha_s=alpha_s)
    total_variation = (torch.bincount(draws, minlength=VOCABULARY) / DRAWS - wanted).abs().sum() / 2
    assert total_variation > 0.1
    assert p_value(draws, wanted) < FALSE_ALARM


@every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_two_correlated_positions(kind):
    """x_s of the first of two positions, given both of x_t, by summing over every (x_0, x_s)."""
    joint = torch.tensor([[0.5, 0.0, 0.05], [0.0, 0.05, 0.2], [0.1, 0.1, 0.0]], dtype=torch.float64)
    alpha_t, alpha_s, x_t = 0.35, 0.6, (0, 2)
    noise = torch.full((3,), 1 / 3, dtype=torch.float64)
    to_t, to_s = forward_matrix(alpha_t, noise), forward_matrix(alpha_s, noise)
    between = forward_matrix(alpha_t / alpha_s, noise)
    wanted = torch.einsum("ab,as,s,b->s", joint, to_s, between[:, x_t[0]], to_t[:, x_t[1]])
    p = torch.einsum("ab,b->a", joint, to_t[:, x_t[1]])
    if kind == "posterior":
        p = p * to_t[:, x_t[0]]
    draws = draw(x_t[0], p, denoiser=kind, alpha_t=alpha_t, alpha_s=alpha_s)
    assert_draws_from(wanted / wanted.sum(), draws)


def test_posterior_logits_become_leave_one_out_as_documented():
    alpha_t, x_t = 0.4, 3
    logits = denoiser_of("posterior", PRIOR, alpha_t, x_t).log()
    logits[x_t] -= math.log1p(VOCABULARY * alpha_t / (1 - alpha_t))
    torch.testing.assert_close(logits.softmax(-1), PRIOR)


@every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_the_marginal_at_s_follows_from_that_at_t(kind):
    """A whole reverse chain of 8 steps from noise ends in the prior."""
    tokens = torch.randint(0, VOCABULARY, (1, DRAWS))
    grid = torch.linspace(0, 1, 9).tolist()
    for step in range(8):
        alpha_t, alpha_s = grid[step], grid[step + 1]
        table = torch.stack([denoiser_of(kind, PRIOR, alpha_t, x) for x in range(VOCABULARY)])
        uniform_step_(tokens, table.log().float()[tokens], denoiser=kind, alpha_t=alpha_t, alpha_s=alpha_s, step=step)
    assert_draws_from(PRIOR, tokens[0])


@every_backend
def test_filters_and_temperature_shape_the_denoiser_in_both_places():
    """top_k = 2 at temperature 0.5 is the denoiser with its two best squared, draw and p(x_t) alike."""
    p = torch.where(torch.arange(VOCABULARY) < 2, PRIOR**2, 0)
    wanted = reverse_by_bayes(p / p.sum(), 0.3, 0.6, UNIFORM)
    for x_t in (0, 3):
        draws = draw(x_t, PRIOR, denoiser="leave_one_out", alpha_t=0.3, alpha_s=0.6, temperature=0.5, top_k=2, seed=5)
        assert_draws_from(wanted[x_t], draws)
    greedy = torch.nn.functional.one_hot(torch.tensor(0), VOCABULARY).double()
    draws = draw(3, PRIOR, denoiser="leave_one_out", alpha_t=0.3, alpha_s=0.6, temperature=0.0)
    assert_draws_from(reverse_by_bayes(greedy, 0.3, 0.6, UNIFORM)[3], draws)


@every_backend
def test_noise_tokens_are_uniform():
    """A wide alphabet and a denoiser that knows the token: all other changes are noise."""
    vocabulary = 64
    tokens = torch.full((1, DRAWS), 63)
    logits = torch.full((vocabulary,), -math.inf)
    logits[7] = 0.0
    p = torch.zeros(vocabulary, dtype=torch.float64)
    p[7] = 1
    noise = torch.full((vocabulary,), 1 / vocabulary, dtype=torch.float64)
    uniform_step_(tokens, logits.expand(1, DRAWS, -1), denoiser="leave_one_out", alpha_t=0.01, alpha_s=0.3)
    assert_draws_from(reverse_by_bayes(p, 0.01, 0.3, noise)[63], tokens[0])


@pytest.mark.parametrize("kind", KINDS)
@every_shape
def test_every_backend_picks_the_reference_tokens(fast_backend, vocabulary, dtype, kind):
    problem = random_problem(vocabulary, dtype)

    def step(tokens, logits, **options):
        return uniform_step_(tokens, logits, denoiser=kind, alpha_t=problem.alpha_t, alpha_s=problem.alpha_s, **options)

    everything = {"eligible": problem.eligible, "filter_order": "top_p_first", **problem.scoring}
    cases = ({}, everything, {**everything, "suppress_ids": [0], "filter_order": "top_k_first"})
    for options in few(cases, vocabulary):
        changed = assert_reference_tokens(lambda t, x, o=options: step(t, x, **o), problem, fast_backend)
        assert vocabulary == 1 or 0 < changed.sum() < changed.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_small_steps_of_many_rows_pick_the_reference_tokens(fast_backend, kind):
    """Routes of probability down to 1e-6, and p(x_t) from 1e-9 up: where the kernels decide without reading a row."""
    rows, vocabulary = 20_000, 12
    tokens, logits = torch.randint(vocabulary, (rows, 1)), torch.randn(rows, 1, vocabulary) * 4
    alpha_t = torch.rand(rows, dtype=torch.float64)
    alpha_s = alpha_t + (1 - alpha_t) * 10 ** (-6 * torch.rand(rows, dtype=torch.float64))
    got, wanted = tokens.clone(), tokens.clone()
    options = {"denoiser": kind, "alpha_t": alpha_t, "alpha_s": alpha_s}
    uniform_step_(got, logits, **options, backend=fast_backend)
    changed = uniform_step_(wanted, logits, **options, backend="reference")
    assert rows / 20 < changed.sum() < rows / 2
    assert_equal("tokens", got, wanted)


def test_probabilities_count_what_is_far_below_the_maximum(fast_backend):
    """p(x_t) is 1 / 1.1: the tenth comes from the other parts of the row, and steps this early depend on it."""
    rows, vocabulary = 600, 6000
    logits = torch.full((1, 1, vocabulary), -11.0).expand(rows, 1, -1).clone()
    logits[..., 2] = 0.0
    options = {"denoiser": "leave_one_out", "alpha_t": torch.linspace(1e-4, 1e-3, rows), "alpha_s": 0.5}
    got, wanted = torch.full((2, rows, 1), 2)
    uniform_step_(got, logits, **options, backend=fast_backend)
    uniform_step_(wanted, logits, **options, backend="reference")
    assert_equal("tokens", got, wanted)


@every_backend
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_no_rows(shape):
    tokens, logits = torch.zeros(shape, dtype=torch.int64), torch.zeros(*shape, VOCABULARY)
    assert uniform_step_(tokens, logits, denoiser="leave_one_out", alpha_t=0.2, alpha_s=0.5).shape == shape


@every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_draws_do_not_depend_on_batch_neighbours(kind):
    tokens, logits = torch.randint(0, VOCABULARY, (5, 9)), torch.randn(5, 9, VOCABULARY)
    alpha_t = torch.linspace(0, 0.6, 5)
    options = {"denoiser": kind, "temperature": 0.8, "step": 3}
    ids = make_row_ids(torch.arange(5)[:, None], torch.arange(9))
    whole = tokens.clone()
    uniform_step_(whole, logits, alpha_t=alpha_t, alpha_s=alpha_t + 0.2, **options)
    assert (whole != tokens).any()
    pick = torch.tensor([3, 0])
    part = tokens[pick]
    uniform_step_(part, logits[pick], alpha_t=alpha_t[pick], alpha_s=alpha_t[pick] + 0.2, row_ids=ids[pick], **options)
    assert_equal("tokens", part, whole[pick])


@every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_only_eligible_positions_change_and_their_logits_alone_are_read(kind):
    tokens, logits = torch.randint(0, VOCABULARY, (4, 12)), torch.randn(4, 12, VOCABULARY)
    eligible, before = torch.rand(4, 12) < 0.5, tokens.clone()
    options = {"denoiser": kind, "alpha_t": 0.1, "alpha_s": 0.8, "eligible": eligible}
    uniform_step_(tokens, logits.masked_fill(~eligible[..., None], math.nan), **options)
    assert_equal("tokens", tokens[~eligible], before[~eligible])
    uniform_step_(before, logits, **options)
    assert_equal("tokens", tokens, before)


@every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck_and_compile(in_backend, kind):
    tokens, logits = torch.randint(0, VOCABULARY, (3, 6)), torch.randn(3, 6, VOCABULARY)

    def step(tokens, logits):
        return uniform_step_(tokens, logits * 2, denoiser=kind, alpha_t=0.2, alpha_s=0.6), tokens + 1

    check_operator(
        "uniform_step_",
        lambda: step(tokens, logits),
        lambda: uniform_step_(
            tokens, logits.half(), denoiser=kind, alpha_t=torch.rand(3), alpha_s=1.0, eligible=tokens == 2, top_p=0.5
        ),
    )
    check_compiles(step, tokens, logits, backend=in_backend)


IDS, X = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, VOCABULARY)


@pytest.mark.parametrize(
    ("tokens", "logits", "options", "argument", "says"),
    [
        (IDS.int(), X, {}, "tokens", "int32"),
        (IDS, X[:, :2], {}, "logits", r"\[2, 3, V\]"),
        (IDS, X, {"denoiser": "loo"}, "denoiser", "leave_one_out"),
        (IDS, X, {"alpha_t": -0.1}, "alpha_t", "-0.1"),
        (IDS, X, {"alpha_s": 0.1}, "alpha_s", "to the data"),
        (IDS, X, {"alpha_s": torch.zeros(2, 3)}, "alpha_s", r"\[2\]"),
        (IDS, X, {"top_p": 0.0}, "top_p", "0.0"),
        (IDS, X, {"suppress_ids": [5]}, "suppress_ids", "5"),
    ],
)
def test_bad_input(tokens, logits, options, argument, says):
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        uniform_step_(tokens, logits, **{"denoiser": "posterior", "alpha_t": 0.2, "alpha_s": 0.5, **options})
    assert str(caught.value).split()[0] == argument


def test_the_kind_of_denoiser_must_be_named():
    with pytest.raises(TypeError, match="denoiser"):
        uniform_step_(IDS, X, alpha_t=0.2, alpha_s=0.5)
