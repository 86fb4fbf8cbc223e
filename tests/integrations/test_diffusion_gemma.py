"""DiffusionGemma's generate, fused against transformers' own: equal tokens given the draws, and what upstream gets wrong."""

import importlib
import itertools
import sys
from unittest import mock

import pytest
import torch

pytest.importorskip(
    "transformers.models.diffusion_gemma", reason="no transformers >= 5.11 (pip install 'dlm-kernels[hf]')"
)

import transformers
from keyed_gemma import PAD, original, prompts
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    EntropyBoundSamplerConfig,
)

from dlm_benches.integrations.diffusion_gemma import random_model
from dlm_kernels import InvalidArgumentError
from dlm_samplers.integrations.transformers import diffusion_gemma
from dlm_samplers.integrations.transformers.diffusion_gemma import DiffusionGemmaSampler

VOCABULARY, EOS = 67, [1, 5]
FEW = range(4)
MANY = pytest.param(range(4, 100), marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def gemma():
    return random_model(VOCABULARY, 8)


@pytest.fixture(autouse=True)
def canvas_length(gemma):
    """Tests may set another one."""
    yield
    gemma.config.canvas_length = 8


@pytest.fixture
def plain_compile(monkeypatch):
    """What a static cache compiles runs as it is."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def bound(gamma):
    return EntropyBoundSamplerConfig(entropy_bound=gamma)


class Recorder:
    """A streamer that keeps everything."""

    def __init__(self, logits=False):
        self.calls, self._takes_logits = [], logits

    def put(self, value):
        self.calls.append(("put", value.clone()))

    def put_draft(self, value=None, logits=None):
        self.calls.append(("draft", (value if logits is None else logits).clone()))

    def end(self):
        self.calls.append(("end", torch.empty(0)))


def assert_same(got, expected):
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(got.tokens_per_forward, expected.tokens_per_forward, rtol=0, atol=0, equal_nan=True)


# What the rows of a batch do that stop at different times, or never, by these settings.
COLD = {"t_min": 0.02, "t_max": 0.05}
SETTINGS = [
    {},  # the defaults: 48 steps, entropy bound 0.1, temperature 0.8 to 0.4, stability 1, confidence 0.005
    {"max_denoising_steps": 9, "sampler_config": bound(1.5)},
    {"max_denoising_steps": 12, "confidence_threshold": 0.6, "stability_threshold": 0, **COLD},
    {"max_denoising_steps": 12, "confidence_threshold": 0.5, "stability_threshold": 1, **COLD},
    {"max_denoising_steps": 16, "confidence_threshold": 5.0, "stability_threshold": 2, **COLD},
    {"max_denoising_steps": 7, "confidence_threshold": 3.0, "stability_threshold": 1, "sampler_config": bound(1e9)},
    {"max_denoising_steps": 5, "t_min": 0.9, "t_max": 2.5, "sampler_config": bound(20.0)},
    {"max_denoising_steps": 1},
]


def settings_of(number):
    return {"pad_token_id": PAD, "eos_token_id": EOS, **SETTINGS[number]}


@pytest.mark.parametrize("seeds", [FEW, MANY], ids=str)
@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_tokens_of_the_original(gemma, number, seeds):
    """1 to 4 rows, left-padded, one to three canvases of 4, 8 or 13 tokens; rows stop at their own times."""
    for seed in seeds:
        gemma.config.canvas_length = length = (8, 4, 13)[seed % 3]
        call = prompts(seed, 1 + seed % 4, (3, 7, 11)[seed // 3 % 3]) | settings_of(number)
        call["max_new_tokens"] = length * (1 + seed % 3)
        if seed % 4 == 2:  # then rows that ended go on
            call["pad_token_id"] = None
        expected = original(gemma, seed=seed, **call)
        assert_same(DiffusionGemmaSampler(gemma).generate(seed=seed, **call), expected)


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 40), marks=pytest.mark.slow)], ids=str)
def test_every_step_is_the_original_s(gemma, seeds):
    """Drafts, finished canvases and self-conditioning logits, as a streamer is given them."""
    steps = 0
    for seed, number, logits in itertools.product(seeds, range(1, len(SETTINGS)), (False, True)):
        call = prompts(seed, 1 + seed % 3, 5) | settings_of(number) | {"max_new_tokens": 16}
        if seed % 3:  # a batch in which no row ends, since one that did is not denoised further
            call["eos_token_id"] = None
        theirs, ours = Recorder(logits), Recorder(logits)
        original(gemma, seed=seed, streamer=theirs, **call)
        DiffusionGemmaSampler(gemma).generate(seed=seed, streamer=ours, **call)
        assert [name for name, _ in ours.calls] == [name for name, _ in theirs.calls]
        for (_, got), (_, wanted) in zip(ours.calls, theirs.calls, strict=True):
            assert torch.equal(got, wanted)
        steps += sum(name == "draft" for name, _ in ours.calls)
    assert steps > 60 * len(seeds)


def test_the_settings_stop_rows_at_their_own_times(gemma):
    """That the comparisons above meet early stops, frozen rows beside live ones, and rows that ended a canvas before."""
    mixed = ended = 0
    for number, seed in itertools.product((2, 3, 4), range(4)):
        call = prompts(seed, 4, 7) | settings_of(number) | {"max_new_tokens": 24}
        output = DiffusionGemmaSampler(gemma).generate(seed=seed, **call)
        mixed += output.tokens_per_forward.unique().numel() > 1
        ended += bool((output.sequences[:, -8:] == PAD).all(-1).any())
    assert mixed >= 6
    assert ended >= 2


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 60), marks=pytest.mark.slow)], ids=str)
def test_static_cache(gemma, plain_compile, seeds):
    """One sampler for all calls, whose cache serves every batch that fits. The original's is on the model, so it gets none."""
    sampler = DiffusionGemmaSampler(gemma)
    for seed in seeds:
        call = prompts(seed, 1 + seed % 3, 6) | settings_of(seed % len(SETTINGS)) | {"max_new_tokens": 16}
        expected = original(gemma, seed=seed, **call)
        assert_same(sampler.generate(seed=seed, cache_implementation="static", **call), expected)
        expected = original(gemma, seed=seed, cache_implementation="static", disable_compile=True, **call)
        got = sampler.generate(seed=seed, cache_implementation="static", disable_compile=True, **call)
        assert_same(got, expected)
        assert isinstance(got.past_key_values, transformers.StaticCache)
        assert got.past_key_values is not expected.past_key_values
    del gemma._cache


@pytest.mark.slow
def test_static_cache_compiled(gemma):
    """With torch.compile as it is."""
    before = set(vars(gemma)), set(gemma.state_dict())
    call = prompts(0, 2, 6) | settings_of(1) | {"max_new_tokens": 16}
    sampler = DiffusionGemmaSampler(gemma)
    got = sampler.generate(seed=3, cache_implementation="static", **call)
    assert_same(got, original(gemma, seed=3, **call))
    call["sampler_config"] = bound(1e-3)
    assert_same(sampler.generate(seed=3, cache_implementation="static", **call), original(gemma, seed=3, **call))
    assert (set(vars(gemma)), set(gemma.state_dict())) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    model = random_model(VOCABULARY, 8).to(dtype)
    for seed, number in itertools.product(range(2), (1, 3, 6)):
        call = prompts(seed, 3, 5) | settings_of(number) | {"max_new_tokens": 16, "eos_token_id": None}
        theirs, ours = Recorder(logits=True), Recorder(logits=True)
        expected = original(model, seed=seed, streamer=theirs, **call)
        assert_same(DiffusionGemmaSampler(model).generate(seed=seed, streamer=ours, **call), expected)
        for (_, got), (_, wanted) in zip(ours.calls, theirs.calls, strict=True):
            assert got.dtype == wanted.dtype
            assert torch.equal(got, wanted)


@pytest.mark.slow
def test_every_backend(gemma, backend):
    call = prompts(0, 3, 5) | settings_of(3) | {"max_new_tokens": 16, "seed": 1}
    output = DiffusionGemmaSampler(gemma, backend=backend).generate(**call)
    assert_same(output, DiffusionGemmaSampler(gemma, backend="reference").generate(**call))


def test_a_later_turn(gemma):
    """past_key_values of one call in the next, a first canvas, and no dictionary."""
    ids, more = prompts(0, 2, 5, padded=False)["input_ids"], prompts(1, 2, 4, padded=False)["input_ids"]
    canvas = torch.randint(VOCABULARY, (2, 8))
    call = {"max_new_tokens": 8, "max_denoising_steps": 6}
    sequences = []
    for way in (lambda *a, **k: original(gemma, *a, **k), DiffusionGemmaSampler(gemma).generate):
        first = way(ids, seed=4, decoder_input_ids=canvas, **call)
        second = torch.cat([first.sequences[:, -8:], more], 1)  # the last canvas is not in the cache
        plain = way(second, seed=5, past_key_values=first.past_key_values, return_dict_in_generate=False, **call)
        sequences.append((first.sequences, plain))
    for got, expected in zip(*sequences, strict=True):
        assert torch.equal(got, expected)


def test_settings_come_from_where_the_original_takes_them(gemma):
    """Arguments before generation_config before the model's own; max_length with max_new_tokens left alone."""
    own = gemma.generation_config
    call = prompts(2, 2, 6) | {
        "generation_config": DiffusionGemmaGenerationConfig(max_denoising_steps=3, pad_token_id=PAD)
    }
    gemma.generation_config = DiffusionGemmaGenerationConfig(max_denoising_steps=2, t_max=3.0, max_length=20)
    try:
        for extra in ({}, {"max_denoising_steps": 4}, {"max_new_tokens": 3}, {"max_length": 9}):
            steps = extra.get("max_denoising_steps", 3)
            with_steps = call | extra | {"max_denoising_steps": steps}
            expected = original(gemma, seed=0, **with_steps)
            assert_same(DiffusionGemmaSampler(gemma).generate(seed=0, **call, **extra), expected)
    finally:
        gemma.generation_config = own


class Shift(transformers.LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores + torch.arange(scores.shape[-1]) / 30


class AfterOne(transformers.StoppingCriteria):
    def __call__(self, input_ids, scores, **_):
        return torch.ones(len(input_ids), dtype=torch.bool)


def test_processors_and_stopping_criteria(gemma):
    """As the original on its first call; the second changes its caller's lists."""
    call = prompts(3, 2, 6) | settings_of(1) | {"max_new_tokens": 24, "max_length": 100}

    def lists():
        return {
            "logits_processor": LogitsProcessorList([Shift()]),
            "stopping_criteria": StoppingCriteriaList([AfterOne()]),
        }

    expected, given = original(gemma, seed=0, **call, **lists()), lists()
    for _ in range(2):
        assert_same(DiffusionGemmaSampler(gemma).generate(seed=0, **call, **given), expected)
        assert [len(value) for value in given.values()] == [1, 1]
    assert expected.sequences.shape[1] == 6 + 8


# Keys.


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 100), marks=pytest.mark.slow)], ids=str)
def test_tokens_do_not_depend_on_batch_neighbours(gemma, seeds):
    """Every request alone and unpadded as in a padded batch of four: all of them, in fp32."""
    same = total = 0
    for seed in seeds:
        batch = prompts(seed, 4, 7)
        call = settings_of(1 + seed % 6) | {"max_new_tokens": 16, "seed": seed}
        together = DiffusionGemmaSampler(gemma).generate(**batch, **call).sequences[:, 7:]
        for row in range(4):
            ids = batch["input_ids"][row, batch["attention_mask"][row].bool()][None]
            alone = DiffusionGemmaSampler(gemma).generate(ids, request_ids=[row], **call).sequences[:, ids.shape[1] :]
            padded = torch.nn.functional.pad(alone, (0, 16 - alone.shape[1]), value=PAD)[0]
            same += torch.equal(torch.nn.functional.pad(together[row], (0, 16 - together.shape[1]), value=PAD), padded)
            total += 1
    assert same == total


