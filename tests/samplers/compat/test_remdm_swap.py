"""ReMDM's swap against the published formulas, enumerated in plain Python."""

import math

import pytest
import torch
from laws import FALSE_ALARM, Table, fits, over_canvases, walk

from dlm_kernels import InvalidArgumentError
from dlm_samplers import ModelSpec
from dlm_samplers.compat import mdlm, remdm

ROWS, EPS = 20_000, 1e-5
LOOP = {"t_on": 0.8, "t_off": 0.3, "alpha_on": 0.4}
KINDS = {
    "mdlm": {},
    "forward-backward": {},
    "remdm-cap": {"eta": 0.3},
    "remdm-rescale": {"eta": 0.7},
    "remdm-conf": {},
    "remdm-loop": {"eta": 0.25, **LOOP},
}


def spec(model):
    told = {"attention_mask": "none", "time_argument": "sigma", "sees_time": model.levels is not None}
    return ModelSpec(mask_id=model.mask, vocab_size=model.vocabulary, **told)


def update_weights(model, canvas, conf, t, dt, time, sampler, eta=0.0, t_on=0.55, t_off=0.05, alpha_on=0.9):
    """q_xs of `_ddpm_caching_update`, [L][V + 1], row by row."""
    mask, p = model.mask, model.p(canvas, time)
    alpha_t, alpha_s = 1 - t, 1 - (t - dt)
    limit = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t > 0 else 1.0
    if sampler == "remdm-loop" and t > t_on:
        sampler, alpha_t = "mdlm", (1 - t) * alpha_on / (1 - t_on)
        alpha_s = (1 - t + dt) * alpha_on / (1 - t_on)
    elif sampler == "remdm-loop" and t <= t_off:
        sampler, alpha_t, alpha_s = "mdlm", 1 - t * (1 - alpha_on) / t_off, 1 - (t - dt) * (1 - alpha_on) / t_off
    elif sampler == "remdm-loop":
        alpha_t = alpha_s = alpha_on
    shares = [math.exp(c) if c is not None else 0.0 for c in conf]
    out = []
    for i, token in enumerate(canvas):
        sigma = {
            "mdlm": 0.0,
            "forward-backward": (alpha_s - alpha_t) / alpha_t if alpha_t > 0 else 1.0,
            "remdm-cap": min(eta, limit) if alpha_t > 0 else eta,
            "remdm-rescale": eta * limit,
            "remdm-conf": 0.0 if token == mask else limit * shares[i] / sum(shares) if sum(shares) else 0.0,
            "remdm-loop": eta,
        }[sampler]
        if token == mask:
            row = [w * (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t) for w in p[i]]
            row[mask] = (1 - alpha_s - sigma * alpha_t) / (1 - alpha_t)
        else:
            row = [w * (1 - sigma) for w in p[i]]
            row[mask] = sigma
        out.append(row)
    return out


def published_law(model, steps, sampler, **settings):
    dt = (1 - EPS) / steps
    mask, length = model.mask, model.length

    def weights(canvas, conf, step):
        return update_weights(model, canvas, conf, 1 - step * dt, dt, step, sampler, **settings)

    def remember(conf, before, after, step):
        p = model.p(before, step)
        new = []
        for i in range(length):
            if after[i] == mask:
                new.append(None)
            else:
                new.append(-p[i][after[i]] if before[i] == mask else conf[i])
        return tuple(new)

    def last(canvas, *_):
        return [[float(w == max(row)) for w in row] for row in model.p(canvas, steps)]

    law = walk({((mask,) * length, (None,) * length): 1.0}, weights, remember, range(steps))
    return over_canvases(walk(law, last, steps=range(1)))


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("sampler", KINDS)
def test_the_law_is_the_published_one(sampler, timed):
    steps = 4
    dt = (1 - EPS) / steps
    levels = [*(1 - i * dt for i in range(steps)), EPS] if timed else None
    model = Table(vocabulary=3, length=2, levels=levels, seed=1)
    x = torch.full((ROWS, 2), model.mask)
    got = remdm.sample(model, steps, sampler=sampler, x=x, spec=spec(model), seed=3, **KINDS[sampler])
    assert fits(got, published_law(model, steps, sampler, **KINDS[sampler]), 3) > FALSE_ALARM
    if sampler != "mdlm":
        assert fits(got, published_law(model, steps, "mdlm"), 3) < FALSE_ALARM  # the test would notice


@pytest.mark.parametrize("sampler", KINDS)
@pytest.mark.parametrize("t", [1.0, 0.6, 0.25])
def test_the_update_has_the_published_law(sampler, t):
    model = Table(vocabulary=4, length=3, seed=6)
    mask, dt = model.mask, 0.2
    canvas, conf = (0, mask, 2), (-0.3, None, -0.9)
    x = torch.tensor([canvas]).expand(ROWS, -1)
    before = torch.tensor([[-0.3, -torch.inf, -0.9]]).repeat(ROWS, 1)
    settings = {"sampler": sampler, "spec": spec(model), "seed": 2, **KINDS[sampler]}
    p_x0, after, conf_after = remdm.ddpm_caching_update(model, x, torch.full((ROWS,), t), dt, conf=before, **settings)
    q = update_weights(model, canvas, conf, t, dt, 0, sampler, **KINDS[sampler])
    law = over_canvases(walk({(canvas, None): 1.0}, lambda *_: q, steps=range(1)))
    assert fits(after, law, 4) > FALSE_ALARM
    assert p_x0 is None  # some canvas changed
    assert conf_after is before
    assert torch.equal(conf_after == -torch.inf, after == mask)
    p = torch.tensor(model.p(canvas))
    filled = after[:, 1] != mask
    torch.testing.assert_close(conf_after[filled, 1], -p[1, after[filled, 1]], rtol=1e-5, atol=1e-6, check_dtype=False)
    kept = after[:, 0] != mask
    assert (conf_after[kept, 0] == before[kept, 0]).all()


