import math

import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import InvalidArgumentError, absorbing_step_, score_tokens
from dlm_kernels.reference import absorbing_step as reference
from dlm_kernels.rng import make_row_ids
from kernels.frequencies import assert_draws_from, p_value, reverse_by_bayes
from kernels.operators import check_compiles, check_operator
from kernels.steps import assert_reference_tokens, every_shape, few, random_problem

OP = "absorbing_step_"
pytestmark = pytest.mark.usefixtures("poisoned_empty")
every_backend = pytest.mark.usefixtures("in_backend")

MASK, VOCABULARY = 5, 6
DRAWS = 30_000
PRIOR = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05, 0.0], dtype=torch.float64)
TO_MASK = torch.nn.functional.one_hot(torch.tensor(MASK), VOCABULARY)
LOGITS = PRIOR.log().float()


def draw(x_t, **options):
    """x_s for many independent positions that stand at x_t."""
    tokens = torch.full((1, DRAWS), x_t)
    changed = absorbing_step_(tokens, LOGITS.expand(1, DRAWS, -1), mask_id=MASK, **options)
    assert_equal("changed", changed, tokens != x_t)
    return tokens[0]


@every_backend
@pytest.mark.parametrize(("alpha_t", "alpha_s"), [(0.0, 0.2), (0.3, 0.5), (0.5, 0.501), (0.7, 1.0), (0.4, 0.4)])
def test_ancestral_step_is_the_posterior_by_bayes(alpha_t, alpha_s):
    if alpha_s > 0:
        wanted = reverse_by_bayes(PRIOR, alpha_t, alpha_s, TO_MASK)
        assert_draws_from(wanted[MASK], draw(MASK, alpha_t=alpha_t, alpha_s=alpha_s, seed=7))
    assert (draw(2, alpha_t=alpha_t, alpha_s=alpha_s) == 2).all(), "a token never changes without sigma"


def remasking_kernel(alpha_t, alpha_s, sigma):
    """[x_t, x_s] of ReMDM's definition, mixed over the prior of x_0."""
    kernel = torch.zeros(VOCABULARY, VOCABULARY, dtype=torch.float64)
    for x in range(VOCABULARY - 1):
        kernel[x, x], kernel[x, MASK] = 1 - sigma, sigma
    kernel[MASK] = PRIOR * (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
    kernel[MASK, MASK] = (1 - alpha_s - sigma * alpha_t) / (1 - alpha_t)
    return kernel


@every_backend
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("alpha_t", "alpha_s"), [(0.3, 0.5), (0.6, 0.7)])
def test_remasking_step(alpha_t, alpha_s, share):
    sigma = share * min(1.0, (1 - alpha_s) / alpha_t)
    kernel = remasking_kernel(alpha_t, alpha_s, sigma)
    for x_t in (0, MASK):
        assert_draws_from(kernel[x_t], draw(x_t, alpha_t=alpha_t, alpha_s=alpha_s, sigma=sigma, seed=1))


@every_backend
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_any_sigma_keeps_the_marginals(share):
    """ReMDM's theorem, and a check of the formula that owes nothing to it: x_t from the forward process gives x_s from it."""
    alpha_t, alpha_s = 0.4, 0.6
    marginal_t, marginal_s = (alpha * PRIOR + (1 - alpha) * TO_MASK.double() for alpha in (alpha_t, alpha_s))
    tokens = torch.multinomial(marginal_t, DRAWS, replacement=True)[None]
    sigma = share * (1 - alpha_s) / alpha_t
    absorbing_step_(
        tokens, LOGITS.expand(1, DRAWS, -1), mask_id=MASK, alpha_t=alpha_t, alpha_s=alpha_s, sigma=sigma, seed=11
    )
    assert_draws_from(marginal_s, tokens[0])


