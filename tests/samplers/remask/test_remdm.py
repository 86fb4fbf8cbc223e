"""ReMDM: its law against the chain of noise levels, against absorbing_step_, and against the published formulas."""

import itertools

import pytest
import torch
from fakes import SpikeModel, TableModel
from test_sampler import Recorder, ragged_prompts

from dlm_kernels import InvalidArgumentError, absorbing_step_, keyed_uniform
from dlm_kernels.reference.philox import ROUTE_STREAM
from dlm_samplers import AncestralUnmask, DreamSampler, Guarantee, LLaDASampler, ReMDM, Threshold, TimeGrid
from dlm_samplers.remask.base import revisable

KINDS = [
    ReMDM("cap", 0.1),
    ReMDM("rescale", 0.4),
    ReMDM("conf"),
    ReMDM("conf", 0.5),
    ReMDM("loop", 0.05),
    ReMDM("loop", 0.08, t_on=0.6, t_off=0.3, alpha_on=0.8),
]
EXACT = [kind for kind in KINDS if kind.kind != "conf"]


class EveryStep(AncestralUnmask):
    """`AncestralUnmask` that spends forwards and noise as a remasking sampler does."""

    keyed_by_step = True
    foresees = False


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["cap", "rescale", "conf"])
def test_without_sigma_it_is_the_ancestral_sampler_token_for_token(kind, temperature):
    model = TableModel(3)
    settings = {"max_new_tokens": 12, "steps": 20, "block_length": None, "temperature": temperature, "seed": 1}
    prompts = ragged_prompts(model.vocab, rows=9)
    settings["return_history"] = True
    plain = LLaDASampler(model, policy=EveryStep()).generate(prompts, **settings)
    ours = LLaDASampler(model, remask=ReMDM(kind, 0.0)).generate(prompts, **settings)
    assert torch.equal(plain.sequences, ours.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.history, ours.history, strict=False))
    if temperature == 0:
        skipping = LLaDASampler(model, policy=AncestralUnmask()).generate(prompts, **settings)
        assert torch.equal(skipping.sequences, ours.sequences)


def published(kind, step, steps, eta, eps):
    """(alpha_t, alpha_s, sigma) as the authors' code has them, fp64; conf's sigma is that before the softmax."""
    t = 1 - (1 - eps) * step / steps
    s = 0.0 if step == steps - 1 else t - (1 - eps) / steps
    alpha_t, alpha_s = 1 - t, 1 - s
    sigma_max = 1.0 if alpha_t == 0 else min(1.0, (1 - alpha_s) / alpha_t)
    if kind.kind != "loop":
        return alpha_t, alpha_s, min(eta, sigma_max) if kind.kind == "cap" else eta * sigma_max

    def level(t):
        if t > kind.t_on:
            return (1 - t) * kind.alpha_on / (1 - kind.t_on)
        return kind.alpha_on if t > kind.t_off else 1 - t * (1 - kind.alpha_on) / kind.t_off

    held = kind.t_off < t <= kind.t_on
    alpha_t, alpha_s = level(t), level(s)
    return alpha_t, alpha_s, min(eta, (1 - alpha_s) / alpha_t) if held else 0.0


def states_at(rule, steps, rows=2, width=16):
    """A state in every step of the grid, of which random positions are filled."""
    model = TableModel(2)
    states = []

    def look(sampler, step, state):
        states.append(state.take(torch.arange(rows)))

    LLaDASampler(model, remask=rule).generate(
        torch.zeros(rows, 1, dtype=torch.long),
        max_new_tokens=width,
        steps=steps,
        block_length=None,
        callback_on_step_end=look,
    )
    for state in states:
        state.block_step = state.block_step - 1  # the callback comes after the count, this is the step that was taken
    return states


@pytest.mark.parametrize("eps", [1e-3, 0.05])
@pytest.mark.parametrize("steps", [1, 7, 40])
@pytest.mark.parametrize("rule", KINDS, ids=repr)
def test_probabilities_are_the_published_ones(rule, steps, eps):
    rule = ReMDM(rule.kind, rule.eta, TimeGrid(eps), rule.t_on, rule.t_off, rule.alpha_on)
    eta = {"cap": 0.008, "rescale": 0.015, "conf": 1.0, "loop": 0.02}[rule.kind] if rule.eta is None else rule.eta
    for step, state in enumerate(states_at(rule, steps)):
        alpha_t, alpha_s, sigma = published(rule, step, steps, eta, eps)
        commit_sigma = 0.0 if rule.kind == "conf" else sigma
        expected = (alpha_s - (1 - commit_sigma) * alpha_t) / (1 - alpha_t)
        assert rule.commit_probability(state).tolist() == pytest.approx([expected] * 2, abs=2e-6)
        got = rule.sigma(state)
        if alpha_t == 0:
            continue  # there are no tokens yet
        if rule.kind == "conf":
            tokens, psi = revisable(state), state.position_memory["remdm.psi"].double()
            weights = torch.where(tokens, (-psi).exp(), 0)
            wanted = sigma * weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)
            assert torch.allclose(got.double(), wanted, atol=1e-6)
        else:
            assert got.flatten().tolist() == pytest.approx([sigma] * 2, abs=2e-6)


