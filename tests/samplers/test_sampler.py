"""Properties of the loop: independence of the batch, padding, infilling, stopping, output, hooks."""

from contextlib import contextmanager

import pytest
import torch
from fakes import SpikeModel, TableModel

from dlm_samplers import (
    AdaBlock,
    AncestralUnmask,
    CappedThreshold,
    Credit,
    Dilated,
    DreamSampler,
    EndOfText,
    EntropyBound,
    EventDriven,
    ExploreOne,
    Factor,
    FixedQuota,
    FrozenConfidence,
    GenerationInterrupted,
    Guarantee,
    Hierarchical,
    KLStable,
    LLaDASampler,
    LocalLeap,
    LowConfidenceDynamic,
    Margin,
    ModelSpec,
    PCSampler,
    Saber,
    SlowFast,
    Spaced,
    Threshold,
    background_frequencies,
)

FREQUENCIES = background_frequencies([range(23), [1, 2, 3] * 20], vocabulary=23)
POLICIES = [
    AdaBlock((5, 6, 7, 8), tau_d=0.1, inner=Threshold(0.6)),
    AdaBlock((5, 6, 7, 8), tau_d=0.1, inner=FixedQuota("margin", tokens_per_step=2)),
    FixedQuota(),
    FixedQuota("margin", tokens_per_step=3),
    FixedQuota("entropy", tokens_per_step=2),
    FixedQuota("random", tokens_per_step=2),
    FixedQuota("confidence", tokens_per_step=2, order_temperature=0.5),
    AncestralUnmask(),
    Credit(0.6),
    Dilated(),
    CappedThreshold(0.5),
    FrozenConfidence(3),
    Factor(1.0, upstream_quirk=True),
    EntropyBound(0.5),
    EntropyBound(0.5, statistics="sampling"),
    EventDriven(6),
    EventDriven(),
    Factor(1.0),
    Hierarchical(0.7, 0.3),
    KLStable(0.4, 2.0, history=1),
    LocalLeap(0.6, 0.3, radius=2),
    LowConfidenceDynamic(0.6, denoising_steps=3),
    Margin(0.5),
    SlowFast(most_slow=3, tau_high=0.5),
    Spaced(Threshold(0.3), distance=3),
    Threshold(0.6),
    ExploreOne(Threshold(0.6)),
    ExploreOne(AdaBlock((5, 6, 7, 8), tau_d=0.1)),
    ExploreOne(FixedQuota("margin")),
    PCSampler(FREQUENCIES),
    PCSampler(FREQUENCIES, inner=FixedQuota(tokens_per_step=2)),
    Saber(),
]
SAMPLERS = [LLaDASampler, DreamSampler]


def ragged_prompts(vocab, rows=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (rows,), generator=generator).tolist()
    return [torch.randint(vocab - 1, (n,), generator=generator) for n in lengths]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("sampler_class", SAMPLERS)
