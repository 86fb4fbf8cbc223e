"""The fused schedulers against diffusers' own, one call after the other, until the block is done."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install 'dlm-kernels[hf]')")

from diffusers import BlockRefinementScheduler, DiscreteDDIMScheduler, EntropyBoundScheduler
from kernels.frequencies import assert_draws_from
from keyed_originals import KeyedBlockRefinement, KeyedDiscreteDDIM, KeyedEntropyBound, next_keys

from dlm_benches.kernels.timing import torch_peak
from dlm_kernels import InvalidArgumentError, uniform_step_
from dlm_samplers.integrations.diffusers import (
    FusedBlockRefinementScheduler,
    FusedDiscreteDDIMScheduler,
    FusedEntropyBoundScheduler,
    leave_one_out,
)

PAIRS = [
    (BlockRefinementScheduler, FusedBlockRefinementScheduler),
    (EntropyBoundScheduler, FusedEntropyBoundScheduler),
    (DiscreteDDIMScheduler, FusedDiscreteDDIMScheduler),
]
FUSED = [fused for _, fused in PAIRS]
SEEDS = range(100)
LENGTH, VOCABULARY = 12, 67
MASK = VOCABULARY - 1


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def logits_for(tokens, generator, dtype=torch.float32):
    """Rows from flat to peaked; now and then the winner is the token that stands there or the mask token."""
    x = torch.randn(*tokens.shape, VOCABULARY, generator=generator)
    winner = torch.randint(VOCABULARY, tokens.shape, generator=generator)
    winner = torch.where(torch.rand(tokens.shape, generator=generator) < 0.3, tokens, winner)
    height = 12 * torch.rand(*tokens.shape, 1, generator=generator)
    return x.scatter_add_(2, winner[..., None], height).to(dtype)


def near_the_edge(logits, temperature=0.0, top_k=VOCABULARY, top_p=1.0, **_):
    """Whether some nucleus ends within a rounding of top_p, where fp32 sums of other orders keep other tokens."""
    if top_p == 1.0 or temperature == 0:
        return False
    ordered = (logits.double() / temperature).sort(descending=True).values[..., :top_k]
    return bool((ordered.softmax(-1).cumsum(-1) - top_p).abs().min() < 1e-5)


def assert_same(ours, theirs, **tolerance):
    """Tokens and flags equal, probabilities close, the logits those that came or their multiple, to the bit."""
    assert type(ours) is type(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        if name == "sampled_probs":
            torch.testing.assert_close(ours[name], value, **({"rtol": 1e-5, "atol": 1e-9} | tolerance))
        else:
            assert torch.equal(ours[name], value), name


GREEDY = [
    {},
    {"threshold": 0.5},
    {"threshold": 2.0},  # the quota alone
    {"threshold": 0.0},
    {"threshold": -1.0},
    {"editing_threshold": 0.5},
    {"editing_threshold": 0.9, "threshold": 0.7},
    {"editing_threshold": 0.0},
    {"sampling_method": "greedy", "temperature": 1.0, "top_k": 3},
    {"sampling_method": "multinomial", "top_p": 0.5},
]
SAMPLED = [
    {"temperature": 1.0},
    {"temperature": 0.6, "threshold": 0.8, "editing_threshold": 0.5},
    {"temperature": 1.0, "top_k": 5, "threshold": 0.6},
    {"temperature": 0.8, "top_p": 0.9, "editing_threshold": 0.7},
    {"temperature": 1.3, "top_k": 9, "top_p": 0.7, "sampling_method": "multinomial"},
    {"temperature": 1.0, "top_k": 1000, "top_p": 1.0},
]


@pytest.mark.parametrize("mode", ["mask", "uniform"])
@pytest.mark.parametrize("settings", GREEDY + SAMPLED, ids=str)
def test_block_refinement(settings, mode):
    theirs = KeyedBlockRefinement(block_length=LENGTH, threshold=0.9)
    ours = FusedBlockRefinementScheduler.from_config(theirs.config)
    committed = 0
    for seed in SEEDS:
        inputs, rows, steps = seeded(seed), 1 + seed % 4, (2, 3, 5, 13)[seed // 4 % 4]
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(steps, block_length=LENGTH)
        tokens = torch.randint(MASK, (rows, LENGTH), generator=inputs)
        call = dict(settings)
        if mode == "mask":  # a prompt ends within the block; some rows hold tokens beyond it, as after an edit
            prompt = torch.arange(LENGTH) < seed % 7
            known = prompt | (torch.rand(tokens.shape, generator=inputs) < 0.1 * (seed % 3))
            tokens = torch.where(known, tokens, MASK)
            call |= {"mask_token_id": MASK, "prompt_mask": prompt if seed % 2 else None}
        dtype = torch.bfloat16 if settings in GREEDY and seed % 5 == 0 else torch.float32
        draws = seeded(seed), seeded(seed)
        for step in range(steps + 1):  # one after the last: nothing is open, edits only
            logits = logits_for(tokens, inputs, dtype)
            while near_the_edge(logits, **settings):
                logits = logits_for(tokens, inputs, dtype)
            before = tokens.clone()
            at = torch.tensor(step) if seed % 2 else step
            expected = theirs.step(logits, at, tokens, generator=draws[0], **call)
            got = ours.step(logits, at, tokens, generator=draws[1], **call)
            assert_same(got, expected)
            assert torch.equal(tokens, before)  # the caller's is not written
            assert got.pred_logits is logits
            tokens = got.prev_sample
            committed += int(got.transfer_index.sum())
        assert torch.equal(draws[0].get_state(), draws[1].get_state())
    assert committed > 50 * LENGTH  # this compared something


def test_block_refinement_without_set_timesteps_commits_nothing():
    tokens = torch.full((2, LENGTH), MASK)
    logits = logits_for(tokens, seeded(0))
    for scheduler in (BlockRefinementScheduler(), FusedBlockRefinementScheduler()):
        assert torch.equal(scheduler.step(logits, 0, tokens, mask_token_id=MASK).prev_sample, tokens)


def test_equal_confidences_commit_from_the_left():
    ours = FusedBlockRefinementScheduler(block_length=LENGTH)
    ours.set_timesteps(4, block_length=LENGTH)
    logits = torch.zeros(1, LENGTH, VOCABULARY)
    out = ours.step(logits, 0, torch.full((1, LENGTH), MASK), mask_token_id=MASK)
    assert out.transfer_index[0].tolist() == [True] * 3 + [False] * 9
    out = ours.step(logits, 0, torch.zeros(1, LENGTH, dtype=torch.int64))
    assert out.transfer_index[0].tolist() == [True] * 3 + [False] * 9


def test_a_prompt_mask_for_every_row():
    ours = FusedBlockRefinementScheduler(editing_threshold=1e-6)
    tokens = torch.randint(MASK, (2, LENGTH))
    prompt = torch.arange(LENGTH) < torch.tensor([[4], [9]])
    out = ours.step(logits_for(tokens, seeded(0)), 0, tokens, mask_token_id=MASK, prompt_mask=prompt)
    assert torch.equal(out.editing_transfer_index, ~prompt & (out.sampled_tokens != tokens))


@pytest.mark.parametrize(
    "settings", [{}, {"entropy_bound": 0.0}, {"entropy_bound": 2.5}, {"entropy_bound": -1.0}], ids=str
)
@pytest.mark.parametrize("config", [{}, {"t_max": 1.0, "t_min": 1.0}, {"entropy_bound": 0.7, "t_max": 1.4}], ids=str)
def test_entropy_bound(config, settings):
    theirs = KeyedEntropyBound(**config)
    ours = FusedEntropyBoundScheduler.from_config(theirs.config)
    accepted = 0
    for seed in SEEDS:
        inputs, rows, steps = seeded(seed), 1 + seed % 4, (3, 5, 8)[seed % 3]
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(steps)
        assert torch.equal(theirs.timesteps, ours.timesteps)
        tokens = torch.randint(VOCABULARY, (rows, LENGTH), generator=inputs)
        draws = seeded(seed), seeded(seed)
        for step in ours.timesteps:
            logits = logits_for(tokens, inputs)
            expected = theirs.step(logits, step, tokens, generator=draws[0], **settings)
            got = ours.step(logits, step, tokens, generator=draws[1], **settings)
            assert_same(got, expected)
            tokens = got.prev_sample
            accepted += int(got.accepted_index.sum())
        assert torch.equal(draws[0].get_state(), draws[1].get_state())
    assert (accepted == 0) == (settings.get("entropy_bound", 0) < 0)


def test_entropy_bound_in_bf16_has_the_entropies_of_fp32():
    """pred_logits in the model's dtype; everything after it as the original does it for the same numbers in fp32."""
    config = {"t_max": 1.0, "t_min": 1.0, "entropy_bound": 3.0}
    theirs, ours = KeyedEntropyBound(**config), FusedEntropyBoundScheduler(**config)
    for seed in SEEDS:
        tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=seeded(seed))
        logits = logits_for(tokens, seeded(seed), torch.bfloat16)
        got = ours.step(logits, 0, tokens, generator=seeded(seed))
        assert torch.equal(got.pred_logits, logits)
        got.pred_logits = logits.float()
        assert_same(got, theirs.step(logits.float(), 0, tokens, generator=seeded(seed)))


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_discrete_ddim(temperature):
    theirs = KeyedDiscreteDDIM()
    ours = FusedDiscreteDDIMScheduler.from_config(theirs.config)
    changed = 0
    for seed in SEEDS:
        inputs, rows, steps = seeded(seed), 1 + seed % 4, (1, 3, 8)[seed % 3]
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(steps)
        tokens = torch.randint(VOCABULARY, (rows, LENGTH), generator=inputs)
        draws = seeded(seed), seeded(seed)
        for step in ours.timesteps:
            logits = logits_for(tokens, inputs)
            call = {"temperature": temperature}
            expected = theirs.step(logits, step, tokens, generator=draws[0], **call)
            got = ours.step(logits, step, tokens, generator=draws[1], **call)
            assert_same(got, expected)
            changed += int((got.prev_sample != tokens).sum())
            tokens = got.prev_sample
        assert torch.equal(tokens, got.sampled_tokens)  # the last step has no noise
        assert torch.equal(draws[0].get_state(), draws[1].get_state())
    assert changed > 1000


