"""Draft and verify: the tokens are the sequential sampler's, whatever is drafted, and drafts that hold save forwards."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from fakes import FickleModel, FirmModel, MoodyModel, SpikeModel, TableModel

from dlm_kernels import InvalidArgumentError
from dlm_samplers import (
    DAEDAL,
    AncestralUnmask,
    Credit,
    Dilated,
    DraftVerify,
    DreamSampler,
    EndOfText,
    EntropyBound,
    EventDriven,
    Factor,
    FixedQuota,
    FrozenConfidence,
    Guarantee,
    LLaDASampler,
    ModelSpec,
    Policy,
    SchED,
    Spaced,
    StoppingRule,
    Threshold,
)
from dlm_samplers.verify.width import Width

POLICIES = [
    FixedQuota("random", tokens_per_step=1),
    FixedQuota("left_to_right", tokens_per_step=1),
    FixedQuota("random", tokens_per_step=3),
    FixedQuota("confidence", tokens_per_step=1),
    FixedQuota("margin", tokens_per_step=1),
    FixedQuota("confidence", tokens_per_step=2),
    FixedQuota("entropy", tokens_per_step=2, order_temperature=0.5),
    FixedQuota(),
    FixedQuota("random"),
    AncestralUnmask(),
    FrozenConfidence(3),
    FrozenConfidence(8, "entropy"),
    Threshold(0.6),
    Threshold((0.3, 0.5, 0.6, 0.7, 0.9)),
    Factor(1.0),
    EntropyBound(0.5),
    Credit(0.6),
    Dilated(),
    EventDriven(12),
    Spaced(FrozenConfidence(3)),
]
MODELS = [TableModel, SpikeModel, MoodyModel, FickleModel]
WIDTHS = [1, 2, 5, 16, "auto"]


def prompts_of(model, seed, rows=5):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (rows,), generator=generator).tolist()
    return [torch.randint(model.vocab - 1, (n,), generator=generator) for n in lengths]


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_tokens_are_those_of_the_sequential_sampler(policy, model_class):
    """20 policies x 4 models x 2 temperatures x 2 block lengths, with and without a stop: 320 batches of ragged rows."""
    for case, (temperature, block) in enumerate(itertools.product((0.0, 1.0), (None, 6))):
        seed = 17 * case + len(str(policy))
        stop = (case + seed + len(model_class.__name__)) % 2 == 0
        model = model_class(seed, eos=3)
        sampler_class = (LLaDASampler, DreamSampler)[case % 2]
        parts = {"policy": policy, "stopping": [EndOfText()] if stop else []}
        settings = {
            "max_new_tokens": [17, 5, 0, 12, 20],
            "block_length": block,
            "temperature": temperature,
            "top_p": (1.0, 0.9)[case // 2 % 2],
            "seed": seed,
        }
        prompts = prompts_of(model, seed)
        expected = sampler_class(model, **parts).generate(prompts, **settings)
        verify = DraftVerify(WIDTHS[(case + seed) % len(WIDTHS)])
        got = sampler_class(model, **parts, verify=verify).generate(prompts, batch_size=(None, 2)[case % 2], **settings)
        assert torch.equal(got.sequences, expected.sequences), (settings, verify)
        assert torch.equal(got.generated, expected.generated)
        assert (got.nfe <= expected.nfe).all()
        assert (got.canvases >= got.nfe).all()


@dataclass(frozen=True)
class StopsByTheBooks(StoppingRule):
    """Stops at an arbitrary function of everything that a row knows about its place in the walk, and fills the rest."""

    modulus: int = 11

    guarantee = Guarantee.APPROXIMATE
    fills = True

    def stop(self, state, spec, evaluation):
        books = (state.step, state.block_start, state.block_end, state.block_step, state.block_masks)
        mixed = sum(prime * book for prime, book in zip((7, 11, 13, 17, 19), books, strict=True))
        return (mixed + state.prompt_length) % self.modulus == 0


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_walked_state_has_the_step_and_block_it_has_in_the_sequential_walk(policy):
    stopped = 0
    for seed in range(8):
        model = (FirmModel, MoodyModel)[seed % 2](seed)
        settings = {"max_new_tokens": [30, 19, 7], "block_length": (5, 8)[seed // 2 % 2], "seed": seed}
        prompts = prompts_of(model, seed, rows=3)
        blanks = [torch.rand(len(prompt)) < 0.4 for prompt in prompts]
        if policy.scheduled:  # a schedule counts blanks in the prompt as a block of their own
            blanks = [torch.zeros_like(blank) for blank in blanks]
        parts = {"policy": policy, "stopping": [StopsByTheBooks()]}
        settings["temperature"] = seed // 4
        expected = LLaDASampler(model, **parts).generate(prompts, editable=blanks, **settings)
        got = LLaDASampler(model, **parts, verify=DraftVerify(7)).generate(prompts, editable=blanks, **settings)
        assert torch.equal(got.sequences, expected.sequences)
        full = LLaDASampler(model, policy=policy).generate(prompts, editable=blanks, **settings)
        stopped += int((full.nfe > expected.nfe).sum())
    assert stopped > 2, "the rule has to bite for this test to mean something"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("model_class", [MoodyModel, FickleModel])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_each_forward_ends_on_a_canvas_of_the_sequential_walk(policy, model_class, temperature):
    model = model_class(5)
    settings = {"max_new_tokens": 24, "block_length": 9, "temperature": temperature, "seed": 2, "return_history": True}
    prompts = prompts_of(model, 3)
    sequential = LLaDASampler(model, policy=policy).generate(prompts, **settings).history
    verified = LLaDASampler(model, policy=policy, verify=DraftVerify(12)).generate(prompts, **settings).history
    for row in range(5):
        walk = [tuple(canvas[row].tolist()) for canvas in sequential]
        places = [walk.index(tuple(canvas[row].tolist())) for canvas in verified]
        assert places == sorted(places)
        assert places[-1] == walk.index(walk[-1])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "policy",
    [FixedQuota("random", tokens_per_step=1), FixedQuota("left_to_right", tokens_per_step=2), FixedQuota("random")],
    ids=str,
)
def test_on_a_firm_model_every_draft_holds(policy, temperature):
    model = FirmModel(1)
    prompts = torch.zeros(3, 2, dtype=torch.long)
    settings = {"max_new_tokens": 33, "block_length": None, "temperature": temperature}
    steps = 33 if policy.tokens_per_step is None else -(-33 // policy.tokens_per_step)
    out = LLaDASampler(model, policy=policy, verify=DraftVerify(8)).generate(prompts, **settings)
    assert out.nfe.tolist() == [1 + -(-(steps - 1) // 8)] * 3  # the first forward has nothing to draft from
    assert (out.canvases <= 8 * out.nfe).all()


@pytest.mark.parametrize("order", ["confidence", "margin"])
def test_on_a_firm_model_the_graph_holds_too(order):
    model = FirmModel(1)
    prompts = torch.zeros(2, 2, dtype=torch.long)
    policy = FixedQuota(order, tokens_per_step=1)
    out = LLaDASampler(model, policy=policy, verify=DraftVerify(16)).generate(
        prompts, max_new_tokens=40, block_length=None
    )
    assert (out.nfe <= 10).all()


def test_frozen_orders_are_drafted_beyond_the_next_freeze():
    model = FirmModel(1)
    out = LLaDASampler(model, policy=FrozenConfidence(3), verify=DraftVerify(16)).generate(
        torch.zeros(2, 2, dtype=torch.long), max_new_tokens=33, block_length=None
    )
    assert out.nfe.tolist() == [3, 3]


def test_on_a_model_that_always_changes_its_mind_each_forward_makes_one_step():
    model = TableModel(3, vocab=199)
    policy = FixedQuota("random", tokens_per_step=1)
    out = LLaDASampler(model, policy=policy, verify=DraftVerify(16)).generate(
        torch.zeros(2, 2, dtype=torch.long), max_new_tokens=32
    )
    assert (out.nfe >= 29).all()
    assert (out.nfe <= 32).all()
    assert (out.sequences != model.mask).all()


def flat(self, state, rows, width):
    return 1.0


def linear(self, state, rows, width):
    return float(rows * width)


def ragged(self, state, rows, width):
    return width**0.5 + (rows * width * 7 % 5)


@pytest.mark.parametrize("seconds", [flat, linear, ragged])
@pytest.mark.parametrize("policy", [POLICIES[0], POLICIES[3], POLICIES[10], POLICIES[12]], ids=str)
def test_the_width_changes_the_cost_and_nothing_else(policy, seconds, monkeypatch):
    monkeypatch.setattr(Width, "_seconds", seconds)
    model = MoodyModel(8)
    prompts = prompts_of(model, 1)
    settings = {"max_new_tokens": 40, "block_length": None, "temperature": 1.0}
    expected = LLaDASampler(model, policy=policy).generate(prompts, **settings)
    out = LLaDASampler(model, policy=policy, verify=DraftVerify()).generate(prompts, **settings)
    assert torch.equal(out.sequences, expected.sequences)
    if seconds is linear:  # twice the canvases for twice the time: nothing to win
        assert torch.equal(out.canvases, out.nfe)
        assert torch.equal(out.nfe, expected.nfe)
    if seconds is flat and policy is POLICIES[0]:
        assert (out.nfe < 0.5 * expected.nfe).all()
        assert (out.canvases > 3 * out.nfe).all()


def test_the_first_use_times_the_model_and_the_next_one_does_not():
    model = FirmModel(1)
    sampler = LLaDASampler(model, policy=POLICIES[0], verify=DraftVerify())
    calls = []
    for _ in range(2):
        model.calls = 0
        sampler.generate(torch.zeros(1, 2, dtype=torch.long), max_new_tokens=16)
        calls.append(model.calls)
    assert calls[0] > calls[1]
    assert calls[1] <= 16


class ShapedModel(MoodyModel):
    """Logits on a coarse grid, so with ties, and off by a little in any batch but that of one row."""

    error = 1e-3

    def __call__(self, tokens, attention_mask=None, position_ids=None):
        logits = (super().__call__(tokens).logits * 4).round() / 4
        if len(tokens) > 1:
            wiggle = torch.arange(logits.numel()).reshape(logits.shape) * 2654435761 % 1009 / 1009 - 0.5
            logits += 2 * self.error * wiggle
        return type("Output", (), {"logits": logits})


@pytest.mark.parametrize(
    "policy", [POLICIES[0], POLICIES[3], FixedQuota(), FrozenConfidence(4), Threshold(0.6)], ids=str
)
def test_a_guard_gives_every_row_the_tokens_it_has_alone(policy):
    model = ShapedModel(4, vocab=11)
    prompts = prompts_of(model, 2, rows=8)
    settings = {"max_new_tokens": 24, "block_length": 8}
    plain = LLaDASampler(model, policy=policy)
    alone = [plain.generate([p], request_ids=[row], **settings).completions[0] for row, p in enumerate(prompts)]

    def same(guard, width):
        sampler = LLaDASampler(model, policy=policy, verify=DraftVerify(width, guard=guard))
        out = sampler.generate(prompts, **settings)
        return sum(torch.equal(a, b) for a, b in zip(alone, out.completions, strict=True))

    assert same(None, 6) < 8, "the model's error has to matter for this test to mean something"
    assert same(0.01, 6) == 8
    assert same(0.01, 1) == 8


def test_nan_in_a_draft_that_the_walk_does_not_come_to_is_nobodys_concern():
    class Fragile(TableModel):
        def __call__(self, tokens, attention_mask=None, position_ids=None):
            out = super().__call__(tokens)
            strange = torch.tensor([tuple(row) not in known for row in tokens.tolist()])
            out.logits[strange] = float("nan")
            return out

    plain, policy = TableModel(6), FixedQuota("random", tokens_per_step=1)
    prompts = torch.zeros(2, 2, dtype=torch.long)
    settings = {"max_new_tokens": 12, "temperature": 1.0, "return_history": True}
    expected = LLaDASampler(plain, policy=policy).generate(prompts, **settings)
    known = {tuple(row) for canvas in expected.history for row in canvas.tolist()}
    out = LLaDASampler(Fragile(6), policy=policy, verify=DraftVerify(4)).generate(prompts, **settings)
    assert torch.equal(out.sequences, expected.sequences)
    known = {tuple(row) for row in expected.history[0].tolist()}
    with pytest.raises(InvalidArgumentError, match="NaN logits in row"):
        LLaDASampler(Fragile(6), policy=policy, verify=DraftVerify(4)).generate(prompts, **settings)


def test_guidance_a_processor_and_a_callback_work_as_in_the_sequential_sampler():
    def forbids_five(tokens, logits):
        logits[..., 5] = -torch.inf
        return logits

    def writes(sampler, step, state):
        if step == 1:
            state.tokens[:, -1] = 4

    model, policy = MoodyModel(2), FixedQuota("left_to_right", tokens_per_step=1)
    prompts = torch.arange(3)[:, None].repeat(1, 2)
    for extra in ({"cfg_scale": 1.5}, {"logits_processor": forbids_five}):
        expected = LLaDASampler(model, policy=policy).generate(prompts, max_new_tokens=16, **extra)
        out = LLaDASampler(model, policy=policy, verify=DraftVerify(4)).generate(prompts, max_new_tokens=16, **extra)
        assert torch.equal(out.sequences, expected.sequences)
        assert (out.nfe < expected.nfe).all()
    written = LLaDASampler(model, policy=policy, verify=DraftVerify(4)).generate(
        prompts, max_new_tokens=16, callback_on_step_end=writes
    )
    assert (written.sequences[:, -1] == 4).all()
    assert (written.sequences != model.mask).all()


def test_scores_from_hidden_states_verify_too():
    from test_loop import WithHead

    model, policy = WithHead(2, eos=3), FixedQuota("random", tokens_per_step=1)
    spec = ModelSpec.of(model, **LLaDASampler.contract, hidden="hidden", lm_head="lm_head")
    prompts = prompts_of(model, 4)
    expected = LLaDASampler(model, policy=policy).generate(prompts, max_new_tokens=12, temperature=1.0)
    out = LLaDASampler(model, policy=policy, spec=spec, verify=DraftVerify(4)).generate(
        prompts, max_new_tokens=12, temperature=1.0
    )
    assert model.hidden_calls > 0
    assert torch.equal(out.sequences, expected.sequences)


@dataclass(frozen=True)
class Remembers(Policy):
    """Commits as many positions as it counted steps, or the third of the canvas that it drew once."""

    counts: bool = True

    guarantee = Guarantee.APPROXIMATE

    def start(self, state):
        state.memory["remembers.steps"] = torch.ones_like(state.step)
        state.position_memory["remembers.third"] = state.column.expand_as(state.tokens) % 3

    def observe(self, evaluation, state):
        state.memory["remembers.steps"] += self.counts  # in place, on purpose
        return evaluation.scores

    def select(self, scores, state):
        if self.counts:
            return state.active & (state.active.cumsum(-1) <= state.memory["remembers.steps"][:, None] % 4 + 1)
        third = state.position_memory["remembers.third"].masked_fill(~state.active, 3)
        return state.active & (third == third.amin(-1, keepdim=True))


@pytest.mark.parametrize("counts", [True, False])
def test_policies_may_remember(counts):
    settings = {"max_new_tokens": [24, 17, 9], "block_length": 6, "temperature": 1.0}
    for seed in range(6):
        model = (FirmModel, MoodyModel)[seed % 2](seed)
        prompts = prompts_of(model, seed, rows=3)
        expected = LLaDASampler(model, policy=Remembers(counts)).generate(prompts, **settings)
        out = LLaDASampler(model, policy=Remembers(counts), verify=DraftVerify(6)).generate(prompts, **settings)
        assert torch.equal(out.sequences, expected.sequences)
        assert (out.nfe == expected.nfe).all() if counts else (out.nfe <= expected.nfe).all()
        if not counts and model.changes_mind_after is None:
            assert (out.nfe[:2] < expected.nfe[:2]).all(), "what does not change is no hindrance"


def test_compositions_that_make_no_sense_are_refused_with_what_to_do():
    from dlm_samplers.remask import Remask

    class TakesBack(Remask):
        guarantee = Guarantee.APPROXIMATE

        def __str__(self):
            return "TakesBack()"

    model = TableModel(1)
    with pytest.raises(InvalidArgumentError, match=r"only commits: leave out verify=, or remask=TakesBack\(\)"):
        LLaDASampler(model, remask=TakesBack(), verify=DraftVerify(4))
    with pytest.raises(InvalidArgumentError, match=r"SchED\(\) remembers what earlier canvases said.*EndOfText"):
        LLaDASampler(model, stopping=[SchED()], verify=DraftVerify(4))
    with pytest.raises(InvalidArgumentError, match=r"leave out verify=, or length=DAEDAL\("):
        LLaDASampler(model, policy=Threshold(0.9), length=DAEDAL(), verify=DraftVerify(4), eos_id=3)
    with pytest.raises(InvalidArgumentError, match=r"with spec\.sees_time the model sees more"):
        LLaDASampler(model, spec=ModelSpec(mask_id=22, sees_time=True), verify=DraftVerify(4))
    with pytest.raises(InvalidArgumentError, match=r"Factor\(\) does not say how near.*Threshold"):
        LLaDASampler(model, policy=Factor(), verify=DraftVerify(4, guard=0.01))
    guarded = LLaDASampler(model, verify=DraftVerify(4, guard=0.01))
    with pytest.raises(InvalidArgumentError, match="take temperature=0, or guard=None"):
        guarded.generate(torch.zeros(1, 2, dtype=torch.long), temperature=1.0)
    with pytest.raises(InvalidArgumentError, match="verify must be a Verify instance"):
        LLaDASampler(model, verify="exact")
    for width in (0, True, 1.5, "wide"):
        with pytest.raises(InvalidArgumentError, match="width must be 'auto' or an int >= 1"):
            DraftVerify(width)
    with pytest.raises(InvalidArgumentError, match="guard must be in"):
        DraftVerify(4, guard=0.0)


def test_the_guarantee_is_named():
    sampler = LLaDASampler(TableModel(1), policy=FixedQuota("random", tokens_per_step=1), verify=DraftVerify(4))
    assert sampler.guarantee is Guarantee.PATH_EXACT
    assert "DraftVerify(width=4): path_exact" in sampler.explain()