def test_seeds(gemma):
    sampler, ids = DiffusionGemmaSampler(gemma), prompts(0, 3, 5, padded=False)["input_ids"]
    ids[1] = ids[0]

    def run(**keys):
        return sampler.generate(ids, max_new_tokens=8, max_denoising_steps=4, **keys).sequences

    assert torch.equal(run(seed=7), run(seed=7))
    assert not torch.equal(run(seed=7), run(seed=8))
    assert torch.equal(run(seed=7), run(seed=[7, 7, 7], request_ids=[0, 1, 2]))
    alike = run(seed=[9, 9, 9])
    assert torch.equal(alike[0], alike[1])
    assert not torch.equal(run(seed=9)[0], run(seed=9)[1])
    draws = [run(generator=torch.Generator().manual_seed(n)) for n in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.manual_seed(5)
    first, second = run(), run()
    torch.manual_seed(5)
    assert torch.equal(run(), first)
    assert not torch.equal(first, second)


def test_a_function_for_one_call(gemma):
    call = prompts(0, 2, 5) | {"seed": 3, "max_denoising_steps": 3, "max_new_tokens": 8}
    assert torch.equal(
        diffusion_gemma.generate(model=gemma, **call).sequences, DiffusionGemmaSampler(gemma).generate(**call).sequences
    )


# What upstream gets wrong.


def test_settings_of_the_second_call_count(gemma, plain_compile):
    """The original compiles its first sampler's methods and keeps them: a later entropy bound changes nothing, silently."""
    call = prompts(0, 2, 5) | {"max_new_tokens": 8, "max_denoising_steps": 6, "cache_implementation": "static"}
    sampler = DiffusionGemmaSampler(gemma)
    for gamma in (0.1, 50.0, 3.0):
        got = sampler.generate(seed=1, sampler_config=bound(gamma), **call).sequences
        dynamic = call | {"cache_implementation": None}
        assert torch.equal(got, original(gemma, seed=1, sampler_config=bound(gamma), **dynamic).sequences)
    fresh = random_model(VOCABULARY, 8)
    stale = [original(fresh, seed=1, sampler_config=bound(gamma), **call).sequences for gamma in (0.1, 50.0)]
    assert torch.equal(*stale)
    assert not torch.equal(stale[1], sampler.generate(seed=1, sampler_config=bound(50.0), **call).sequences)


def everything(model):
    """Attributes of all modules, by identity; parameters, by version."""
    attributes = {
        (name, key): id(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key not in ("_parameters", "_buffers", "_modules")
    }
    return attributes, {n: (id(p), p._version) for n, p in model.state_dict(keep_vars=True).items()}


class Breaks:
    def put(self, value):
        raise RuntimeError("streamer broke")


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_the_model_stays_as_it_is(cache, plain_compile):
    """Also when a call fails; the original leaves a cache, functions and a copy of the encoder in its state_dict."""
    model = random_model(VOCABULARY, 8)
    config, settings = model.config.to_dict(), model.generation_config.to_dict()
    before, sampler = everything(model), DiffusionGemmaSampler(model)
    call = prompts(0, 2, 5) | {"max_new_tokens": 16, "max_denoising_steps": 3, "cache_implementation": cache}
    sampler.generate(**call)
    with pytest.raises(RuntimeError, match="streamer broke"):
        sampler.generate(streamer=Breaks(), **call)
    with mock.patch.object(type(model), "forward", side_effect=MemoryError), pytest.raises(MemoryError):
        DiffusionGemmaSampler(model).generate(**call)
    assert everything(model) == before
    assert (model.config.to_dict(), model.generation_config.to_dict()) == (config, settings)
    model.generate(**call)
    left = set(vars(model)) | set(model._modules)
    assert ({"_cache", "_compiled_encoder", "_compiled_decoder_forward"} <= left) == (cache == "static")
    assert (len(model.state_dict()) > len(before[1])) == (cache == "static")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("temperature", 9.0, "t_max to t_min"),
        ("entropy_bound", 50.0, "sampler_config=EntropyBoundSamplerConfig"),
        ("custom_generate", lambda *_, **__: 1 / 0, "neither a setting"),
        ("max_new_token", 3, "max_new_tokens"),
    ],
)
def test_unknown_arguments(gemma, name, value, says):
    """The original takes them and does nothing with them."""
    ids = prompts(0, 1, 4)["input_ids"]
    call = {"max_new_tokens": 8, "max_denoising_steps": 2, "seed": 0}
    assert torch.equal(original(gemma, ids, **call, **{name: value})[0], original(gemma, ids, **call)[0])
    with pytest.raises(InvalidArgumentError, match=says):
        DiffusionGemmaSampler(gemma).generate(ids, **call, **{name: value})