def test_discrete_ddim_is_the_uniform_step():
    ours = FusedDiscreteDDIMScheduler(num_inference_steps=4)
    for seed in SEEDS:
        tokens = torch.randint(VOCABULARY, (3, LENGTH), generator=seeded(seed))
        logits, step = logits_for(tokens, seeded(seed)), seed % 4
        got = ours.step(logits, step, tokens, temperature=0.9, generator=seeded(seed))
        key = int(next_keys(tokens, seeded(seed))[0][0, 0])
        levels = {"alpha_t": step / 4, "alpha_s": (step + 1) / 4}
        uniform_step_(tokens, logits, denoiser="posterior", temperature=0.9, seed=key, **levels)
        assert torch.equal(got.prev_sample, tokens)


@pytest.mark.parametrize("k", [0, 1, 3, 99])
@pytest.mark.parametrize("selection", ["lowest_log_margin", "lowest_maxprob", "lowest_current_prob", "random"])
def test_corrector(selection, k, monkeypatch):
    """All but the draw of the new token, whose probability is compared instead."""
    monkeypatch.setattr(leave_one_out, "ELEMENTS_AT_ONCE", 5 * VOCABULARY)  # several parts, the last one shorter
    config = {"corrector_k": k, "corrector_selection": selection, "corrector_selection_tau": 0.3}
    theirs = KeyedDiscreteDDIM(num_inference_steps=8, **config)
    ours = FusedDiscreteDDIMScheduler.from_config(theirs.config)
    for seed in SEEDS:
        tokens = torch.randint(VOCABULARY, (1 + seed % 4, LENGTH), generator=seeded(seed))
        dtype = (torch.float32, torch.bfloat16)[seed % 2]
        logits, step = logits_for(tokens, seeded(seed), dtype), seed % 7
        got = ours.step_correct(logits, step, tokens, generator=seeded(seed))
        theirs.correct_with([got.sampled_tokens])
        assert_same(got, theirs.step_correct(logits, step, tokens, generator=seeded(seed)), rtol=2e-5)


