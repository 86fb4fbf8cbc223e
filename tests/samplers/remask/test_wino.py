"""WINO: the decision rule in plain Python, what the shadow sees, and what it leaks."""

import math
from types import SimpleNamespace

import pytest
import torch
from fakes import MODULUS, SpikeModel
from plain import log_probs
from test_sampler import ragged_prompts

from dlm_benches.tiny.load import load
from dlm_benches.tiny.model import TinyConfig, TinyDLM
from dlm_kernels import InvalidArgumentError
from dlm_samplers import (
    AncestralUnmask,
    CappedThreshold,
    DreamSampler,
    EntropyBound,
    FixedQuota,
    Guarantee,
    LLaDASampler,
    ModelSpec,
    SchED,
    ShadowVerify,
    Threshold,
)
from dlm_samplers.remask.base import revisable


class Attending(SpikeModel):
    """A table model of one layer: what a query answers depends on the set of (token, position) that its mask lets it see."""

    def __call__(self, tokens, attention_mask=None, position_ids=None):
        self.calls += 1
        rows, width = tokens.shape
        if attention_mask is None:
            attention_mask = torch.ones(rows, 1, width, width, dtype=torch.bool)
        elif attention_mask.ndim == 2:
            attention_mask = (attention_mask > 0)[:, None, None].expand(rows, 1, width, width)
        place = torch.arange(width).expand(rows, -1) if position_ids is None else position_ids
        local = ((tokens * 7919 + 13) * 104729 + (place + 1) * 1299709) % MODULUS
        # Tokens weigh little against places, so that a shadow agrees with a draft now and then.
        seen = (attention_mask[:, 0].long() @ (local % 3)[..., None])[..., 0]
        picked = ((place + 1) * 31 * 7919 + seen * 17 + tokens * 0) % self.table.shape[0]
        return SimpleNamespace(logits=self.table[picked].clone())


def spec_of(model, **changes):
    return ModelSpec.of(model, any_attention=True, position_ids="position_ids", **changes)


def plain_wino(model, prompt, new, tau_1, tau_2, block):
    """(canvas, forwards, tokens taken back) of one row."""
    start, canvas = len(prompt), list(prompt) + [model.mask] * new
    given = [token != model.mask for token in canvas]
    forwards = taken = 0
    while model.mask in canvas:
        first = canvas.index(model.mask)
        low = start + (first - start) // block * block
        high = min(low + block, len(canvas))
        low = max(low, 0)
        while model.mask in canvas[:high]:
            shadow = [i for i in range(low, high) if not given[i]]
            size, wide = len(canvas), len(canvas) + len(shadow)
            mask = torch.zeros(1, 1, wide, wide, dtype=torch.bool)
            for q in range(wide):
                for k in range(wide):
                    if q < size:
                        mask[0, 0, q, k] = k < size
                    else:
                        mask[0, 0, q, k] = k >= size or k != shadow[q - size]
            logits = (
                model(
                    torch.tensor([canvas + [model.mask] * len(shadow)]),
                    mask,
                    torch.tensor([list(range(size)) + shadow]),
                )
                .logits[0]
                .double()
                .tolist()
            )
            forwards += 1
            probs = []
            for row in logits:
                row[model.mask] = -math.inf
                probs.append([math.exp(p) if p > -math.inf else 0.0 for p in log_probs(row)])
            masked = [i for i in range(high) if canvas[i] == model.mask]
            cap = min(max(int(0.7 * len(masked)), 5), 20)
            best = sorted(masked, key=lambda i: (-max(probs[i]), i))
            chosen = [i for i in best if max(probs[i]) > tau_1][:cap] or best[:1]
            doubted = {
                i: probs[size + j][canvas[i]] for j, i in enumerate(shadow) if canvas[i] != model.mask and not given[i]
            }
            wrong = sorted((i for i in doubted if doubted[i] < tau_2), key=lambda i: (doubted[i], i))
            for i in chosen:
                canvas[i] = probs[i].index(max(probs[i]))
            for i in wrong[: len(chosen) - 1]:
                canvas[i] = model.mask
                taken += 1
    return canvas, forwards, taken