def test_tokens_do_not_depend_on_batch_neighbours(sampler_class, policy, temperature, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = SpikeModel(11, eos=3)
        prompts = ragged_prompts(model.vocab)
        budgets = [(5 * row) % 17 for row in range(16)]
        sampler = sampler_class(model, policy=policy, stopping=[EndOfText()])
        settings = {"temperature": temperature, "top_p": 0.95, "block_length": 8, "seed": 42}
        batch = sampler.generate(prompts, max_new_tokens=budgets, **settings)
        assert batch.finished.all()
        for row in (0, 3, 7, 15):
            alone = sampler.generate([prompts[row]], max_new_tokens=budgets[row], request_ids=[row], **settings)
            width = alone.sequences.shape[1]
            assert torch.equal(alone.sequences[0], batch.sequences[row, :width])
            assert alone.nfe[0] == batch.nfe[row]
            assert torch.equal(alone.completions[0], batch.completions[row])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_large_vocabulary_gives_the_same_tokens_on_any_number_of_threads(temperature):
    """Large enough that rows go to several threads, and that a row alone is split over them."""
    model = SpikeModel(3, vocab=40000, rows=61)
    prompts = ragged_prompts(model.vocab)
    sampler = LLaDASampler(model, policy=Threshold(0.3))
    settings = {"max_new_tokens": 3, "temperature": temperature, "seed": 8}
    before, outputs = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            batch = sampler.generate(prompts, **settings).completions
            alone = [sampler.generate([p], request_ids=[r], **settings).completions[0] for r, p in enumerate(prompts)]
            outputs += [batch, alone]
    finally:
        torch.set_num_threads(before)
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs[0], other, strict=True))


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("sampler_class", SAMPLERS)
def test_padding_on_either_side_changes_nothing(sampler_class, policy):
    model = SpikeModel(4)
    prompts = ragged_prompts(model.vocab, rows=5)
    sampler = sampler_class(model, policy=policy)
    settings = {"max_new_tokens": 12, "block_length": 4, "temperature": 0.7, "seed": 9}
    plain = sampler.generate(prompts, **settings)
    width = max(map(len, prompts)) + 2
    for side in ("left", "right"):
        ids, mask = torch.full((5, width), 7), torch.zeros(5, width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            columns = slice(width - len(prompt), None) if side == "left" else slice(0, len(prompt))
            ids[row, columns], mask[row, columns] = prompt, 1
        padded = sampler.generate(ids, attention_mask=mask, **settings)
        for row, prompt in enumerate(prompts):
            text = plain.sequences[row, : len(prompt) + 12]
            got = padded.sequences[row]
            assert torch.equal(got[-len(text) :] if side == "left" else got[: len(text)], text)
            rest = got[: -len(text)] if side == "left" else got[len(text) :]
            assert (rest == 7).all()


def test_different_seeds_and_requests_give_different_text():
    model = TableModel(1, vocab=50)
    sampler = LLaDASampler(model)
    prompt = torch.zeros(4, 2, dtype=torch.long)
    settings = {"max_new_tokens": 16, "temperature": 1.0}
    out = sampler.generate(prompt, seed=1, **settings).sequences
    assert len({tuple(row.tolist()) for row in out}) == 4
    same = sampler.generate(prompt, seed=[5, 5, 6, 5], **settings).sequences
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], same[3])
    assert not torch.equal(same[0], same[2])
    by_generator = [sampler.generate(prompt, generator=torch.Generator().manual_seed(s), **settings) for s in (0, 0, 1)]
    assert torch.equal(by_generator[0].sequences, by_generator[1].sequences)
    assert not torch.equal(by_generator[0].sequences, by_generator[2].sequences)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_infilling_fills_the_blanks_and_nothing_else(policy):
    model = SpikeModel(8)
    generator = torch.Generator().manual_seed(2)
    prompt = torch.randint(model.vocab, (6, 20), generator=generator)  # mask tokens among the given ones
    blanks = torch.rand(6, 20, generator=generator) < torch.linspace(0, 1, 6)[:, None]
    out = LLaDASampler(model, policy=policy).generate(prompt, editable=blanks, max_new_tokens=0, block_length=6)
    assert out.sequences.shape == prompt.shape
    assert torch.equal(out.sequences[~blanks], prompt[~blanks])
    assert (out.sequences[blanks] != model.mask).all()
    assert out.nfe[0] == 0
    assert torch.equal(out.generated, blanks.sum(-1))


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_model_that_prefers_the_mask_token_still_ends(policy):
    model = TableModel(2)
    model.table[:, model.mask] = 100.0
    out = LLaDASampler(model, policy=policy).generate(
        torch.zeros(2, 3, dtype=torch.long), max_new_tokens=24, block_length=8
    )
    assert (out.sequences != model.mask).all()


def test_end_of_text_stop_returns_the_same_text_for_fewer_forwards():
    model = SpikeModel(6, eos=3)
    model.table[:, 3] += 3.0
    prompts = ragged_prompts(model.vocab, rows=12)
    full = LLaDASampler(model).generate(prompts, max_new_tokens=32, block_length=4)
    stopped = LLaDASampler(model, stopping=[EndOfText()]).generate(prompts, max_new_tokens=32, block_length=4)
    for a, b in zip(full.completions, stopped.completions, strict=True):
        assert torch.equal(a, b)
    assert stopped.nfe.sum() < full.nfe.sum()
    assert torch.equal(full.generated, stopped.generated)
    assert (stopped.sequences != model.mask).all()


def test_counts_of_forwards_and_tokens():
    model = TableModel(2)
    out = LLaDASampler(model, policy=FixedQuota(tokens_per_step=4)).generate(
        [torch.tensor([1, 2]), torch.tensor([3])], max_new_tokens=[16, 6], block_length=8
    )
    assert out.nfe.tolist() == [4, 2]
    assert out.generated.tolist() == [16, 6]
    assert out.tokens_per_forward.tolist() == [4.0, 3.0]
    assert model.calls == 4
    assert model.rows_seen == 4 + 2, "a finished row leaves the batch"
    guided = LLaDASampler(model).generate(torch.zeros(1, 2, dtype=torch.long), max_new_tokens=4, cfg_scale=1.0)
    assert guided.nfe.tolist() == [8]


def test_nothing_to_do_returns_at_once():
    model = TableModel(2)
    sampler = LLaDASampler(model)
    prompt = torch.tensor([[1, 2, 3]])
    out = sampler.generate(prompt, max_new_tokens=0)
    assert torch.equal(out.sequences, prompt)
    assert sampler.generate(torch.zeros(0, 5, dtype=torch.long)).sequences.shape[0] == 0
    assert sampler.generate([]).sequences.shape[0] == 0
    assert model.calls == 0


def test_history_and_callback_see_every_step():
    model = TableModel(2)
    seen = []
    out = LLaDASampler(model).generate(
        torch.zeros(2, 1, dtype=torch.long),
        max_new_tokens=6,
        return_history=True,
        callback_on_step_end=lambda sampler, step, state: seen.append((step, int((state.tokens == model.mask).sum()))),
    )
    assert seen == [(i, 2 * (5 - i)) for i in range(6)]
    assert len(out.history) == 7
    assert torch.equal(out.history[-1], out.sequences)
    for before, after in zip(out.history, out.history[1:], strict=False):
        changed = before != after
        assert (before[changed] == model.mask).all()
        assert changed.sum(-1).tolist() == [1, 1]


