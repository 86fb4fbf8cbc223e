"""MDLM's swap against the published formulas, enumerated in plain Python."""

from types import SimpleNamespace

import pytest
import torch
from laws import FALSE_ALARM, Table, fits, over_canvases, walk

from dlm_kernels import InvalidArgumentError
from dlm_samplers import ModelSpec
from dlm_samplers.compat import mdlm

ROWS, EPS = 20_000, 1e-5


def grid(steps):
    dt = (1 - EPS) / steps
    return [(1 - i * dt, dt) for i in range(steps)]


def spec(model, **more):
    told = {"attention_mask": "none", "time_argument": "sigma", "sees_time": model.levels is not None}
    return ModelSpec(mask_id=model.mask, vocab_size=model.vocabulary, **told, **more)


def published_law(model, start, steps, predictor, noise_removal):
    """_ddpm_caching_update, _ddpm_update or _analytic_update, and the last forward, of `Diffusion`."""
    mask = model.mask
    scale = 1.0 if predictor == "ddpm_cache" else 1 - 1e-3

    def weights(canvas, _, step):
        t, dt = grid(steps)[step]
        move_t, move_s = scale * t, scale * (t - dt)
        q = [[p * (move_t - move_s) for p in row] for row in model.p(canvas, step)]
        for i, token in enumerate(canvas):
            q[i][mask] = move_s
            if token != mask:
                q[i] = [float(v == token) for v in range(model.vocabulary)]
        return q

    def last(canvas, *_):
        p = model.p(canvas, steps)
        return p if predictor == "analytic" else [[float(w == max(row)) for w in row] for row in p]

    law = walk({(tuple(start), None): 1.0}, weights, steps=range(steps))
    return over_canvases(walk(law, last, steps=range(1)) if noise_removal else law)


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("predictor", mdlm.PREDICTORS)
@pytest.mark.parametrize("noise_removal", [True, False])
def test_the_law_is_the_published_one(timed, predictor, noise_removal):
    steps = 2
    levels = [*(t for t, _ in grid(steps)), EPS] if timed else None
    model = Table(levels=levels, seed=4)
    settings = {"noise_removal": noise_removal, "predictor": predictor, "spec": spec(model), "seed": 1}
    for start in ([model.mask] * 2, [1, model.mask]):
        x = torch.tensor([start]).expand(ROWS, -1)
        got = mdlm.sample(model, steps, x=x, **settings)
        law = published_law(model, start, steps, predictor, noise_removal)
        assert fits(got, law, model.vocabulary) > FALSE_ALARM
    other = published_law(Table(levels=levels, seed=5), start, steps, predictor, noise_removal)
    assert fits(got, other, model.vocabulary) < FALSE_ALARM  # the test would notice
    if timed:
        with pytest.raises(AssertionError):
            mdlm.sample(model, steps + 1, x=x, **settings)  # levels that it was not made for


@pytest.mark.parametrize("predictor", mdlm.PREDICTORS)
def test_at_the_end_of_the_grid_the_share_of_masks_is_its_last_level(predictor):
    model, x = Table(), torch.full((ROWS, 2), 3)
    settings = {"eps": 0.2, "predictor": predictor, "noise_removal": False, "spec": spec(model), "seed": 1}
    for steps in (1, 5):
        left = (mdlm.sample(model, steps, x=x, **settings) == model.mask).double().mean()
        assert abs(left - 0.2) < 5 * (0.2 * 0.8 / x.numel()) ** 0.5


@pytest.mark.parametrize("noise_removal", [True, False])
def test_the_last_forward_takes_the_likeliest_token(noise_removal):
    model = Table(vocabulary=6, length=4, seed=2)
    x = torch.full((300, 4), model.mask)
    got = mdlm.sample(model, 1, eps=0.9, x=x, noise_removal=False, spec=spec(model), seed=7)
    whole = mdlm.sample(model, 1, eps=0.9, x=x, noise_removal=True, spec=spec(model), seed=7)
    left = got == model.mask
    assert 0.8 < left.double().mean() < 0.97
    best = torch.tensor([[max(range(6), key=row.__getitem__) for row in model.p(c)] for c in got.tolist()])
    assert torch.equal(whole, torch.where(left, best, got))


def test_a_sharp_network_gives_its_text_token_for_token():
    model = Table(vocabulary=7, length=3, seed=3)
    text = torch.tensor([4, 1, 5])
    model.table[:] = -1e4
    model.table[0, :, torch.arange(3), text] = 1e4
    for predictor in mdlm.PREDICTORS:
        got = mdlm.sample(model, 8, batch_size=5, length=3, predictor=predictor, spec=spec(model))
        assert torch.equal(got, text.expand(5, -1))