@pytest.mark.parametrize("block", [6, 16])
@pytest.mark.parametrize(("tau_1", "tau_2"), [(0.6, 0.9), (0.3, 0.3), (0.2, 1.0)])
def test_drafts_and_takes_back_what_the_plain_rule_does(tau_1, tau_2, block):
    taken = 0
    for seed in range(4):
        model = Attending(seed, height=9.0, eos=3)
        prompts = ragged_prompts(model.vocab, rows=10, seed=seed)
        if seed == 3:  # blanks in the prompt, in blocks with given tokens
            prompts = [torch.where(torch.arange(len(p)) % 2 == 0, model.mask, p) for p in prompts]
        budgets = [(5 * row) % 23 + 1 for row in range(10)]
        sampler = LLaDASampler(model, remask=ShadowVerify(tau_1, tau_2), spec=spec_of(model))
        out = sampler.generate(prompts, max_new_tokens=budgets, block_length=block, batch_size=(None, 4)[seed % 2])
        for row, (prompt, new) in enumerate(zip(prompts, budgets, strict=True)):
            canvas, forwards, back = plain_wino(model, prompt.tolist(), new, tau_1, tau_2, block)
            assert out.sequences[row, : len(canvas)].tolist() == canvas
            assert out.nfe[row] == forwards
            taken += back
    assert taken > 8


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("policy", [None, EntropyBound(0.5), FixedQuota(tokens_per_step=3)], ids=repr)
@pytest.mark.parametrize("block_length", [7, None])
def test_rows_get_in_a_batch_what_they_get_alone(policy, block_length, temperature):
    model = Attending(2, height=9.0, eos=3)
    prompts = ragged_prompts(model.vocab, rows=8)
    prompts[3][:1] = model.mask
    rule = ShadowVerify(0.3, 0.6)
    sampler = LLaDASampler(
        model, policy=policy, remask=rule, stopping=[SchED(tau_high=9.0, tau_low=6.0)], spec=spec_of(model)
    )
    settings = {"temperature": temperature, "block_length": block_length, "seed": 6}
    budgets = [(5 * row) % 17 for row in range(8)]
    batch = sampler.generate(prompts, max_new_tokens=budgets, **settings)
    assert not (batch.sequences == model.mask).any()
    for row in range(8):
        alone = sampler.generate([prompts[row]], max_new_tokens=budgets[row], request_ids=[row], **settings)
        assert torch.equal(alone.sequences[0], batch.sequences[row, : alone.sequences.shape[1]])
        assert alone.nfe[0] == batch.nfe[row]


class Fickle(Attending):
    """Proposes other tokens in every forward, and gives what stands there no probability."""

    def __call__(self, tokens, attention_mask=None, position_ids=None):
        output = super().__call__(tokens, attention_mask, position_ids)
        output.logits[:] = 0.0
        output.logits[:, :, self.calls % 20] = 9.0
        return output


def test_masks_get_fewer_whatever_the_model_says():
    model = Fickle(0)
    sampler = LLaDASampler(model, remask=ShadowVerify(), spec=spec_of(model))
    out = sampler.generate(torch.zeros(2, 1, dtype=torch.long), max_new_tokens=64, block_length=64, return_history=True)
    left = (torch.stack(out.history) == model.mask).sum(-1)
    assert (left[1:] <= left[:-1] - 1).logical_or(left[1:] == 0).all()
    assert left[-1].sum() == 0
    assert (out.nfe > 30).all(), "the adversary costs almost a step a token"


def hidden_words(model, canvas, block, columns, changed):
    """Logits of shadows and of the canvas, before and after the tokens at `columns` become `changed`."""
    rule, tokens = ShadowVerify(), canvas.clone()
    state = SimpleNamespace(
        tokens=tokens,
        width=tokens.shape[1],
        column=torch.arange(tokens.shape[1]),
        block_length=block[1] - block[0],
        block_end=torch.tensor([block[1]]),
        prompt_length=torch.tensor([block[0]]),
        block_start=torch.tensor([block[0]]),
        in_block=(torch.arange(tokens.shape[1]) >= block[0])[None] & (torch.arange(tokens.shape[1]) < block[1]),
        valid=torch.ones_like(tokens, dtype=torch.bool),
        editable=torch.ones_like(tokens, dtype=torch.bool),
        length=torch.tensor([tokens.shape[1]]),
        live=torch.tensor([True]),
        mask_id=model.config.mask_token_id,
    )
    beside = rule.companions(state)
    assert torch.equal(beside.scored, revisable(state)[:, block[0] : block[1]])
    shadows = torch.full_like(beside.column, model.config.mask_token_id)
    places = torch.cat([state.column[None], beside.column], dim=1)

    def logits(canvas):
        with torch.no_grad():
            return model(torch.cat([canvas, shadows], dim=1), beside.attention[:, None], places).logits[0]

    after = canvas.clone()
    after[0, columns] = changed
    return logits(canvas), logits(after)