def test_corrector_where_the_model_is_sure_of_what_stands_there():
    """The others have e^-40 of the mass: a difference of probabilities would be noise."""
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    logits = torch.tensor([[[40.0, 0.0, 1.0, 2.0]]])
    ours, theirs = FusedDiscreteDDIMScheduler(8), KeyedDiscreteDDIM(8)
    for seed in SEEDS:
        got = ours.step_correct(logits, 6, tokens, generator=seeded(seed))
        theirs.correct_with([got.sampled_tokens])
        assert_same(got, theirs.step_correct(logits, 6, tokens, generator=seeded(seed)))


# Draws: one position, many rows with the same logits.
ROWS = 20000
FEW = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5, -4.0])


def few(tokens=0):
    return FEW.expand(ROWS, 1, len(FEW)), torch.full((ROWS, 1), tokens)


def test_draws_of_block_refinement():
    logits, tokens = few()
    ours = FusedBlockRefinementScheduler(block_length=1)
    ours.set_timesteps(2, block_length=1)
    for call, logit in (
        ({"temperature": 0.7}, FEW / 0.7),
        ({"temperature": 1.0, "top_k": 3}, FEW.masked_fill(FEW < 1.0, -torch.inf)),
        ({"temperature": 1.0, "top_p": 0.6}, FEW.masked_fill(FEW < 1.5, -torch.inf)),
    ):
        out = ours.step(logits, 0, tokens, generator=seeded(1), **call)
        p = logit.double().softmax(-1)
        assert_draws_from(p, out.sampled_tokens.flatten())
        torch.testing.assert_close(out.sampled_probs[:, 0], p[out.sampled_tokens[:, 0]].float(), rtol=1e-5, atol=0)
    ours.set_timesteps(2, block_length=2)
    out = ours.step(logits.expand(-1, 2, -1), 0, tokens.expand(-1, 2), threshold=2.0, generator=seeded(1))
    assert_draws_from(torch.full((6,), 1 / 6, dtype=torch.float64), out.prev_sample[~out.transfer_index])