@pytest.mark.parametrize("steps", [3, 10, 64])
@pytest.mark.parametrize("rule", EXACT, ids=repr)
def test_the_expected_share_of_masks_is_that_without_remasking(rule, steps):
    """By the law of total probability, step by step, from the probabilities that the sampler draws with."""
    share, remasked = 1.0, 0.0
    for step, state in enumerate(states_at(rule, steps)):
        commit, sigma = float(rule.commit_probability(state)[0]), float(rule.sigma(state)[0])
        assert -1e-6 <= commit <= 1 + 1e-6
        remasked += (1 - share) * sigma
        share = share * (1 - commit) + (1 - share) * sigma
        assert share == pytest.approx(1 - published(rule, step, steps, rule.eta, 1e-3)[1], abs=2e-5)
    assert share == pytest.approx(0, abs=2e-6)
    assert remasked > 0.05 or steps == 3, "a test in which hardly anything is remasked says little"


@pytest.mark.parametrize("rule", KINDS, ids=repr)
def test_the_sampler_draws_with_these_probabilities(rule):
    """Chi-square of the masks left after each step over 9600 positions; false alarm rate 1e-6 for all."""
    from scipy.stats import chi2

    steps, rows, width = 12, 600, 16
    out = LLaDASampler(TableModel(2), remask=rule).generate(
        torch.zeros(rows, 1, dtype=torch.long),
        max_new_tokens=width,
        steps=steps,
        block_length=None,
        return_history=True,
    )
    assert (out.nfe == steps).all(), "a row stays to the end of the grid, filled or not"
    masked = (torch.stack(out.history)[:, :, 1:] == 22).double().mean((1, 2))
    eta = 1.0 if rule.eta is None else rule.eta
    if (
        rule.kind == "conf"
    ):  # a row's sigmas add up to eta sigma_max, so its expected masks are known nearly: none is held
        plain = [1 - published(rule, step, steps, eta, 1e-3)[1] for step in range(steps)]
        assert all(masked[1 + step] >= plain[step] - 0.02 for step in range(steps))
        assert masked[-1] == 0
        return
    statistic = 0.0
    for step in range(steps - 1):
        expected = 1 - published(rule, step, steps, eta, 1e-3)[1]
        statistic += float((masked[step + 1] - expected) ** 2 / (expected * (1 - expected) / (rows * width)))
    assert masked[-1] == 0
    # Steps are correlated, so the bound is that of one statistic, times their number.
    assert statistic < (steps - 1) * chi2.isf(1e-6 / steps, 1)


@pytest.mark.parametrize("rule", KINDS, ids=repr)
def test_a_step_jumps_where_absorbing_step_does(rule):
    """The op draws from another stream; on its own numbers our probabilities choose the same positions."""
    steps, checked = 10, 0
    for step, state in enumerate(states_at(rule, steps, rows=8, width=40)[:-1]):
        eta = 1.0 if rule.eta is None else rule.eta
        alpha_t, alpha_s, sigma = published(rule, step, steps, eta, 1e-3)
        masked = state.tokens == state.mask_id
        sigmas = rule.sigma(state).double().expand(state.tokens.shape)
        if rule.kind == "conf":
            sigma = torch.where(masked, 0.0, sigmas)
        before = state.tokens.clone()
        jumped = absorbing_step_(
            before,
            torch.zeros(*before.shape, 23),
            mask_id=22,
            alpha_t=torch.full((8,), alpha_t, dtype=torch.float64),
            alpha_s=torch.full((8,), alpha_s, dtype=torch.float64),
            sigma=sigma,
            eligible=state.editable,
            row_ids=state.row_ids,
            step=step,
        )
        u = keyed_uniform(
            torch.zeros(8, 1, dtype=torch.long), state.row_ids, torch.full((8, 1), step), stream=ROUTE_STREAM
        )
        ours = u < torch.where(masked, rule.commit_probability(state)[:, None], rule.sigma(state))
        assert torch.equal(jumped, ours & state.editable)
        checked += int(jumped.sum())
    assert checked > 100


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", KINDS, ids=repr)
@pytest.mark.parametrize("sampler_class", [LLaDASampler, DreamSampler])
def test_rows_get_in_a_batch_what_they_get_alone(sampler_class, rule, temperature):
    model = SpikeModel(11, eos=3)
    prompts = ragged_prompts(model.vocab, rows=8)
    prompts[2][:1] = model.mask
    budgets = [(5 * row) % 17 for row in range(8)]
    sampler = sampler_class(model, remask=rule)
    settings = {"temperature": temperature, "block_length": 8, "seed": 42}
    batch = sampler.generate(prompts, max_new_tokens=budgets, **settings)
    few = sampler.generate(prompts, max_new_tokens=budgets, batch_size=3, **settings)
    assert torch.equal(few.sequences, batch.sequences)
    assert torch.equal(few.nfe, batch.nfe)
    assert not (batch.sequences == model.mask).any()
    for row in range(8):
        alone = sampler.generate([prompts[row]], max_new_tokens=budgets[row], request_ids=[row], **settings)
        width = alone.sequences.shape[1]
        assert torch.equal(alone.sequences[0], batch.sequences[row, :width])
        kept = prompts[row] != model.mask
        assert torch.equal(alone.sequences[0, : len(kept)][kept], prompts[row][kept])