def test_logits_processor_sees_aligned_logits():
    """A processor that forbids every token but one at one position is obeyed there, shifted model or not."""
    model = TableModel(2)

    def only_five_at_column_four(tokens, logits):
        logits = logits.clone()
        logits[:, 4] = -torch.inf
        logits[:, 4, 5] = 0.0
        return logits

    for sampler_class in SAMPLERS:
        out = sampler_class(model).generate(
            torch.zeros(2, 2, dtype=torch.long), max_new_tokens=6, logits_processor=only_five_at_column_four
        )
        assert (out.sequences[:, 4] == 5).all()


class Recorder:
    def __init__(self):
        self.pieces, self.drafts, self.ended = [], 0, False

    def put(self, value):
        self.pieces.append(value)

    def put_draft(self, value):
        self.drafts += 1

    def end(self):
        self.ended = True


def test_streamer_receives_the_final_text_in_order():
    model = SpikeModel(2, eos=3)
    for policy in POLICIES:
        recorder = Recorder()
        out = LLaDASampler(model, policy=policy).generate(
            torch.zeros(1, 3, dtype=torch.long), max_new_tokens=16, block_length=4, streamer=recorder
        )
        assert torch.equal(torch.cat(recorder.pieces, dim=1), out.sequences)
        assert recorder.drafts >= out.nfe[0]  # a step may need no forward
        assert policy.foresees or recorder.drafts == out.nfe[0]
        assert recorder.ended


def test_progress_counts_committed_tokens(monkeypatch):
    seen = []

    @contextmanager
    def bar(total):
        seen.append(total)
        yield lambda tokens: seen.append(tokens)

    settings = {"max_new_tokens": [4, 7], "progress": True}
    prompts = torch.zeros(2, 2, dtype=torch.long)
    assert LLaDASampler(TableModel(2)).generate(prompts, **settings).finished.all(), "with the real bar"
    monkeypatch.setattr("dlm_samplers.sampler.progress_bar", bar)
    LLaDASampler(TableModel(2)).generate(prompts, **settings)
    assert seen[0] == 11
    assert seen[1:] == sorted(seen[1:])
    assert seen[-1] == 11


def test_interrupt_keeps_finished_rows():
    model = TableModel(2)
    calls = []

    def interrupt(sampler, step, state):
        calls.append(step)
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(GenerationInterrupted) as caught:
        LLaDASampler(model).generate(
            torch.zeros(2, 2, dtype=torch.long), max_new_tokens=[2, 10], callback_on_step_end=interrupt
        )
    output = caught.value.output
    assert output.finished.tolist() == [True, False]
    assert (output.sequences[0, :4] != model.mask).all()


def test_guarantee_is_the_weakest_of_the_parts():
    model = TableModel(2, eos=3)
    assert LLaDASampler(model).guarantee is Guarantee.PATH_EXACT
    assert LLaDASampler(model, stopping=[EndOfText()]).guarantee is Guarantee.TEXT_EXACT
    assert LLaDASampler(model, policy=Factor(1.0)).guarantee is Guarantee.BOUNDED
    assert LLaDASampler(model, policy=Threshold(0.9), stopping=[EndOfText()]).guarantee is Guarantee.APPROXIMATE
    assert LLaDASampler(model, policy=AncestralUnmask()).guarantee is Guarantee.EXACT


def test_ancestral_unmask_follows_its_schedule():
    """Chi-square of the step at which a position commits, uniform over the grid; false alarm rate 1e-6."""
    from scipy.stats import chisquare

    model = TableModel(2)
    steps, rows, width = 8, 300, 16
    out = LLaDASampler(model, policy=AncestralUnmask()).generate(
        torch.zeros(rows, 1, dtype=torch.long),
        max_new_tokens=width,
        block_length=None,
        steps=steps,
        return_history=True,
    )
    canvases = torch.stack(out.history)[:, :, 1:]
    when = (canvases == model.mask).sum(0).flatten() - 1
    t = torch.linspace(1, 1e-3, steps + 1).double()
    share = 1 - t[1:] / t[:-1]
    share[-1] = 1
    expected = share * torch.cat([torch.ones(1).double(), (1 - share).cumprod(0)[:-1]])
    counts = torch.bincount(when, minlength=steps)
    assert chisquare(counts.numpy(), (expected / expected.sum() * rows * width).numpy()).pvalue > 1e-6


def test_mask_id_beyond_the_logits_is_allowed():
    """Heads without an output for the mask token."""
    model = TableModel(2, vocab=10, mask=10)
    model.config.vocab_size = None
    out = LLaDASampler(model, spec=ModelSpec(mask_id=10)).generate(
        torch.zeros(1, 2, dtype=torch.long), max_new_tokens=5
    )
    assert (out.sequences < 10).all()