def test_draws_of_entropy_bound():
    logits, tokens = few()
    ours = FusedEntropyBoundScheduler()
    out = ours.step(logits, 16, tokens, generator=seeded(2))
    assert_draws_from((FEW.double() / 0.6).softmax(-1), out.sampled_tokens.flatten())
    assert torch.equal(out.prev_sample, out.sampled_tokens)
    out = ours.step(logits, 16, tokens, entropy_bound=-1.0, generator=seeded(2))
    assert_draws_from(torch.full((6,), 1 / 6, dtype=torch.float64), out.prev_sample.flatten())
    # Token and noise of a position have nothing to do with each other.
    pairs = out.prev_sample * 6 + out.sampled_tokens
    assert_draws_from((FEW.double() / 0.6).softmax(-1).repeat(6) / 6, pairs.flatten())


def test_draws_of_discrete_ddim():
    logits, tokens = few(4)
    out = FusedDiscreteDDIMScheduler(4).step(logits, 1, tokens, temperature=0.8, generator=seeded(3))
    p, eye = (FEW.double() / 0.8).softmax(-1), torch.eye(6, dtype=torch.float64)
    alpha_t, alpha_s = 1 / 4, 2 / 4
    at_s = alpha_s * eye + (1 - alpha_s) / 6  # [x_0, x_s]
    to_t = alpha_t / alpha_s * eye[:, 4] + (1 - alpha_t / alpha_s) / 6  # [x_s]
    posterior = at_s * to_t
    assert_draws_from(p @ (posterior / posterior.sum(-1, keepdim=True)), out.prev_sample.flatten())


@pytest.mark.parametrize("stands", [0, 3])
def test_draws_of_the_corrector(stands):
    logits, tokens = few(stands)
    out = FusedDiscreteDDIMScheduler(4).step_correct(logits, 1, tokens, generator=seeded(4))
    shifted = FEW.double()
    shifted[stands] -= torch.log1p(torch.tensor(6.0, dtype=torch.float64))  # K alpha / (1 - alpha) at alpha = 1/2
    p = 0.5 * shifted.softmax(-1) + 0.5 / 6
    assert_draws_from(p, out.prev_sample.flatten())
    torch.testing.assert_close(out.sampled_probs[:, 0], p[out.sampled_tokens[:, 0]], rtol=1e-5, atol=0)


def calls(scheduler, logits, tokens):
    """Every kind of call that draws."""
    scheduler.set_timesteps(8)
    yield lambda **k: scheduler.step(logits, 0, tokens, **k)
    if isinstance(scheduler, BlockRefinementScheduler):
        masked = torch.where(torch.arange(tokens.shape[1]) % 2 == 0, MASK, tokens)
        yield lambda **k: scheduler.step(logits, 0, masked, mask_token_id=MASK, temperature=0.9, top_p=0.8, **k)
    if isinstance(scheduler, DiscreteDDIMScheduler):
        yield lambda **k: scheduler.step_correct(logits, 0, tokens, **k)


