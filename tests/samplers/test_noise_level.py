"""Models that are told the time, and models that return something else than logits, on laws that can be enumerated."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chisquare

from dlm_kernels import InvalidArgumentError, score_tokens
from dlm_samplers import (
    AncestralUnmask,
    DraftVerify,
    EventDriven,
    FixedQuota,
    LLaDASampler,
    ModelSpec,
    ReMDM,
    TimeGrid,
    TokenEditing,
)
from dlm_samplers.models import Adapter

V, L, MASK = 3, 3, 3
TEXTS = list(itertools.product(range(V), repeat=L))
CANVASES = list(itertools.product(range(V + 1), repeat=L))
NUMBER = {canvas: n for n, canvas in enumerate(CANVASES)}
TIMED = {"mask_id": MASK, "attention_mask": "none", "time_argument": "sigma", "sees_time": True}


def number(tokens):
    """The place of each canvas [B, L] in CANVASES."""
    return (tokens * (V + 1) ** torch.arange(L - 1, -1, -1)).sum(-1)


def text_law(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return dict(zip(TEXTS, torch.rand(len(TEXTS), generator=generator).double().square().tolist(), strict=True))


def marginal(law, canvas, sigma):
    """p_t(canvas), summed over every text and every way to mask it."""
    keep, total = math.exp(-sigma), 0.0
    for text, weight in law.items():
        for x, token in zip(canvas, text, strict=True):
            weight *= keep if x == token else 1 - keep if x == MASK else 0.0
        total += weight
    return total


class ExactScore:
    """log p_t(canvas with token v at i) - log p_t(canvas), by enumeration."""

    def __init__(self, law):
        self.law = law

    def __call__(self, tokens, sigma):
        out = torch.zeros(*tokens.shape, V + 1, dtype=torch.float64)
        for row, (canvas, noise) in enumerate(zip(tokens.tolist(), sigma.tolist(), strict=True)):
            here = marginal(self.law, canvas, noise)
            for i, v in itertools.product(range(L), range(V + 1)):
                there = marginal(self.law, [*canvas[:i], v, *canvas[i + 1 :]], noise)
                out[row, i, v] = math.log(there / here) if there and here else -math.inf
        return out.float()


def test_a_log_score_is_the_posterior_at_masks():
    law = text_law()
    adapter = Adapter(ExactScore(law), ModelSpec(output="log_score", **TIMED))
    for canvas in CANVASES:
        tokens = torch.tensor([canvas])
        for noise in (0.05, 0.5, 0.99):
            logits = adapter.forward(tokens, None, torch.tensor([noise]))
            for i in (i for i, x in enumerate(canvas) if x == MASK):
                fits = [text for text in TEXTS if all(x in (MASK, y) for x, y in zip(canvas, text, strict=True))]
                joint = torch.tensor([sum(law[text] for text in fits if text[i] == v) for v in range(V)])
                assert logits[0, i, MASK] == -math.inf
                torch.testing.assert_close(logits[0, i, :V].softmax(0), joint / joint.sum(), rtol=1e-4, atol=1e-5)
                confidence = score_tokens(logits[0, i], suppress_ids=[]).confidence
                torch.testing.assert_close(confidence, joint.max() / joint.sum(), rtol=1e-4, atol=1e-5)


class Recorder:
    """Flat logits, and a record of what it was told."""

    def __init__(self):
        self.told = []

    def __call__(self, tokens, sigma):
        self.told.append(sigma.clone())
        return torch.zeros(*tokens.shape, V + 1)


def told(spec=None, rows=2, width=6, **arguments):
    """Noise levels as shares of masks, [forwards, rows]."""
    model = Recorder()
    compose = {name: arguments.pop(name) for name in ("policy", "remask") if name in arguments}
    sampler = LLaDASampler(model, spec=ModelSpec(**{**TIMED, **(spec or {})}), **compose)
    prompts = torch.zeros(rows, 2, dtype=torch.int64)
    sampler.generate(prompts, max_new_tokens=width, block_length=arguments.pop("block_length", None), **arguments)
    return [-torch.expm1(-sigma) / 0.999 for sigma in model.told]


def test_the_grid_of_the_published_samplers_is_what_the_model_is_told():
    grid = torch.linspace(1, 1e-3, 9)[:-1]
    shares = told(steps=8, remask=ReMDM("cap"))
    assert len(shares[0]) == 2
    seen = torch.stack([share[0] for share in shares])
    torch.testing.assert_close(seen, grid[: len(seen)], rtol=1e-4, atol=1e-5)
    seen = torch.cat(told(steps=8, rows=1, policy=AncestralUnmask()))  # in the steps that fill something
    place = (seen[:, None] - grid).abs().argmin(-1)
    torch.testing.assert_close(seen, grid[place], rtol=1e-4, atol=1e-5)
    assert (place.diff() > 0).all()
    loop = torch.stack([share[0] for share in told(steps=8, remask=ReMDM("loop"))])
    torch.testing.assert_close(
        loop[4:7], torch.full((3,), 0.1), rtol=1e-4, atol=1e-5
    )  # 1 - alpha_on, between t_on and t_off


def test_without_a_grid_the_model_is_told_the_share_of_masks_among_what_is_to_fill():
    for block_length, policy in ((None, FixedQuota()), (3, FixedQuota()), (3, AncestralUnmask(TimeGrid()))):
        shares = told(policy=policy, block_length=block_length, rows=1)
        first, last = shares[0], shares[-1]
        torch.testing.assert_close(first, torch.ones(1), rtol=1e-4, atol=1e-4)
        if isinstance(policy, FixedQuota):
            expected = torch.arange(6, 0, -1) / 6
            torch.testing.assert_close(torch.cat(shares), expected, rtol=1e-4, atol=1e-4)
        assert last < first


def test_a_network_without_time_conditioning_is_told_zero():
    shares = told({"sees_time": False}, policy=AncestralUnmask(), steps=16)
    assert all((share == 0).all() for share in shares)
    scores = told({"sees_time": False, "output": "log_score"}, policy=FixedQuota(), rows=1)
    assert [round(6 * float(share)) for share in scores] == [
        4,
        4,
        3,
        2,
        2,
        1,
    ]  # of the whole canvas; only scale hangs on it
    assert len(shares) < 16  # so that steps without a flip may still be left out


def test_guidance_tells_both_halves_the_same():
    shares = told(policy=AncestralUnmask(), steps=4, cfg_scale=1.0)
    assert all(len(share) % 2 == 0 and share.unique().numel() == 1 for share in shares)


def test_padding_does_not_change_the_share_that_an_adapter_counts():
    model = Recorder()
    adapter = Adapter(model, ModelSpec(**{**TIMED, "attention_mask": "2d"}))
    adapter.model = lambda tokens, sigma, attention_mask: model(tokens, sigma)
    tokens = torch.tensor([[0, MASK, MASK, MASK]])
    adapter.forward(tokens, torch.tensor([[True, True, False, False]]))
    torch.testing.assert_close(-torch.expm1(-model.told[0]) / 0.999, torch.tensor([0.5]))


class TimedTable:
    """Logits of a table [time, canvas, L, V + 1]; sigma picks the time."""

    def __init__(self, steps, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.table = 3 * torch.rand(steps, len(CANVASES), L, V + 1, generator=generator)
        self.sigmas = -torch.log1p(-0.999 * torch.linspace(1, 1e-3, steps + 1)[:-1])

    def __call__(self, tokens, timesteps):
        time = (timesteps[:, None] - self.sigmas).abs().argmin(-1)
        return SimpleNamespace(logits=self.table[time, number(tokens)].clone())


def ancestral_law(model, steps):
    """Probability of each text at the end, by enumeration of every canvas at every step."""
    times = torch.linspace(1, 1e-3, steps + 1).tolist()
    times[-1] = 0.0
    law = {(MASK,) * L: 1.0}
    for step in range(steps):
        leave = 1 - times[step + 1] / times[step]
        after: dict[tuple[int, ...], float] = {}
        for canvas, mass in law.items():
            p = model.table[step, NUMBER[canvas], :, :V].double().softmax(-1)
            options = [
                [(x, 1.0)] if x != MASK else [(MASK, 1 - leave), *((v, leave * float(p[i, v])) for v in range(V))]
                for i, x in enumerate(canvas)
            ]
            for choice in itertools.product(*options):
                to = tuple(token for token, _ in choice)
                after[to] = after.get(to, 0.0) + mass * math.prod(weight for _, weight in choice)
        law = after
    return [law.get(text, 0.0) for text in TEXTS]


def test_a_network_that_sees_time_is_sampled_by_its_own_law():
    steps, rows = 3, 20_000
    model = TimedTable(steps)
    spec = ModelSpec(**{**TIMED, "time_argument": "timesteps"})
    sampler = LLaDASampler(model, spec=spec, policy=AncestralUnmask())
    prompts = torch.zeros(rows, 0, dtype=torch.int64)
    out = sampler.generate(prompts, max_new_tokens=L, block_length=None, steps=steps, temperature=1.0, seed=3)
    places = (out.sequences * V ** torch.arange(L - 1, -1, -1)).sum(-1)
    counts = torch.bincount(places, minlength=len(TEXTS)).double()
    expected = torch.tensor(ancestral_law(model, steps), dtype=torch.float64) * rows
    assert chisquare(counts, expected).pvalue > 1e-4
    mixed_up = torch.tensor(ancestral_law(TimedTable(steps, seed=1), steps), dtype=torch.float64) * rows
    assert chisquare(counts, mixed_up).pvalue < 1e-10  # the test would notice


@pytest.mark.parametrize(
    ("spec", "compose", "message"),
    [
        ({"hidden": "model", "lm_head": "head"}, {}, "without time_argument"),
        ({"output": "scores"}, {}, "output must be one of"),
        ({"output": "log_score"}, {"remask": TokenEditing()}, "says nothing of them; ReMDM"),
        ({"output": "subs"}, {"remask": TokenEditing()}, "says nothing of them; ReMDM"),
        ({}, {"policy": EventDriven()}, "sees no time"),
        ({}, {"verify": DraftVerify(4)}, "sees_time"),
    ],
)
def test_what_does_not_go_together_is_refused(spec, compose, message):
    with pytest.raises(InvalidArgumentError, match=message):
        LLaDASampler(Recorder(), spec=ModelSpec(**{**TIMED, **spec}), **compose)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_additive_block_mask_is_the_bool_one_in_the_models_dtype(dtype):
    class Masked(torch.nn.Linear):
        def forward(self, tokens, attention_mask, use_cache):
            assert use_cache is False
            self.given = attention_mask
            return torch.zeros(*tokens.shape, V + 1)

    model, masks = Masked(2, 2, dtype=dtype), {}
    for kind in ("4d_block", "4d_block_additive"):
        spec = ModelSpec(mask_id=MASK, attention_mask=kind, block_length=2, keywords={"use_cache": False})
        for valid in (None, torch.tensor([[True, True, True, False, False]])):
            Adapter(model, spec).forward(torch.zeros(1, 5, dtype=torch.int64), valid)
            masks[kind, valid is None] = model.given
    for full in (True, False):
        given = masks["4d_block_additive", full]
        assert given.dtype == dtype
        assert torch.equal(given == 0, masks["4d_block", full])
        assert torch.equal(given == -torch.inf, ~masks["4d_block", full])
        assert (given == 0).any(-1).all()
