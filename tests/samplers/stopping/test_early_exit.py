"""SchED, Prophet and DiffusionGemma's rule against the rules in plain Python, row by row."""

import math
from types import SimpleNamespace

import pytest
import torch
from compositions import EOS, MASK, Ended
from fakes import SpikeModel, TableModel
from plain import PlainRun, log_probs

from dlm_kernels import InvalidArgumentError, TokenScores
from dlm_samplers import (
    DreamSampler,
    FixedQuota,
    Guarantee,
    LLaDASampler,
    ModelSpec,
    Prophet,
    ReMDM,
    SchED,
    StableAndConfident,
    Threshold,
)
from dlm_samplers.evaluation import Evaluation


def plain_sched(rule):
    def tau(p):
        share = {
            "linear": 1 - p,
            "cosine": (1 + math.cos(math.pi * p)) / 2,
            "exponential": math.exp(-rule.k * p),
        }[rule.curve]
        return rule.tau_low + (rule.tau_high - rule.tau_low) * share

    def stop(run):
        if rule.settled:
            if not run.history:
                return False
            before = run.history[-1][1]
            if any(run.proposal[i] != before[i] for i in run.masked):
                return False
        return sum(run.gap(i) for i in run.masked) / len(run.masked) >= tau(run.progress)

    return stop


def plain_prophet(rule):
    def stop(run):
        span = range(run.start + rule.answer_start, run.start + rule.answer_start + rule.answer_length)
        gaps = [run.gap(i) for i in span if i < len(run.canvas)]
        threshold = rule.early if run.progress < 0.33 else rule.middle if run.progress < 0.67 else rule.late
        return bool(gaps) and sum(gaps) / len(gaps) >= threshold

    return stop


def plain_stable(rule):
    def stop(run):
        k = rule.stability_threshold
        if len(run.history) < k:
            return False
        for _, before in run.history[len(run.history) - k :]:
            if any(before[i] != run.proposal[i] for i in run.masked):
                return False
        entropies = [-sum(math.exp(p) * p for p in log_probs(run.logits[i]) if p > -math.inf) for i in run.masked]
        return sum(entropies) / len(entropies) < rule.confidence_threshold

    return stop


RULES = [
    (SchED("linear", 6.0, 1.0, settled=False), plain_sched),
    (SchED("cosine", 5.0, 0.5, settled=False), plain_sched),
    (SchED("exponential", 9.0, 1.0, k=3.0, settled=False), plain_sched),
    (SchED("cosine", 3.0, 0.0), plain_sched),
    (Prophet(3, 4, 5.0, 4.0, 2.5), plain_prophet),
    (Prophet(14), plain_prophet),
    (StableAndConfident(1, 1.0), plain_stable),
    (StableAndConfident(2, 2.0), plain_stable),
    (StableAndConfident(0, 0.7), plain_stable),
]


class Settling(SpikeModel):
    """A table model whose winners depend on the place alone in most cases, so that proposals settle."""

    def __call__(self, tokens, attention_mask=None, position_ids=None):
        output = super().__call__(tokens, attention_mask, position_ids)
        place = torch.arange(tokens.shape[1]) * 7 % (self.vocab - 1)
        output.logits[:, torch.arange(tokens.shape[1]), place] += 8.0
        return output