def test_the_original_adds_to_its_caller_s_lists(gemma):
    """So that a second call with the same list divides by the temperature twice."""
    ids, given = prompts(0, 1, 4)["input_ids"], LogitsProcessorList([Shift()])
    call = {"max_new_tokens": 8, "max_denoising_steps": 6, "logits_processor": given, "seed": 1}
    first, second = (original(gemma, ids, **call).sequences for _ in range(2))
    assert len(given) == 3
    assert not torch.equal(first, second)


def test_rows_that_ended_are_not_waited_for(gemma):
    """The original denoises their padding to the last step, and with it the whole batch."""
    saved = 0
    for seed in range(6):
        call = prompts(seed, 2, 6) | settings_of(3) | {"max_new_tokens": 48, "max_denoising_steps": 24}
        call["eos_token_id"] = [1, 5, 17, 61]
        forwards = []
        for way in (original, lambda model, **k: DiffusionGemmaSampler(model).generate(**k)):
            with mock.patch.object(gemma, "forward", side_effect=gemma.forward) as counted:
                output = way(gemma, seed=seed, **call)
            forwards.append((counted.call_count, output))
        (theirs, expected), (ours, got) = forwards
        assert_same(got, expected)
        saved += theirs - ours
        assert ours <= theirs
    assert saved > 0