@every_backend
def test_the_frequency_test_sees_a_wrong_rate():
    """A tenth of the step too much, and of sigma."""
    wanted = reverse_by_bayes(PRIOR, 0.3, 0.5, TO_MASK)
    assert p_value(draw(MASK, alpha_t=0.3, alpha_s=0.52), wanted[MASK]) < 1e-6
    assert p_value(draw(0, alpha_t=0.3, alpha_s=0.5, sigma=0.33), remasking_kernel(0.3, 0.5, 0.3)[0]) < 1e-6


@every_backend
def test_tokens_are_those_of_score_tokens_with_the_same_key():
    tokens, logits = torch.full((3, 20), MASK), torch.randn(3, 20, VOCABULARY) * 2
    options = {"temperature": 0.7, "top_k": 4, "top_p": 0.9, "seed": torch.tensor([[1], [2], [3]]), "step": 5}
    changed = absorbing_step_(tokens, logits, mask_id=MASK, alpha_t=0.1, alpha_s=0.6, **options)
    ids = make_row_ids(torch.arange(3)[:, None], torch.arange(20))
    wanted = score_tokens(logits, row_ids=ids, suppress_ids=[MASK], **options).token
    assert_equal("tokens", tokens, torch.where(changed, wanted, MASK))
    assert 0 < changed.sum() < changed.numel()


def test_logits_of_positions_that_stay_are_not_read(monkeypatch):
    read = []
    score = reference.score_tokens
    monkeypatch.setattr(reference, "score_tokens", lambda *args: read.append(args[8]) or score(*args))
    tokens, logits = torch.full((2, 30), MASK), torch.randn(2, 30, VOCABULARY)
    tokens[:, ::3] = 1
    options = {"mask_id": MASK, "alpha_t": 0.2, "alpha_s": 0.5, "sigma": 0.1, "backend": "reference"}
    wanted = tokens.clone()
    changed = absorbing_step_(wanted, logits, **options)
    filled = changed & (tokens == MASK)
    assert_equal("read", read[0], filled)
    absorbing_step_(tokens, logits.masked_fill(~filled[..., None], math.nan), **options)
    assert_equal("tokens", tokens, wanted)


@every_shape
def test_every_backend_picks_the_reference_tokens(fast_backend, vocabulary, dtype):
    mask_id = vocabulary - 1
    problem = random_problem(vocabulary, dtype, mask_id)
    sigma = torch.rand(problem.eligible.shape) * 0.4

    def step(tokens, logits, **options):
        return absorbing_step_(
            tokens, logits, mask_id=mask_id, alpha_t=problem.alpha_t, alpha_s=problem.alpha_s, **options
        )

    everything = {"sigma": sigma, "eligible": problem.eligible, "filter_order": "top_p_first", **problem.scoring}
    cases = ({}, everything, {**everything, "suppress_ids": [0, mask_id, 0], "filter_order": "top_k_first"})
    for options in few(cases, vocabulary):
        changed = assert_reference_tokens(lambda t, x, o=options: step(t, x, **o), problem, fast_backend)
        assert 0 < changed.sum() < changed.numel()


@every_backend
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_no_rows(shape):
    tokens, logits = torch.zeros(shape, dtype=torch.int64), torch.zeros(*shape, VOCABULARY)
    assert absorbing_step_(tokens, logits, mask_id=MASK, alpha_t=0.2, alpha_s=0.5).shape == shape


@every_backend
def test_draws_do_not_depend_on_batch_neighbours():
    tokens, logits = torch.randint(0, VOCABULARY, (5, 9)), torch.randn(5, 9, VOCABULARY)
    alpha_t, sigma = torch.linspace(0, 0.6, 5), torch.rand(5, 9) * 0.4
    options = {"mask_id": MASK, "temperature": 0.8, "step": 3}
    ids = make_row_ids(torch.arange(5)[:, None], torch.arange(9))
    whole = tokens.clone()
    absorbing_step_(whole, logits, alpha_t=alpha_t, alpha_s=alpha_t + 0.2, sigma=sigma, **options)
    for row in range(5):
        alone, t = tokens[row : row + 1].clone(), float(alpha_t[row])
        absorbing_step_(
            alone, logits[row : row + 1], alpha_t=t, alpha_s=float((alpha_t + 0.2)[row]), sigma=sigma[row],
            row_ids=ids[row : row + 1], **options,
        )  # fmt: skip
        assert_equal("tokens", alone, whole[row : row + 1])