def test_an_update_that_changes_nothing_gives_its_forward_back_if_time_does_not_matter():
    for levels, back in ((None, True), ([0.5], False)):
        model = Table(levels=levels)
        x = torch.tensor([[0, 1]])
        settings = {"sampler": "mdlm", "spec": spec(model)}
        p_x0, after, _ = remdm.ddpm_caching_update(model, x, torch.tensor([0.5]), 0.1, **settings)
        assert torch.equal(after, x)
        assert (p_x0 is not None) is back


def test_without_remasking_it_is_mdlm_token_for_token():
    model = Table(vocabulary=6, length=4)
    x = torch.full((40, 4), model.mask)
    expected = mdlm.sample(model, 9, x=x, spec=spec(model), seed=5)
    for settings in (
        {"sampler": "mdlm"},
        {"sampler": "remdm-cap", "eta": 0.0},
        {"sampler": "remdm-rescale", "eta": 0.0},
    ):
        assert torch.equal(remdm.sample(model, 9, x=x, spec=spec(model), seed=5, **settings), expected)


@pytest.mark.parametrize("nucleus_p", [1.0, 0.6])
def test_conf_masks_again_what_it_was_least_sure_of_when_it_filled_it(monkeypatch, nucleus_p):
    """Step by step: the limit, shared out by softmax of minus the probability that each token had in its forward."""
    model, steps, worst = Table(vocabulary=4, length=3, seed=9), 6, 0.0
    conf, dt = [[None] * 3 for _ in range(200)], (1 - EPS) / 6

    class Watched(remdm.Walk):
        def step(self, number, t, fill, remask):
            nonlocal worst
            before = self.x.clone()
            limit = min(1.0, (t - dt) / (1 - t)) if number else 1.0
            for row, canvas in enumerate(before.tolist()):
                weight = [0.0 if c is None else math.exp(c) for c in conf[row]]
                expected = [limit * w / (sum(weight) or 1.0) for w in weight]
                worst = max(worst, *(abs(e - float(r)) for e, r in zip(expected, remask[row], strict=True)))
                assert all(c is None for c, token in zip(conf[row], canvas, strict=True) if token == model.mask)
            result = super().step(number, t, fill, remask)
            for row, (old, new) in enumerate(zip(before.tolist(), self.x.tolist(), strict=True)):
                for i in range(3):
                    if new[i] == model.mask:
                        conf[row][i] = None
                    elif old[i] == model.mask:
                        ranked, nucleus = sorted(model.p(old)[i], reverse=True), 0.0
                        for p in ranked:
                            nucleus += p if nucleus < nucleus_p else 0.0
                        conf[row][i] = -model.p(old)[i][new[i]] / nucleus
            return result

    monkeypatch.setattr(remdm, "Walk", Watched)
    x = torch.full((200, 3), model.mask)
    remdm.sample(model, steps, sampler="remdm-conf", nucleus_p=nucleus_p, x=x, spec=spec(model), seed=0)
    assert worst < 1e-5


@pytest.mark.parametrize("sampler", KINDS)
def test_given_tokens_stay(sampler):
    model = Table(vocabulary=5, length=4)
    x = torch.full((200, 4), model.mask)
    x[:, 1] = 2
    got = remdm.sample(model, 12, x=x, sampler=sampler, spec=spec(model), **{**KINDS[sampler]})
    assert (got[:, 1] == 2).all()
    assert (got != model.mask).all()


def test_the_nucleus_keeps_the_smallest_set_that_is_enough():
    model = Table(vocabulary=4, length=1)
    model.table[:] = torch.tensor([0.5, 0.3, 0.2, 1e-9]).log()
    x = torch.full((3000, 1), model.mask)
    for nucleus_p, kept in ((1.0, {0, 1, 2}), (0.6, {0, 1}), (0.4, {0})):
        got = remdm.sample(model, 4, x=x, sampler="remdm-cap", eta=0.2, nucleus_p=nucleus_p, spec=spec(model))
        assert set(got.flatten().tolist()) == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": None}, "sampler is missing"),
        ({"sampler": "remdm"}, "sampler must be one of"),
        ({"sampler": "remdm-cap"}, "eta is missing"),
        ({"sampler": "remdm-cap", "eta": 2.0}, r"eta must be in \[0, 1\]"),
        ({"sampler": "remdm-loop", "eta": 0.1, "t_on": 0.1, "t_off": 0.2}, "t_on, t_off and alpha_on"),
        ({"sampler": "mdlm", "nucleus_p": 0.0}, "nucleus_p"),
    ],
)
def test_bad_arguments(arguments, message):
    model = Table()
    with pytest.raises(InvalidArgumentError, match=message):
        remdm.sample(model, **{"batch_size": 1, "length": 2, "spec": spec(model), **arguments})
    assert model.rows == 0
