"""The event-driven sampler: its law by enumeration, its path against a loop over all steps, its forwards, its refusals."""

import math
import random
from itertools import pairwise

import pytest
import torch
from fakes import TableModel, keyed_gumbel
from scipy.stats import chisquare

from dlm_benches.samplers.law import (
    CanvasTable,
    Forced,
    ancestral_law,
    distinct_steps,
    flip_choices,
    grid_choices,
    law_differences,
    linear_shares,
    one_by_one_law,
    order_choices,
)
from dlm_benches.tiny.load import load
from dlm_kernels import InvalidArgumentError, keyed_uniform
from dlm_kernels.rng import make_row_ids
from dlm_samplers import AncestralUnmask, DreamSampler, EndOfText, EventDriven, FixedQuota, LLaDASampler, ModelSpec
from dlm_samplers.remask import Remask

EXACT = 1e-12


def test_laws_equal_the_definitions():
    for row in law_differences():
        assert row["difference"] <= EXACT, row


def masked_linear(t):
    return t


def masked_cosine(t):
    return math.cos(math.pi / 2 * (1 - t))


def masked_polynomial(t):
    return 0.9 * t**3


SHAPES = [
    (lambda t: 1 - 0.9 * t**3, masked_polynomial),  # leaves a tenth clean at t = 1
    ("cosine", masked_cosine),
    ("linear", masked_linear),
]


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize(("vocabulary", "length", "steps"), [(2, 3, 5), (2, 4, 3), (3, 2, 7), (1, 4, 4), (3, 3, 1)])
@pytest.mark.parametrize(("alpha", "masked"), SHAPES)
def test_law_of_any_noise_schedule(alpha, masked, vocabulary, length, steps, eps):
    """A step from t to s flips the share (alpha_s - alpha_t) / (1 - alpha_t) of the masks left."""
    model = CanvasTable(steps, vocabulary, length)
    t = [1 - (1 - eps) * k / steps for k in range(steps + 1)]
    shares = [(masked(a) - masked(b)) / masked(a) for a, b in pairwise(t[:-1])] + [1.0]
    policy = EventDriven(steps, alpha=alpha, eps=eps)
    got = Forced(model, policy).enumerate(grid_choices(policy, length))
    assert (got.law - ancestral_law(model, shares)).abs().max() <= EXACT
    assert abs(float(got.law.sum()) - 1) <= EXACT


@pytest.mark.parametrize(("steps", "length"), [(4, 4), (7, 2), (2, 4), (1, 3)])
def test_mean_forwards_are_the_steps_with_a_flip(steps, length):
    policy = EventDriven(steps)
    got = Forced(CanvasTable(0, 2, length), policy).enumerate(grid_choices(policy, length))
    assert abs(got.nfe - distinct_steps(steps, length)) <= EXACT


def test_ancestral_unmask_has_the_same_law_and_the_same_forwards():
    """Its shares are fp32, as upstream's; hence the tolerance."""
    steps, length, eps = 4, 3, 1e-3
    model, shares = CanvasTable(5, 2, length), linear_shares(4, eps)
    got = Forced(model, AncestralUnmask()).enumerate(flip_choices(shares, length), steps=steps)
    assert (got.law - ancestral_law(model, shares)).abs().max() < 1e-7
    policy = EventDriven(steps, eps=eps)
    events = Forced(model, policy).enumerate(grid_choices(policy, length))
    assert (got.law - events.law).abs().max() < 1e-7
    assert abs(got.nfe - events.nfe) < 1e-6


def test_one_by_one_inside_blocks():
    model = CanvasTable(3, 2, 4)
    definition = one_by_one_law(model, 2)
    for policy in (EventDriven(), FixedQuota("random", tokens_per_step=1)):
        got = Forced(model, policy).enumerate(order_choices(4), block_length=2)
        assert (got.law - definition).abs().max() <= EXACT
        assert got.nfe == pytest.approx(4)