@every_backend
def test_only_eligible_positions_change_and_a_finished_process_leaves_no_mask():
    tokens = torch.randint(0, VOCABULARY, (4, 12))
    eligible = torch.rand(4, 12) < 0.5
    logits, before = torch.randn(4, 12, VOCABULARY), tokens.clone()
    absorbing_step_(tokens, logits, mask_id=MASK, alpha_t=0.2, alpha_s=0.3, sigma=1.0 - 1e-7 - 0.3, eligible=eligible)
    assert_equal("tokens", tokens[~eligible], before[~eligible])
    for alpha_t in (0.9, 1.0):
        tokens.fill_(MASK)
        absorbing_step_(tokens, logits, mask_id=MASK, alpha_t=alpha_t, alpha_s=1.0)
        assert (tokens != MASK).all()


@every_backend
def test_opcheck_and_compile(in_backend):
    tokens, logits = torch.randint(0, VOCABULARY, (3, 6)), torch.randn(3, 6, VOCABULARY)

    def step(tokens, logits):
        return absorbing_step_(tokens, logits * 2, mask_id=MASK, alpha_t=0.2, alpha_s=0.6, sigma=0.3), tokens + 1

    check_operator(
        "absorbing_step_",
        lambda: step(tokens, logits),
        lambda: absorbing_step_(
            tokens,
            logits.bfloat16(),
            mask_id=MASK,
            alpha_t=torch.rand(3),
            alpha_s=1.0,
            eligible=tokens == MASK,
            top_k=2,
        ),
    )
    check_compiles(step, tokens, logits, backend=in_backend)


IDS, X = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, VOCABULARY)


@pytest.mark.parametrize(
    ("tokens", "logits", "options", "argument", "says"),
    [
        (IDS.int(), X, {}, "tokens", "int32"),
        (IDS[:1].expand(2, 3), X, {}, "tokens", "expanded"),
        (IDS, X[:, :2], {}, "logits", r"\[2, 3, V\]"),
        (IDS, X.double(), {}, "logits", "float64"),
        (IDS, X, {"mask_id": VOCABULARY}, "mask_id", "6"),
        (IDS, X, {"alpha_t": -0.1}, "alpha_t", "-0.1"),
        (IDS, X, {"alpha_s": 1.1}, "alpha_s", "1.1"),
        (IDS, X, {"alpha_s": 0.1}, "alpha_s", "to the data"),
        (IDS, X, {"alpha_t": torch.zeros(3)}, "alpha_t", r"\[2\]"),
        (IDS, X, {"sigma": -0.1}, "sigma", "-0.1"),
        (IDS, X, {"alpha_t": 0.5, "alpha_s": 0.75, "sigma": 0.51}, "sigma", r"\(1 - alpha_s\) / alpha_t = 0.5"),
        (IDS, X, {"sigma": torch.zeros(2)}, "sigma", r"\[2, 3\]"),
        (IDS, X, {"temperature": -1.0}, "temperature", "-1"),
        (IDS, X, {"eligible": IDS}, "eligible", "bool"),
        (IDS, X, {"suppress_ids": [6]}, "suppress_ids", "6"),
    ],
)
def test_bad_input(tokens, logits, options, argument, says):
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        absorbing_step_(tokens, logits, **{"mask_id": MASK, "alpha_t": 0.2, "alpha_s": 0.5, **options})
    assert str(caught.value).split()[0] == argument