def test_a_step_without_a_flip_costs_a_row_nothing():
    for levels in (None, [1 - i * (1 - EPS) / 64 for i in range(65)]):
        model = Table(length=2, levels=levels)
        mdlm.sample(model, 64, x=torch.full((50, 2), model.mask), spec=spec(model), seed=0)
        assert model.rows <= 2 * 50 + 2  # and not 65 * 50


def test_a_row_does_not_depend_on_the_batch_nor_on_where_the_seed_comes_from():
    model = Table(vocabulary=5, length=3)
    x = torch.full((6, 3), model.mask)
    settings = {"spec": spec(model), "num_steps": 5}
    whole = mdlm.sample(model, x=x, seed=9, **settings)
    assert torch.equal(mdlm.sample(model, x=x[:2], seed=9, **settings), whole[:2])
    torch.manual_seed(0)
    first, second = (mdlm.sample(model, x=x.repeat(20, 1), **settings) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(mdlm.sample(model, x=x.repeat(20, 1), **settings), first)
    assert (x == model.mask).all()


@pytest.mark.parametrize("timed", [False, True])
def test_the_update_has_the_published_law_and_keeps_what_it_computed(timed):
    t, dt = grid(4)[1]
    model = Table(levels=[t] if timed else None, seed=8)
    mask = model.mask
    for canvas in ([mask, mask], [2, mask], [2, 0]):
        x = torch.tensor([canvas]).expand(ROWS, -1)
        times = torch.full((ROWS, 1), t)
        model.rows = 0
        p_x0, after = mdlm.ddpm_caching_update(model, x, times, dt, spec=spec(model), seed=2)
        assert model.rows == ROWS
        assert p_x0.shape == (ROWS, 2, model.vocabulary)
        torch.testing.assert_close(p_x0[0], torch.tensor(model.p(canvas)), rtol=1e-5, atol=1e-6)

        def weights(canvas, _, step):
            q = [[p * dt for p in row] for row in model.p(canvas)]
            for i, token in enumerate(canvas):
                q[i][mask] = t - dt
                if token != mask:
                    q[i] = [float(v == token) for v in range(model.vocabulary)]
            return q

        law = over_canvases(walk({(tuple(canvas), None): 1.0}, weights, steps=range(1)))
        assert fits(after, law, model.vocabulary) > FALSE_ALARM
        kept, again = mdlm.ddpm_caching_update(model, x, times, dt, p_x0=p_x0, spec=spec(model), seed=2)
        assert model.rows == ROWS
        assert kept is p_x0
        assert torch.equal(again, after)


class Diffusion(torch.nn.Module):
    """The training module's attributes and configuration."""

    parameterization, mask_index, vocab_size, time_conditioning, backbone = "subs", 4, 5, False, None

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(
            loader=SimpleNamespace(eval_batch_size=3),
            model=SimpleNamespace(length=6),
            sampling={"steps": 7, "predictor": "ddpm", "noise_removal": False},
        )
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.told = []

    def forward(self, x, sigma):
        self.told.append(sigma)
        log_p = torch.full((*x.shape, 5), -1e6)
        clean = torch.zeros(*x.shape, 5).log_softmax(-1)
        return torch.where((x == 4)[:, :, None], clean, log_p.scatter(-1, x[:, :, None], 0.0))


def test_the_training_module_brings_its_settings():
    model = Diffusion()
    got = mdlm.sample(model, seed=0)
    assert got.shape == (3, 6)
    assert all((sigma == 0).all() for sigma in model.told)
    model.config.sampling["noise_removal"] = True
    assert torch.equal(mdlm.sample(model, seed=0)[got != 4], got[got != 4])
    assert (mdlm.sample(model) != 4).all()
    assert mdlm.sample(model, 3, batch_size=2, length=4).shape == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps must be an int >= 1"),
        ({"eps": 1.0}, r"eps must be in \(0, 1\)"),
        ({"predictor": "euler"}, "predictor must be one of"),
        ({"mask_index": 3}, "belongs inside spec"),
        ({"length": None}, r"length is missing, and the model has no config.model\.length"),
        ({"x": torch.zeros(2, 2, dtype=torch.int64)}, "those of x"),
        ({"x": torch.zeros(2, 2), "batch_size": None, "length": None}, "x must be int64"),
        ({"spec": ModelSpec(3, block_length=2)}, "whole canvas at once"),
    ],
)
def test_bad_arguments(arguments, message):
    model = Table()
    with pytest.raises(InvalidArgumentError, match=message):
        mdlm.sample(model, **{"batch_size": 1, "length": 2, "spec": spec(model), **arguments})
    assert model.rows == 0