@pytest.mark.parametrize("fused", FUSED)
def test_tokens_do_not_depend_on_the_rows_after_them(fused):
    tokens = torch.randint(VOCABULARY, (5, LENGTH))
    logits = logits_for(tokens, seeded(0))
    scheduler, other = fused(), fused()
    for whole, part in zip(calls(scheduler, logits, tokens), calls(other, logits[:2], tokens[:2]), strict=True):
        assert torch.equal(whole(generator=seeded(7)).prev_sample[:2], part(generator=seeded(7)).prev_sample)
        assert not torch.equal(whole(generator=seeded(8)).prev_sample[:2], part(generator=seeded(7)).prev_sample)


@pytest.mark.parametrize("fused", FUSED)
def test_without_a_generator_torch_s_seed_decides(fused):
    tokens = torch.randint(VOCABULARY, (2, LENGTH))
    for call in calls(fused(), logits_for(tokens, seeded(0)), tokens):
        results = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            results.append(call().prev_sample)
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(("original", "fused"), PAIRS)
def test_one_line_swaps_and_swaps_back(original, fused, tmp_path):
    config = {"num_inference_steps": 7}
    ours = fused.from_config(original(**config).config)
    assert ours.num_inference_steps == 7
    assert {k: v for k, v in ours.config.items() if k[0] != "_"} == {
        k: v for k, v in original(**config).config.items() if k[0] != "_"
    }
    ours.save_config(tmp_path)
    for cls in (original, fused):
        assert cls.from_pretrained(tmp_path).config.num_inference_steps == 7
    assert original.from_config(ours.config).config.num_inference_steps == 7


@pytest.mark.parametrize("fused", FUSED)
def test_plain_tuples(fused):
    tokens = torch.randint(VOCABULARY, (2, LENGTH))
    for call in calls(fused(), logits_for(tokens, seeded(0)), tokens):
        named, plain = (call(generator=seeded(1), return_dict=choice) for choice in (True, False))
        assert isinstance(plain, tuple)
        for a, b in zip(named.to_tuple(), plain, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fused", FUSED)
def test_no_temporaries_of_the_logits_size(fused, dtype, monkeypatch):
    """EntropyBound returns tempered logits, and no more than them is ever held."""
    monkeypatch.setattr(leave_one_out, "ELEMENTS_AT_ONCE", 2**14)
    tokens = torch.randint(32768, (2, 32))
    logits = torch.randn(2, 32, 32768).to(dtype)
    size = logits.numel() * logits.element_size()
    returned = size if fused is FusedEntropyBoundScheduler else 0
    for call in calls(fused(), logits, tokens):
        call()
        assert torch_peak(call, lambda: None) < returned + size / 10


def test_originals_hold_several():
    """That the measure above would see them."""
    tokens, logits = torch.randint(32768, (2, 32)), torch.randn(2, 32, 32768)
    for original, _ in PAIRS:
        for call in calls(original(), logits, tokens):
            assert torch_peak(call, lambda call=call: None) > 0.9 * logits.numel() * 4


BLOCK, BOUND, DDIM = FUSED
T = torch.zeros(1, 4, dtype=torch.int64)
X = torch.zeros(1, 4, 8)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: BLOCK().step(X, 0, T, temperature=-1.0), "temperature"),
        (lambda: BLOCK().step(X, 0, T, temperature=1.0, top_p=0.0), "top_p"),
        (lambda: BLOCK().step(X, 0, T, sampling_method="nucleus"), "sampling_method"),
        (lambda: BLOCK().step(X[:, :3], 0, T, mask_token_id=0), "shape"),
        (lambda: BLOCK().step(X.double(), 0, T), "float64"),
        (lambda: BOUND(t_min=0.0, t_max=0.0).step(X, 0, T), "temperature must be > 0, got 0.0"),
        (lambda: BOUND().step(X, 99, T), "timestep 99 of 32"),
        (lambda: DDIM().step(X, 0, T, temperature=-1.0), "temperature"),
        (lambda: DDIM().step(X, 32, T), r"timestep must be in \[0, 32\), got 32"),
        (lambda: DDIM().step(X, -1, T), "timestep"),
        (lambda: DDIM().step_correct(X, 31, T), r"timestep must be in \[0, 31\), got 31"),
        (lambda: DDIM(corrector_selection="best").step_correct(X, 0, T), "corrector_selection"),
    ],
)
def test_errors(call, says):
    with pytest.raises(InvalidArgumentError, match=says):
        call()