def every_step(model, prompt, new, block, steps, temperature, seed):
    """The synchronous loop: a forward of the whole batch in each of the T steps of a block, flips at the same times."""
    batch, width = prompt.shape[0], prompt.shape[1] + new
    x = torch.nn.functional.pad(prompt, (0, new), value=model.mask)
    u = keyed_uniform(seed, make_row_ids(torch.arange(batch)[:, None], torch.arange(width)), 0)
    noise = keyed_gumbel(seed, torch.arange(batch), width, model.vocab)(0, (batch, width, model.vocab))
    for start in range(prompt.shape[1], width, block):
        for k in range(steps):
            logits = model(x).logits
            logits[..., model.mask] = -torch.inf
            token = (logits.double() / temperature + noise).argmax(-1) if temperature else logits.argmax(-1)
            for row in range(batch):
                for i in range(start, min(start + block, width)):
                    # Time runs from 1 to 0 in `steps` equal steps; u is the time of the flip.
                    if x[row, i] == model.mask and (k == steps - 1 or float(u[row, i]) >= 1 - (k + 1) / steps):
                        x[row, i] = token[row, i]
    return x


@pytest.mark.parametrize("seed", range(60))
def test_path_of_the_loop_over_all_steps(seed):
    rng = random.Random(seed)
    model = TableModel(seed, vocab=rng.choice([3, 11, 60]))
    prompt = torch.randint(model.vocab - 1, (rng.randint(1, 5), rng.randint(1, 6)))
    new, block, steps = rng.randint(1, 14), rng.choice([3, 5, 14]), rng.choice([1, 2, 8, 32])
    temperature = rng.choice([0.0, 0.7, 1.0])
    expected = every_step(model, prompt, new, block, steps, temperature, seed)
    got = LLaDASampler(model, policy=EventDriven(steps)).generate(
        prompt, max_new_tokens=new, block_length=block, temperature=temperature, seed=seed
    )
    assert torch.equal(got.sequences, expected)
    assert (got.nfe <= min(new, steps * -(-new // block))).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("sampler", [LLaDASampler, DreamSampler])
def test_continuous_time_is_random_order_token_for_token(sampler, temperature):
    model = TableModel(4)
    settings = {"max_new_tokens": 40, "block_length": 16, "temperature": temperature, "seed": 3}
    prompts = torch.zeros(8, 2, dtype=torch.long)
    by_event = sampler(model, policy=EventDriven()).generate(prompts, **settings)
    by_order = sampler(model, policy=FixedQuota("random", tokens_per_step=1)).generate(prompts, **settings)
    assert torch.equal(by_event.sequences, by_order.sequences)
    assert (by_event.nfe == 40).all()


def test_the_head_sees_the_positions_of_the_next_event_alone():
    rows = []

    class Counting(LLaDASampler):
        def score(self, evaluation, state, scoring):
            rows.append(evaluation.scored.sum(-1))
            return super().score(evaluation, state, scoring)

    out = Counting(TableModel(1), policy=EventDriven(64)).generate(
        torch.zeros(16, 1, dtype=torch.long), max_new_tokens=64, block_length=None
    )
    scored = torch.cat(rows)
    assert scored.min() == 1, "no forward without a commit"
    assert scored.sum() == 16 * 64, "each position is scored once"
    assert scored.numel() == out.nfe.sum()
    standard_error = 0.25 * math.sqrt(64 / 16)  # of a mean of 16; one row's variance is below 0.06 * 64
    assert abs(out.nfe.float().mean() - distinct_steps(64, 64)) < 5 * standard_error


def test_frequencies_on_a_trained_model():
    """Chi-square of 4,000 draws of two blanks against the law by definition; false alarm rate 1e-6."""
    model = load("reasoning")
    mask, width = model.config.mask_token_id, model.config.vocab_size
    prompt = torch.tensor([[5, 6, 7, 8, mask, mask, 9]])
    blanks, steps, rows = [4, 5], 2, 4000

    def p(canvas):
        logits = model(canvas).logits.double()
        logits[..., mask] = -torch.inf
        return logits.softmax(-1)

    together = p(prompt)[0, blanks]
    law = torch.outer(together[0], together[1]) / 2  # both in one step
    for first, second in (blanks, blanks[::-1]):  # the order of the flips: a quarter each
        canvases = prompt.repeat(width, 1)
        canvases[:, first] = torch.arange(width)
        then = together[blanks.index(first)][:, None] * p(canvases)[:, second]
        law += (then if first < second else then.T) / 4
    torch.testing.assert_close(law.sum(), torch.ones(()).double())
    out = LLaDASampler(model, policy=EventDriven(steps)).generate(
        prompt.repeat(rows, 1), max_new_tokens=0, block_length=None, temperature=1.0, seed=11
    )
    counts = torch.zeros(width, width, dtype=torch.float64)
    counts.index_put_(tuple(out.sequences[:, blanks].T), torch.ones(rows, dtype=torch.float64), accumulate=True)
    likely = law * rows >= 10
    pooled = [torch.cat([x[likely], x[~likely].sum()[None]]) for x in (counts, law * rows)]
    assert likely.sum() >= 20
    assert chisquare(pooled[0].numpy(), (pooled[1] / pooled[1].sum() * rows).numpy()).pvalue > 1e-6


def test_end_of_text_leaves_events_out():
    model = TableModel(6, eos=3)
    model.table[:, 3] += 3
    settings = {"max_new_tokens": 32, "block_length": 4, "seed": 1}
    prompts = torch.zeros(6, 2, dtype=torch.long)
    full = LLaDASampler(model, policy=EventDriven(8)).generate(prompts, **settings)
    stopped = LLaDASampler(model, policy=EventDriven(8), stopping=[EndOfText()]).generate(prompts, **settings)
    assert all(torch.equal(a, b) for a, b in zip(full.completions, stopped.completions, strict=True))
    assert stopped.nfe.sum() < full.nfe.sum()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EventDriven(0), "grid must be an int >= 1 or None, got 0"),
        (lambda: EventDriven(True), "grid"),
        (lambda: EventDriven(4, alpha="quadratic"), r"alpha must be one of \('linear', 'cosine'\) or a function"),
        (lambda: EventDriven(4, alpha=lambda t: t), "alpha must map"),
        (lambda: EventDriven(4, alpha=lambda t: 1 - 0 * t), "less than 1 at t = 1"),
        (lambda: EventDriven(4, alpha=lambda t: 0.5), "alpha must map"),
        (lambda: EventDriven(4, eps=1.0), r"eps must be in \[0, 1\)"),
    ],
)
def test_bad_parameters(build, message):
    with pytest.raises(InvalidArgumentError, match=message):
        build()


