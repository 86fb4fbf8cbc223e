"""SEDD's swap against the published formulas, enumerated in plain Python."""

import math

import pytest
import torch
from laws import FALSE_ALARM, fits, over_canvases, walk

from dlm_kernels import InvalidArgumentError
from dlm_samplers import AncestralUnmask, LLaDASampler, ModelSpec, TimeGrid
from dlm_samplers.compat.sedd import get_pc_sampler

ROWS, EPS, K, L = 20_000, 1e-5, 3, 2


class Graph:
    """As `graph_lib`: K tokens, and on the absorbing graph the mask after them."""

    def __init__(self, absorb):
        self.absorb, self.dim = absorb, K + absorb

    def sample_limit(self, *dims):
        return torch.full(dims, K) if self.absorb else torch.randint(self.dim, dims)


class Noise:
    """As `noise_lib`: t -> total noise and its rate."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, t):
        if self.kind == "loglinear":
            return -torch.log1p(-(1 - 1e-3) * t), (1 - 1e-3) / (1 - (1 - 1e-3) * t)
        low, high = 1e-2, 3.0
        sigma = low ** (1 - t) * high**t
        return sigma, sigma * math.log(high / low)

    def at(self, t):
        return tuple(float(value) for value in self(torch.tensor(t, dtype=torch.float64)))


class Scores:
    """Log scores by canvas and step, 0 at the token itself; knows its steps by the noise it is told."""

    def __init__(self, graph, noise, times, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.dim, self.rows = graph.dim, 0
        self.sigmas = torch.tensor([noise.at(t)[0] for t in times])
        self.table = 1.5 * torch.randn(len(times), graph.dim**L, L, graph.dim, generator=generator)

    def __call__(self, tokens, sigma):
        assert sigma.shape == tokens.shape[:1]
        self.rows += len(tokens)
        distance = (sigma[:, None] / self.sigmas - 1).abs()
        assert (distance.amin(-1) < 1e-2).all()
        number = (tokens * self.dim ** torch.arange(L - 1, -1, -1)).sum(-1)
        return self.table[distance.argmin(-1), number].scatter(-1, tokens[..., None], 0.0)

    def score(self, canvas, step):
        log_score = self.table[step, sum(token * self.dim ** (L - 1 - i) for i, token in enumerate(canvas))].double()
        return [
            [1.0 if v == x else math.exp(row[v]) for v in range(self.dim)]
            for row, x in zip(log_score, canvas, strict=True)
        ]


def step_weights(graph, s, x, dsigma, predictor, rate_step):
    """One position: `sample_rate` of the Euler step, or staggered score times transition. s: scores, s[x] = 1."""
    dim, mask = graph.dim, graph.dim - 1
    if predictor == "euler":
        forward = [1 / dim if not graph.absorb else float(x == mask) for _ in range(dim)]  # transp_rate at y != x
        rate = [forward[v] * s[v] if v != x else 0.0 for v in range(dim)]
        rate[x] = -sum(rate)
        return [float(v == x) + rate_step * rate[v] for v in range(dim)]
    e = math.exp(-dsigma)
    if graph.absorb:
        staggered = [value / e for value in s]
        staggered[mask] += (1 - 1 / e) * sum(s)
        transition = [e * (v == x) + (1 - e) * (x == mask) for v in range(dim)]
    else:
        staggered = [(e - 1) / (dim * e) * sum(s) + value / e for value in s]
        transition = [(1 - e) / dim + e * (v == x) for v in range(dim)]
    return [a * b for a, b in zip(staggered, transition, strict=True)]


def published_law(model, graph, noise, steps, predictor, denoise, start):
    dt = (1 - EPS) / steps

    def weights(canvas, _, step):
        t = 1 - step * dt
        sigma, rate = noise.at(t)
        dsigma = sigma - noise.at(t - dt)[0]
        scores = model.score(canvas, step)
        return [step_weights(graph, s, x, dsigma, predictor, dt * rate) for s, x in zip(scores, canvas, strict=True)]

    def last(canvas, *_):
        scores, sigma = model.score(canvas, steps), noise.at(EPS)[0]
        q = [step_weights(graph, s, x, sigma, "analytic", None) for s, x in zip(scores, canvas, strict=True)]
        return [[*row[:-1], 0.0] for row in q] if graph.absorb else q

    law = walk(start, weights, steps=range(steps))
    return over_canvases(walk(law, last, steps=range(1)) if denoise else law)


def setting(absorb, kind, steps, seed=0):
    graph, noise = Graph(absorb), Noise(kind)
    times = [1 - i * (1 - EPS) / steps for i in range(steps + 1)]
    every = [(a, b) for a in range(graph.dim) for b in range(graph.dim)]
    start = {((K, K), None): 1.0} if absorb else {(canvas, None): 1 / len(every) for canvas in every}
    return graph, noise, Scores(graph, noise, times, seed), start


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("predictor", ["euler", "analytic"])
@pytest.mark.parametrize(("absorb", "kind"), [(True, "loglinear"), (True, "geometric"), (False, "geometric")])
def test_the_law_is_the_published_one(absorb, kind, predictor, denoise):
    steps = 3
    graph, noise, model, start = setting(absorb, kind, steps)
    torch.manual_seed(1)
    got = get_pc_sampler(graph, noise, (ROWS, L), predictor, steps, denoise, seed=2)(model)
    law = published_law(model, graph, noise, steps, predictor, denoise, start)
    assert fits(got, law, graph.dim) > FALSE_ALARM
    other = setting(absorb, kind, steps, seed=1)[2]
    other = published_law(other, graph, noise, steps, predictor, denoise, start)
    assert fits(got, other, graph.dim) < FALSE_ALARM  # the test would notice


def test_rows_without_masks_cost_nothing():
    graph, noise, model, _ = setting(True, "loglinear", 64)
    get_pc_sampler(graph, noise, (50, L), "analytic", 64, seed=0)(model)
    assert 50 <= model.rows < 10 * 50  # and not 65 * 50: such scores fill a canvas in its first steps
    model.rows = 0
    given = get_pc_sampler(graph, noise, (50, L), "analytic", 64, proj_fun=torch.zeros_like, seed=0)(model)
    assert (given == 0).all()
    assert model.rows == 0


def test_given_tokens_are_put_back_before_every_forward():
    graph, noise, model, _ = setting(True, "loglinear", 4)
    seen = []

    def put_back(x):
        x[:, 0] = 1
        return x

    def watched(tokens, sigma):
        seen.append(tokens)
        return model(tokens, sigma)

    got = get_pc_sampler(graph, noise, (30, L), "euler", 4, proj_fun=put_back, seed=0)(watched)
    assert all((tokens[:, 0] == 1).all() for tokens in seen)
    assert (got[:, 0] == 1).all()
    assert (got != K).all()


def test_noise_comes_from_the_seed_or_from_torch():
    graph, noise, model, _ = setting(True, "loglinear", 4)
    draw = get_pc_sampler(graph, noise, (40, L), "analytic", 4)
    torch.manual_seed(3)
    first, second = draw(model), draw(model)
    torch.manual_seed(3)
    assert torch.equal(draw(model), first)
    assert not torch.equal(first, second)
    whole = get_pc_sampler(graph, noise, (40, L), "analytic", 4, seed=8)(model)
    part = get_pc_sampler(graph, noise, (10, L), "analytic", 4, seed=8)(model)
    assert torch.equal(whole[:10], part)


def test_no_predictor_leaves_all_to_the_last_step():
    graph, noise, model, start = setting(True, "loglinear", 5)
    got = get_pc_sampler(graph, noise, (ROWS, L), "none", 5, seed=1)(model)
    last = model.score((K, K), 5)
    law = over_canvases(walk(start, lambda *_: [[*row[:-1], 0.0] for row in last], steps=range(1)))
    assert fits(got, law, graph.dim) > FALSE_ALARM
    with pytest.raises(InvalidArgumentError, match="predictor must be one of"):
        get_pc_sampler(graph, noise, (2, L), "ddpm", 5)


def test_with_exact_scores_it_has_the_law_of_the_sampler_of_posteriors():
    """The same network as a log score under `LLaDASampler`: the analytic predictor is the ancestral step."""
    steps = 3
    graph, noise, model, start = setting(True, "loglinear", steps)
    posterior = torch.rand(graph.dim**L, L, K, generator=torch.Generator().manual_seed(5))
    posterior = (posterior / posterior.sum(-1, keepdim=True)).double()
    for step, sigma in enumerate(model.sigmas.double()):
        model.table[step, :, :, :K] = (posterior.log() - torch.expm1(sigma).log()).float()
    law = published_law(model, graph, noise, steps, "analytic", True, start)
    got = get_pc_sampler(graph, noise, (ROWS, L), "analytic", steps, seed=1)(model)
    assert fits(got, law, graph.dim) > FALSE_ALARM
    told = {"attention_mask": "none", "time_argument": "sigma", "sees_time": True, "output": "log_score"}
    sampler = LLaDASampler(
        model, spec=ModelSpec(mask_id=K, vocab_size=K + 1, **told), policy=AncestralUnmask(TimeGrid(EPS))
    )
    x = torch.zeros(ROWS, 0, dtype=torch.int64)
    out = sampler.generate(x, max_new_tokens=L, block_length=None, steps=steps, temperature=1.0, seed=4)
    assert fits(out.sequences, law, graph.dim) > FALSE_ALARM