def random_prompts(model, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for n in torch.randint(1, 9, (rows,), generator=generator).tolist():
        prompt = torch.randint(model.vocab - 1, (n,), generator=generator)
        prompts.append(torch.where(torch.rand(n, generator=generator) < 0.2, model.mask, prompt))
    return prompts


@pytest.mark.parametrize(("rule", "plain"), RULES, ids=lambda value: repr(value) if not callable(value) else "")
def test_stops_where_the_plain_rule_stops(rule, plain):
    stopped = 0
    for seed in range(6):
        model = Settling(seed, height=8.0)
        prompts = random_prompts(model, 16, seed)
        budgets = [(5 * row) % 17 + 1 for row in range(16)]
        quota, block = (1, None) if seed % 2 else (2, 6)
        sampler = LLaDASampler(model, policy=FixedQuota(tokens_per_step=quota), stopping=[rule])
        out = sampler.generate(prompts, max_new_tokens=budgets, block_length=block, batch_size=(None, 5)[seed % 2])
        for row, (prompt, new) in enumerate(zip(prompts, budgets, strict=True)):
            run = PlainRun(model, prompt.tolist(), new, quota, plain(rule), block)
            assert run.steps == out.nfe[row]
            assert out.sequences[row, : len(run.canvas)].tolist() == run.canvas
            stopped += run.steps < PlainRun(model, prompt.tolist(), new, quota, lambda _: False, block).steps
    assert 8 < stopped < 96, "a rule that always or never fires tests nothing"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", [rule for rule, _ in RULES], ids=repr)
@pytest.mark.parametrize("sampler_class", [LLaDASampler, DreamSampler])
def test_rows_stop_in_a_batch_where_they_stop_alone(sampler_class, rule, temperature):
    model = Settling(3, height=8.0, eos=3)
    prompts = random_prompts(model, 12, 3)
    sampler = sampler_class(model, policy=Threshold(0.6), stopping=[rule])
    settings = {"block_length": 8, "seed": 5, "temperature": temperature}
    budgets = [(5 * row) % 17 for row in range(12)]
    batch = sampler.generate(prompts, max_new_tokens=budgets, **settings)
    few = sampler.generate(prompts, max_new_tokens=budgets, batch_size=3, **settings)
    assert torch.equal(batch.sequences, few.sequences)
    assert torch.equal(batch.nfe, few.nfe)
    assert not (batch.sequences == model.mask).any()
    for row in (1, 5, 11):
        alone = sampler.generate([prompts[row]], max_new_tokens=budgets[row], request_ids=[row], **settings)
        assert torch.equal(alone.sequences[0], batch.sequences[row, : alone.sequences.shape[1]])
        assert alone.nfe[0] == batch.nfe[row]


def test_the_published_numbers_are_the_defaults():
    """SchED: tau 7.5 to 2.5, k 4 (its repository); Prophet: 7.5, 5, 2.5 over 5 positions; DiffusionGemma: 1 and 0.005."""
    p = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert SchED("linear").threshold(p).tolist() == [7.5, 5.0, 2.5]
    assert SchED().threshold(p).tolist() == pytest.approx([7.5, 5.0, 2.5])
    assert SchED("exponential").threshold(p).tolist() == pytest.approx(
        [7.5, 2.5 + 5 * math.exp(-2), 2.5 + 5 * math.exp(-4)]
    )
    assert Prophet(0) == Prophet(0, 5, 7.5, 5.0, 2.5)
    assert StableAndConfident() == StableAndConfident(1, 0.005)


def test_a_gap_that_probabilities_cannot_show_still_counts():
    """Gaps of 20 and 1: their mean is 10.5, while 1 - p is 0 in fp32 for the first, whose gap would read infinite."""
    model = TableModel(0, vocab=5)
    logits = torch.zeros(2, 5)
    logits[0, 1], logits[1, 2] = 20.0, 1.0
    logits[:, 4] = 50.0  # the mask token, which is never generated

    def call(tokens, attention_mask=None):
        return logits[torch.arange(tokens.shape[1]) % 2].expand(len(tokens), -1, -1)

    spec = ModelSpec(mask_id=model.mask)
    policy = FixedQuota(tokens_per_step=1)
    for low, forwards in ((10.4, 1), (10.6, 6)):
        rule = SchED(tau_high=low, tau_low=low, settled=False)
        sampler = LLaDASampler(call, policy=policy, stopping=[rule], spec=spec)
        out = sampler.generate(torch.zeros(1, 0, dtype=torch.long), max_new_tokens=6, block_length=None)
        # Later means are over fewer sure positions, for the surest commit first.
        assert out.nfe.tolist() == [forwards]
        assert out.sequences[0].tolist() == [1, 2, 1, 2, 1, 2]


def test_answers_may_start_elsewhere_in_every_request():
    model = Settling(3, height=8.0)
    prompts = random_prompts(model, 6, 1)
    starts = (0, 2, 4, 6, 8, 99)
    settings = {"max_new_tokens": 12, "block_length": 6, "batch_size": 2}
    policy = FixedQuota(tokens_per_step=1)
    together = LLaDASampler(model, policy=policy, stopping=[Prophet(starts)]).generate(prompts, **settings)
    for row, start in enumerate(starts):
        alone = LLaDASampler(model, policy=policy, stopping=[Prophet(start)]).generate([prompts[row]], **settings)
        assert torch.equal(alone.completions[0], together.completions[row])
        assert alone.nfe[0] == together.nfe[row]
    full = LLaDASampler(model, policy=policy).generate([prompts[5]], **settings)
    assert together.nfe[5] == full.nfe[0], "a row without the answer's place never stops by it"


def test_guarantees_and_bad_parameters():
    model = TableModel(0)
    assert LLaDASampler(model, stopping=[SchED()]).guarantee is Guarantee.APPROXIMATE
    assert LLaDASampler(model, stopping=[Prophet(3)]).guarantee is Guarantee.APPROXIMATE
    assert LLaDASampler(model, stopping=[StableAndConfident()]).guarantee is Guarantee.BOUNDED
    for build, message in (
        (lambda: SchED("stairs"), "curve must be one of"),
        (lambda: SchED(tau_high=1.0), "tau_low <= tau_high"),
        (lambda: SchED(tau_low=-1.0), "tau_low"),
        (lambda: SchED(k=0.0), "k must be above 0"),
        (lambda: Prophet(-1), "answer_start must be >= 0"),
        (lambda: Prophet((1, -1)), "answer_start"),
        (lambda: Prophet(1, 0), "answer_length must be at least 1"),
        (lambda: StableAndConfident(-1), "stability_threshold must be >= 0"),
        (lambda: StableAndConfident(1, 0.0), "confidence_threshold must be above 0"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            build()


def test_the_rule_of_diffusion_gemma_decides_as_transformers_does():
    """On canvases of which nothing commits, as there: 200 steps of proposals that move in some."""
    module = pytest.importorskip("transformers.models.diffusion_gemma.generation_diffusion_gemma")
    generator = torch.Generator().manual_seed(1)
    masked = torch.ones(3, 8, dtype=torch.bool)
    decided = 0
    for k in (0, 1, 3):
        theirs, ours = module.StableAndConfidentStoppingCriteria(k, 0.5), StableAndConfident(k, 0.5)
        state = SimpleNamespace(tokens=torch.zeros(3, 8, dtype=torch.long), position_memory={})
        ours.start(state)
        logits = torch.randn(3, 8, 5, generator=generator)
        for _ in range(200):
            moves = torch.rand(3, 1, 1, generator=generator) < 0.2
            logits = torch.where(moves, torch.randn(3, 8, 5, generator=generator), logits)
            sharp = logits * (1 + 9 * torch.rand(3, 1, 1, generator=generator))
            entropy = torch.distributions.Categorical(logits=sharp).entropy()
            scores = TokenScores(sharp.argmax(-1), entropy, entropy, entropy, entropy)
            evaluation = Evaluation(scores=scores, scored=masked, masked=masked, output=sharp, shift=0)
            expected = theirs(sharp.argmax(-1), sharp)
            assert torch.equal(ours.stop(state, None, evaluation), expected)
            decided += int(expected.sum())
    assert 50 < decided < 1700


def test_a_row_that_took_a_token_back_is_not_filled():
    forwards = set()
    for seed in range(8):
        model = Ended(seed, vocab=MASK + 1, eos=EOS)
        rule = StableAndConfident(confidence_threshold=1.0)
        sampler = LLaDASampler(model, remask=ReMDM("cap", eta=1.0), stopping=[rule])
        out = sampler.generate(torch.tensor([[4, 4, 10, 13]]), max_new_tokens=8, block_length=None, seed=seed)
        assert (out.sequences != MASK).all()
        forwards.add(int(out.nfe))
    assert forwards == {2, 8}, "the model is sure, so that only a token taken back can keep a row"