def tiny(layers, seed=0):
    """A small transformer with random weights in every matrix, so that all it may see matters."""
    torch.manual_seed(seed)
    tokens = {"vocab_size": 17, "mask_token_id": 16, "eos_token_id": 0, "pad_token_id": 1}
    shape = {"learned_positions": 64, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": layers}
    model = TinyDLM(TinyConfig(**tokens, **shape)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_what_the_shadow_sees_of_its_own_token(layers):
    """Nothing in a model of one layer. From the second on, the others have told it."""
    model = tiny(layers)
    canvas = torch.randint(16, (1, 20), generator=torch.Generator().manual_seed(1))
    before, after = hidden_words(model, canvas, (8, 16), 11, 5 if canvas[0, 11] != 5 else 6)
    own, other = 20 + 3, 20 + 4
    assert not torch.equal(before[other], after[other]), "the other shadows see the token"
    if layers == 1:
        assert torch.equal(before[own], after[own])
    else:
        assert (before[own] - after[own]).abs().max() > 1e-3


def test_the_canvas_does_not_see_the_shadow():
    model = tiny(3)
    canvas = torch.randint(16, (1, 20), generator=torch.Generator().manual_seed(2))
    before, _ = hidden_words(model, canvas, (8, 16), 0, 0)
    with torch.no_grad():
        assert torch.allclose(before[:20], model(canvas).logits[0], atol=1e-5)


def test_the_leak_of_the_trained_model_is_as_described():
    """Its four layers confirm a wrong token more often than its prediction without that token would. Counted, not bounded."""
    model = load("reasoning")
    out = LLaDASampler(model, remask=ShadowVerify(), spec=spec_of(model)).generate(
        torch.full((1, 4), 5), max_new_tokens=32, block_length=32
    )
    canvas = out.sequences
    moved = 0
    for column in range(4, 36):
        before, after = hidden_words(model, canvas, (4, 36), column, (canvas[0, column] + 1) % 20)
        own = canvas.shape[1] + column - 4
        moved += int((before[own].softmax(-1) - after[own].softmax(-1)).abs().sum() > 1e-4)
    assert moved > 0, "if this fails the verifier of the bundled model leaks nothing, and the docstring is too severe"


def test_draft_is_capped_and_never_empty():
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        n = int(torch.randint(1, 60, (), generator=generator))
        confidence = torch.randint(1, 17, (1, 64), generator=generator) / 16  # ties, and values equal to tau
        active = torch.zeros(1, 64, dtype=torch.bool)
        active[0, torch.randperm(64, generator=generator)[:n]] = True
        tau = int(torch.randint(1, 17, (), generator=generator)) / 16
        state = SimpleNamespace(active=active, remaining=active.sum(-1), per_request=lambda value: value)
        chosen = CappedThreshold(tau).select(SimpleNamespace(confidence=confidence), state)
        order = sorted(active[0].nonzero()[:, 0].tolist(), key=lambda i: (-float(confidence[0, i]), i))
        cap = min(max(int(torch.tensor(n) * 0.7), 5), 20)
        above = [i for i in order if float(confidence[0, i]) > tau]
        assert sorted(chosen[0].nonzero()[:, 0].tolist()) == sorted(above[:cap] or order[:1])


def test_models_and_compositions_that_cannot_are_refused():
    model = Attending(0)
    rule = ShadowVerify()
    assert rule == ShadowVerify(0.6, 0.9)
    sampler = LLaDASampler(model, remask=rule, spec=spec_of(model))
    assert sampler.policy == CappedThreshold(0.6)
    assert sampler.guarantee is Guarantee.APPROXIMATE
    LLaDASampler(model, policy=Threshold(0.5), remask=rule, spec=spec_of(model))
    with pytest.raises(InvalidArgumentError, match="any attention mask"):
        LLaDASampler(model, remask=rule)
    with pytest.raises(InvalidArgumentError, match="logit_shift = 0"):
        DreamSampler(model, remask=rule, spec=spec_of(model, logit_shift=1))
    for policy in (FixedQuota(), AncestralUnmask()):
        with pytest.raises(InvalidArgumentError, match="leave policy out"):
            LLaDASampler(model, policy=policy, remask=rule, spec=spec_of(model))
    with pytest.raises(InvalidArgumentError, match="cfg_scale must be 0 with ShadowVerify"):
        sampler.generate(torch.zeros(1, 2, dtype=torch.long), cfg_scale=1.0)
    with pytest.raises(InvalidArgumentError, match="any_attention needs position_ids"):
        ModelSpec(mask_id=3, any_attention=True)
    for build in (lambda: ShadowVerify(0.0), lambda: ShadowVerify(0.5, 1.5), lambda: CappedThreshold((0.5, 2.0))):
        with pytest.raises(InvalidArgumentError, match="tau"):
            build()