# Errors.


def test_errors(gemma):
    sampler, ids = DiffusionGemmaSampler(gemma), prompts(0, 2, 4)["input_ids"]
    right = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    for call, says in (
        ({"attention_mask": right}, "left"),
        ({"input_ids": ids.float()}, "input_ids"),
        ({"seed": [1]}, "seed"),
        ({"request_ids": [0, -1]}, "request_ids"),
    ):
        with pytest.raises(InvalidArgumentError, match=says):
            sampler.generate(**{"input_ids": ids} | call)
    with pytest.raises(ValueError, match="max_new_tokens"):
        sampler.generate(ids, max_new_tokens=-1)
    with pytest.raises(InvalidArgumentError, match="DiffusionGemmaForBlockDiffusion, got Linear"):
        DiffusionGemmaSampler(torch.nn.Linear(1, 1))
    with pytest.raises(InvalidArgumentError, match="backend"):
        DiffusionGemmaSampler(gemma, backend="none")
    sampler.generate(ids, attention_mask=None, max_new_tokens=8, max_denoising_steps=1)


def test_nan_logits_name_the_row(gemma):
    def broken(*args, **kwargs):
        output = type(gemma).forward(gemma, *args, **kwargs)
        output.logits[1, 2, 3] = torch.nan
        return output

    with mock.patch.object(gemma, "forward", broken), pytest.raises(InvalidArgumentError, match="NaN logits for row 1"):
        DiffusionGemmaSampler(gemma).generate(prompts(0, 3, 4)["input_ids"], max_new_tokens=8)


def test_transformers_that_generates_in_another_way(gemma, monkeypatch):
    monkeypatch.setattr(diffusion_gemma, "HOOKS", ("_denoising_step", "_gone"))
    with pytest.raises(InvalidArgumentError, match="has no _gone"):
        DiffusionGemmaSampler(gemma)


def test_transformers_without_diffusion_gemma():
    """The import fails as it does before 5.11."""
    name, needs = diffusion_gemma.__name__, "transformers.models.diffusion_gemma.generation_diffusion_gemma"
    with mock.patch.dict(sys.modules, {needs: None}):
        del sys.modules[name]
        with pytest.raises(ImportError, match=f"transformers 5.11, this is {transformers.__version__}"):
            importlib.import_module(name)