def test_it_ends_with_a_model_that_prefers_the_mask_and_takes_tokens_back_on_the_way():
    model = TableModel(2)
    model.table[:, model.mask] = 100.0
    for rule in KINDS:
        out = LLaDASampler(model, remask=rule).generate(
            torch.zeros(4, 3, dtype=torch.long), max_new_tokens=24, steps=60, block_length=8, return_history=True
        )
        assert (out.sequences != model.mask).all()
        canvases = torch.stack(out.history)
        assert ((canvases[:-1] != model.mask) & (canvases[1:] == model.mask)).any(), rule


def test_conf_takes_back_the_tokens_that_were_unsure():
    model = SpikeModel(5, height=12.0)
    low, high = [], []

    def look(sampler, step, state):
        psi = state.position_memory["remdm.psi"]
        seen.append((state.tokens.clone(), psi.clone()))

    seen = []
    LLaDASampler(model, remask=ReMDM("conf")).generate(
        torch.zeros(400, 1, dtype=torch.long), max_new_tokens=8, steps=16, block_length=None, callback_on_step_end=look
    )
    for (tokens, psi), (after, _) in itertools.pairwise(seen):
        filled = tokens != model.mask
        filled[:, 0] = False
        gone = filled & (after == model.mask)
        low.append((int((gone & (psi < 0.5)).sum()), int((filled & (psi < 0.5)).sum())))
        high.append((int((gone & (psi > 0.8)).sum()), int((filled & (psi > 0.8)).sum())))
    rate = [sum(g for g, _ in pairs) / sum(n for _, n in pairs) for pairs in (low, high)]
    assert rate[0] > rate[1] * 1.2, rate  # psi of 0.3 and 0.95: e^0.65 = 1.9, diluted by the row's other tokens


def test_streaming_waits_for_tokens_that_may_be_taken_back():
    model = SpikeModel(2)
    recorder = Recorder()
    out = LLaDASampler(model, remask=ReMDM("rescale", 0.9)).generate(
        torch.zeros(1, 3, dtype=torch.long), max_new_tokens=16, block_length=4, steps=64, streamer=recorder
    )
    assert torch.equal(torch.cat(recorder.pieces, dim=1), out.sequences)
    assert [piece.shape[1] for piece in recorder.pieces] == [3, 4, 4, 4, 4]
    assert recorder.ended


def test_eta_may_differ_from_request_to_request():
    model = TableModel(3)
    settings = {"max_new_tokens": 12, "steps": 30, "block_length": None, "seed": 1}
    prompts = ragged_prompts(model.vocab, rows=4)
    etas = (0.0, 0.1, 0.3, 0.9)
    together = LLaDASampler(model, remask=ReMDM("cap", etas)).generate(prompts, batch_size=2, **settings)
    for row, eta in enumerate(etas):
        alone = LLaDASampler(model, remask=ReMDM("cap", eta)).generate([prompts[row]], request_ids=[row], **settings)
        assert torch.equal(alone.completions[0], together.completions[row])


def test_it_brings_its_policy_and_refuses_others():
    model = TableModel(0, eos=3)
    rule = ReMDM("cap")
    sampler = LLaDASampler(model, remask=rule)
    assert sampler.policy == rule.policy
    assert isinstance(sampler.policy, AncestralUnmask)
    assert sampler.guarantee is Guarantee.EXACT
    LLaDASampler(model, policy=rule.policy, remask=rule)
    for policy in (Threshold(), AncestralUnmask()):
        with pytest.raises(InvalidArgumentError, match="leave policy out"):
            LLaDASampler(model, policy=policy, remask=rule)
    with pytest.raises(InvalidArgumentError, match="RemaskedUnmask goes with its ReMDM"):
        LLaDASampler(model, policy=rule.policy)
    with pytest.raises(InvalidArgumentError, match="RemaskedUnmask goes with its ReMDM"):
        LLaDASampler(model, policy=ReMDM("rescale").policy, remask=rule)
    for build, message in (
        (lambda: ReMDM("caps"), "kind must be one of"),
        (lambda: ReMDM("cap", 1.5), "eta must be in"),
        (lambda: ReMDM("cap", (0.1, -0.1)), "eta must be in"),
        (lambda: ReMDM("loop", t_on=0.1, t_off=0.2), "t_off <= t_on"),
        (lambda: ReMDM("loop", alpha_on=1.0), "alpha_on must be in"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            build()
