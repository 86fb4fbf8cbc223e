import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import kstest
from tolerances import assert_equal, assert_no_worse

from dlm_kernels import InvalidArgumentError, gaussian_step_
from dlm_kernels.reference.philox import NORMAL_STREAM, keyed_words, uniform_from_word
from dlm_kernels.rng import make_row_ids
from kernels.frequencies import FALSE_ALARM
from kernels.operators import check_compiles, check_operator

OP = "gaussian_step_"
pytestmark = pytest.mark.usefixtures("poisoned_empty")
every_backend = pytest.mark.usefixtures("in_backend")

MEAN, VARIANCE = 0.7, 0.3  # of Gaussian data, for which the denoiser and the flow are known


def vp(time):
    """alpha, sigma of a variance-preserving schedule; time 0 is clean."""
    return math.cos(time * math.pi / 2), math.sin(time * math.pi / 2)


def ve(time):
    """The same signal at all times, and growing noise."""
    return 1.0, 0.05 * 100**time


def exact_denoiser(x, alpha, sigma):
    return MEAN + VARIANCE * alpha / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)


def exact_flow(x, t, s):
    """The probability-flow solution: the standardised x stays what it is."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = t, s
    scale = math.sqrt((alpha_s**2 * VARIANCE + sigma_s**2) / (alpha_t**2 * VARIANCE + sigma_t**2))
    return alpha_s * MEAN + scale * (x - alpha_t * MEAN)


def times(t, s):
    return dict(zip(("alpha_t", "sigma_t", "alpha_s", "sigma_s"), (*t, *s), strict=True))


BEFORE = ("denoised_before", "alpha_before", "sigma_before")


def solve(x, schedule, steps, second_order, start=0.95, end=0.05):
    x, before = x.clone(), {}
    grid = [start + (end - start) * i / steps for i in range(steps + 1)]
    for t, s in pairwise(grid):
        denoised = exact_denoiser(x, *schedule(t))
        gaussian_step_(x, denoised, **times(schedule(t), schedule(s)), **before)
        if second_order:
            alpha, sigma = schedule(t)
            before = {"denoised_before": denoised, "alpha_before": alpha, "sigma_before": sigma}
    return x


@every_backend
@pytest.mark.parametrize(("second_order", "order"), [(False, 1), (True, 2)], ids=["ddim", "dpmpp_2m"])
@pytest.mark.parametrize("schedule", [vp, ve])
def test_order_of_convergence_to_the_exact_flow(schedule, second_order, order):
    x = torch.randn(2, 3, 4)
    exact = exact_flow(x.double(), schedule(0.95), schedule(0.05))
    errors = [float((solve(x, schedule, n, second_order) - exact).abs().mean()) for n in (16, 32, 64)]
    for coarse, fine in pairwise(errors):
        assert order - 0.35 < math.log2(coarse / fine) < order + 0.6, errors


@every_backend
@pytest.mark.parametrize("schedule", [vp, ve])
def test_a_constant_prediction_is_solved_exactly_in_one_step(schedule):
    """Noise and data are then combined with new weights, whatever the order."""
    data, noise = torch.randn(2, 3, 4, 5).unbind(0)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(0.8), schedule(0.3)
    for before in ({}, {"denoised_before": data, "alpha_before": 0.9, "sigma_before": 5.0}):
        x = alpha_t * data + sigma_t * noise
        assert gaussian_step_(x, data, **times(schedule(0.8), schedule(0.3)), **before) is None
        torch.testing.assert_close(x, alpha_s * data + sigma_s * noise, atol=1e-5, rtol=1e-5)


@every_backend
def test_second_order_step_by_its_formula():
    """x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) D, D from r = h_before / h."""
    x, now, before = torch.randn(3, 2, 3, 4).double().unbind(0)
    r, t, s = vp(0.9), vp(0.7), vp(0.4)
    lambdas = [math.log(alpha / sigma) for alpha, sigma in (r, t, s)]
    h_before, h = lambdas[1] - lambdas[0], lambdas[2] - lambdas[1]
    ratio = h_before / h
    d = (1 + 1 / (2 * ratio)) * now - 1 / (2 * ratio) * before
    wanted = s[1] / t[1] * x - s[0] * math.expm1(-h) * d
    got = x.float()
    gaussian_step_(
        got, now.float(), **times(t, s), denoised_before=before.float(), alpha_before=r[0], sigma_before=r[1]
    )
    torch.testing.assert_close(got, wanted.float(), atol=2e-6, rtol=2e-6)


@every_backend
@pytest.mark.parametrize("schedule", [vp, ve])
def test_eta_1_draws_from_the_posterior_by_bayes(schedule):
    """q(x_s | x_t, x_0) from the precisions of q(x_s | x_0) and q(x_t | x_s); Kolmogorov-Smirnov on its standardised draws."""
    t, s = schedule(0.7), schedule(0.5)
    data, x_t, ratio = 0.4, -0.8, t[0] / s[0]
    added = t[1] ** 2 - ratio**2 * s[1] ** 2
    precision = 1 / s[1] ** 2 + ratio**2 / added
    mean = (s[0] * data / s[1] ** 2 + ratio * x_t / added) / precision
    x = torch.full((4, 500, 7), x_t)
    gaussian_step_(x, torch.full_like(x, data), **times(t, s), eta=1.0, seed=5)
    z = (x.double() - mean) * math.sqrt(precision)
    assert kstest(z.flatten().numpy(), "norm").pvalue > FALSE_ALARM
    for other in (z[..., 1:].reshape(-1), z.roll(1, 1)[..., :-1].reshape(-1)):
        correlation = (z[..., :-1].reshape(-1) * other).mean() * math.sqrt(other.numel())
        assert abs(correlation) < 5, "neighbouring dimensions and positions are independent"


@every_backend
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_any_eta_keeps_the_marginals(eta):
    t, s = vp(0.7), vp(0.4)
    data = 0.5
    x = t[0] * data + t[1] * torch.randn(4, 500, 7)
    gaussian_step_(x, torch.full_like(x, data), **times(t, s), eta=eta, seed=1)
    assert kstest(((x.double() - s[0] * data) / s[1]).flatten().numpy(), "norm").pvalue > FALSE_ALARM


@every_backend
@pytest.mark.parametrize("second_order", [False, True])
def test_the_last_step_returns_the_prediction(second_order):
    x, denoised, before = torch.randn(3, 2, 3, 4).unbind(0)
    options = {"denoised_before": before, "alpha_before": 0.1, "sigma_before": 0.9} if second_order else {"eta": 1.0}
    gaussian_step_(x, denoised, alpha_t=0.5, sigma_t=0.5, alpha_s=1.0, sigma_s=0.0, **options)
    torch.testing.assert_close(x, denoised)


@every_backend
def test_pure_noise_to_pure_noise():
    """alpha 0 at either time or before: nothing is divided by it."""
    x, denoised = torch.randn(2, 2, 3, 4).unbind(0)
    noise = x.clone()
    gaussian_step_(x, denoised, alpha_t=0.0, sigma_t=1.0, alpha_s=0.0, sigma_s=1.0)
    torch.testing.assert_close(x, noise)
    first_order = x.clone()
    gaussian_step_(first_order, denoised, alpha_t=0.1, sigma_t=1.0, alpha_s=0.6, sigma_s=0.8)
    gaussian_step_(
        x, denoised, alpha_t=0.1, sigma_t=1.0, alpha_s=0.6, sigma_s=0.8, denoised_before=noise, alpha_before=0.0,
        sigma_before=1.0,
    )  # fmt: skip
    assert_equal("x", x, first_order)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_views_and_anchored_positions(dtype):
    canvas = torch.randn(2, 6, 8).to(dtype)
    before, denoised, eligible = canvas.clone(), torch.randn(2, 3, 8).to(dtype), torch.rand(2, 3) < 0.5
    gaussian_step_(canvas[:, ::2], denoised, **times(vp(0.6), vp(0.3)), eta=0.5, eligible=eligible)
    wanted = before[:, ::2].float().clone()
    gaussian_step_(wanted, denoised.float(), **times(vp(0.6), vp(0.3)), eta=0.5)
    before[:, ::2] = torch.where(eligible[..., None], wanted.to(dtype), before[:, ::2])
    assert_equal("canvas", canvas, before)


def exact_step(x, denoised, levels, *, eta=0.0, before=None, noise=0.0):
    """The formulas of the docstring in fp64; levels and before hold [B] tensors."""
    alpha_t, sigma_t, alpha_s, sigma_s = (level.double()[:, None, None] for level in levels)
    data, eta = denoised.double(), torch.as_tensor(eta).double().reshape(-1, 1, 1)
    if before is not None:
        previous, alpha, sigma = (value.double() for value in before)
        at_before, at_t, at_s = (
            torch.log(a / s)
            for a, s in ((alpha[:, None, None], sigma[:, None, None]), (alpha_t, sigma_t), (alpha_s, sigma_s))
        )
        ratio = (at_t - at_before) / (at_s - at_t)
        data = (1 + 1 / (2 * ratio)) * data - 1 / (2 * ratio) * previous.double()
    spread = eta * sigma_s / sigma_t * (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2).clamp(min=0).sqrt()
    predicted_noise = (x.double() - alpha_t * data) / sigma_t
    return alpha_s * data + (sigma_s**2 - spread**2).clamp(min=0).sqrt() * predicted_noise + spread * noise


def exact_normal(seed, row_ids, step, dimension):
    """Box-Muller in fp64 on the uniform numbers of the keys."""
    blocks = torch.arange((dimension + 3) // 4)
    words = keyed_words(seed[..., None], row_ids[..., None], step[..., None], blocks, NORMAL_STREAM)
    u, v = uniform_from_word(torch.stack(words, -1)).double().unflatten(-1, (2, 2)).unbind(-1)
    radius, angle = (-2 * torch.log1p(-u)).sqrt(), 2 * math.pi * v
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten(-3)[..., :dimension]


@pytest.mark.parametrize("method", ["ddim", "ancestral", "dpmpp_2m"])
@pytest.mark.parametrize("dimension", [1, 7, 1000, 4100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_backend_is_as_near_the_truth_as_pytorch(fast_backend, two_threads, dtype, dimension, method):
    """Levels of their own for each row, eligible positions, tensors of three dtypes, all of them views."""
    shape = (3, 5, dimension)
    canvas = torch.randn(3, 10, dimension).to(dtype)
    x = canvas[:, ::2]
    denoised = torch.randn(3, 5, 2 * dimension).half()[..., ::2]
    previous = torch.randn(dimension, 5, 3).bfloat16().permute(2, 1, 0)
    eligible = torch.rand(shape[:2]) < 0.8
    angle = torch.tensor([1.5, 0.9, 0.2])  # of the variance-preserving schedule at t
    levels = (angle.cos(), angle.sin(), (angle * 0.7).cos(), (angle * 0.7).sin())
    keys = {"seed": torch.randint(2**62, (3, 1)), "row_ids": torch.randint(2**62, shape[:2]), "step": torch.tensor(7)}
    options, exact = {}, {}
    if method == "ancestral":
        options = exact = {"eta": torch.tensor([1.0, 0.5, 0.0])}
        seed, row_ids, step = torch.broadcast_tensors(*keys.values())
        exact = {**exact, "noise": exact_normal(seed, row_ids, step, dimension)}
    elif method == "dpmpp_2m":
        before = (previous, (angle * 1.02).cos(), (angle * 1.02).sin())
        options, exact = dict(zip(BEFORE, before, strict=True)), {"before": before}
    truth = torch.where(eligible[..., None], exact_step(x, denoised, levels, **exact), x.double())
    results = []
    for backend in (fast_backend, "reference"):
        results.append(canvas.clone())
        gaussian_step_(
            results[-1][:, ::2], denoised, **times(levels[:2], levels[2:]), eligible=eligible, **keys, **options,
            backend=backend,
        )  # fmt: skip
        assert_equal("the other positions", results[-1][:, 1::2], canvas[:, 1::2])
    got, eager = (result[:, ::2] for result in results)
    assert_equal("anchored positions", got[~eligible], x[~eligible])
    assert_no_worse("step", got, truth, eager)
    assert (got != x).any()


@every_backend
def test_infinities_and_nan_pass_through():
    x = torch.tensor([math.inf, -math.inf, math.nan, 1e38, 65519.0, 65520.0, 1e-7, -1e-8, 0.0])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        got = x.to(dtype).expand(1, 2, -1).clone()
        gaussian_step_(got, torch.zeros_like(got), alpha_t=0.5, sigma_t=0.5, alpha_s=0.5, sigma_s=0.5)
        assert_equal(f"x ({dtype})", got, x.to(dtype).expand(1, 2, -1))


@every_backend
def test_rounding_to_half_precision_is_to_the_nearest_even():
    """Every magnitude, halfway and a bit beside it, by a last step, which returns the prediction."""
    bits = torch.arange(0, 2**16, 7, dtype=torch.int32)
    for dtype in (torch.bfloat16, torch.float16):
        narrow = bits.to(torch.int16).view(dtype)
        narrow = narrow[narrow.isfinite() & (narrow.float().abs() < 1e4)]
        up = torch.nextafter(narrow, torch.full_like(narrow, math.inf))
        between = (narrow.float() + up.float()) / 2  # exact in fp32, and halfway
        for data in (between, torch.nextafter(between, torch.tensor(math.inf)), torch.nextafter(between, -between)):
            x = torch.zeros(1, 1, data.numel(), dtype=dtype)
            gaussian_step_(x, data.view(1, 1, -1), alpha_t=0.5, sigma_t=0.5, alpha_s=1.0, sigma_s=0.0)
            assert_equal("x", x.view(-1), data.to(dtype))


@every_backend
@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 0, 3), (3, 4, 0)])
def test_no_rows(shape):
    x = torch.zeros(shape)
    gaussian_step_(x, torch.zeros(shape), **times(vp(0.6), vp(0.3)), eta=0.5)
    assert x.shape == shape


@every_backend
def test_draws_do_not_depend_on_batch_neighbours_nor_on_the_width():
    x, denoised = torch.randn(2, 5, 4, 9).unbind(0)
    levels = {name: torch.rand(5) for name in ("alpha_t", "sigma_t", "alpha_s")}
    levels["sigma_s"] = levels["sigma_t"] / 2
    ids, pick = make_row_ids(torch.arange(5)[:, None], torch.arange(4)), torch.tensor([3, 0])
    whole, part, narrow = x.clone(), x[pick], x[..., :6].clone()
    gaussian_step_(whole, denoised, eta=0.7, step=2, **levels)
    picked = {name: value[pick] for name, value in levels.items()}
    gaussian_step_(part, denoised[pick], eta=0.7, step=2, row_ids=ids[pick], **picked)
    assert_equal("x", part, whole[pick])
    gaussian_step_(narrow, denoised[..., :6], eta=0.7, step=2, **levels)
    assert_equal("x", narrow, whole[..., :6])
    other = x.clone()
    gaussian_step_(other, denoised, eta=0.7, step=3, **levels)
    assert (other != whole).any()


@every_backend
def test_opcheck_and_compile(in_backend):
    x, denoised = torch.randn(2, 3, 4, 5).unbind(0)

    def step(x, denoised):
        gaussian_step_(x, denoised * 2, **times(vp(0.6), vp(0.3)), eta=0.5)
        return x + 1

    check_operator(
        "gaussian_step_",
        lambda: step(x, denoised),
        lambda: gaussian_step_(
            x, denoised.half(), **times(vp(0.6), vp(0.3)), denoised_before=denoised, alpha_before=torch.rand(3),
            sigma_before=1.0, eligible=torch.rand(3, 4) < 0.5,
        ),
    )  # fmt: skip
    check_compiles(step, x, denoised, backend=in_backend)


X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("x", "denoised", "options", "argument", "says"),
    [
        (X[0], X[0], {}, "x", r"\[any, any, any\]"),
        (X.double(), X, {}, "x", "float64"),
        (X[:1].expand(2, 3, 4), X, {}, "x", "expanded"),
        (X, X[:1], {}, "denoised", r"\[2, 3, 4\]"),
        (X, X, {"sigma_t": 0.0}, "sigma_t", r"\(0.0"),
        (X, X, {"alpha_t": -0.1}, "alpha_t", "-0.1"),
        (X, X, {"sigma_s": torch.zeros(3)}, "sigma_s", r"\[2\]"),
        (X, X, {"eta": 1.5}, "eta", "1.5"),
        (X, X, {"denoised_before": X}, "denoised_before,", "together"),
        (X, X, {"sigma_before": 1.0}, "denoised_before,", "together"),
        (X, X, {"denoised_before": X, "alpha_before": 0.1, "sigma_before": 1.0, "eta": 0.1}, "eta", "0.1"),
        (X, X, {"denoised_before": X, "alpha_before": 0.1, "sigma_before": 0.0}, "sigma_before", r"\(0.0"),
        (X, X, {"eligible": torch.ones(2, 3)}, "eligible", "bool"),
        (X, X, {"step": -1}, "step", "-1"),
    ],
)
def test_bad_input(x, denoised, options, argument, says):
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        gaussian_step_(x, denoised, **{**times(vp(0.6), vp(0.3)), **options})
    assert str(caught.value).split()[0] == argument