def test_a_model_that_sees_time_is_refused_and_told_where_to_go():
    model = TableModel(1)
    spec = ModelSpec(mask_id=model.mask, sees_time=True)
    with pytest.raises(InvalidArgumentError, match=r"sees no time.*AncestralUnmask\(\)"):
        LLaDASampler(model, policy=EventDriven(8), spec=spec)
    settings = {"max_new_tokens": 6, "steps": 20, "block_length": None}
    prompt = torch.zeros(1, 1, dtype=torch.long)
    every = LLaDASampler(model, policy=AncestralUnmask(), spec=spec).generate(prompt, **settings)
    some = LLaDASampler(model, policy=AncestralUnmask()).generate(prompt, **settings)
    assert torch.equal(every.sequences, some.sequences)
    assert every.nfe > some.nfe
    assert some.nfe <= 6


def test_remasking_is_refused_unless_it_keeps_times():
    class TakesBack(Remask):
        guarantee, promise = EventDriven.guarantee, "a test's"

    class Rewrites(TakesBack):
        keeps_times = True

    with pytest.raises(
        InvalidArgumentError, match=r"TakesBack takes tokens back after their time. Use AncestralUnmask\(\)"
    ):
        LLaDASampler(TableModel(1), policy=EventDriven(8), remask=TakesBack())
    LLaDASampler(TableModel(1), policy=EventDriven(8), remask=Rewrites())
