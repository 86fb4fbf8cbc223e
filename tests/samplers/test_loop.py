"""The loop's own economies: small batches refilled, forwards left out, logits at the scored positions alone."""

import pytest
import torch
from fakes import SpikeModel, TableModel
from test_sampler import POLICIES, ragged_prompts

from dlm_kernels import InvalidArgumentError
from dlm_samplers import (
    AncestralUnmask,
    DreamSampler,
    EndOfText,
    FixedQuota,
    LLaDASampler,
    ModelSpec,
    Policy,
    Threshold,
)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_refilled_batch_gives_every_row_what_it_gets_alone(policy, temperature):
    model = SpikeModel(5, eos=3)
    prompts = ragged_prompts(model.vocab, rows=13)
    sampler = LLaDASampler(model, policy=policy, stopping=[EndOfText()])
    settings = {"temperature": temperature, "block_length": 8, "seed": 3}
    budgets = [(7 * row) % 19 for row in range(13)]  # some rows have nothing to do
    whole = sampler.generate(prompts, max_new_tokens=budgets, **settings)
    model.rows_seen = 0
    for size in (1, 4):
        out = sampler.generate(prompts, max_new_tokens=budgets, batch_size=size, return_history=True, **settings)
        assert torch.equal(out.sequences, whole.sequences)
        assert torch.equal(out.nfe, whole.nfe)
        assert out.finished.all()
        assert torch.equal(out.history[-1], out.sequences.where(out.sequences == out.history[-1], model.mask))
    assert model.rows_seen == 2 * int(whole.nfe.sum())  # no row is computed beside the ones that need it


def test_batch_size_must_be_a_positive_int():
    with pytest.raises(InvalidArgumentError, match="batch_size must be an int >= 1, got 0"):
        LLaDASampler(TableModel(1)).generate(torch.zeros(2, 2, dtype=torch.long), batch_size=0)


class EveryStep(AncestralUnmask):
    """The same sampler without foresight: a forward in every step."""

    foresees = False


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_step_without_a_flip_costs_no_forward_and_changes_nothing(temperature):
    model = TableModel(3)
    settings = {"max_new_tokens": 12, "block_length": None, "steps": 40, "temperature": temperature, "seed": 1}
    prompts = torch.zeros(9, 2, dtype=torch.long)
    every = LLaDASampler(model, policy=EveryStep()).generate(prompts, **settings)
    model.rows_seen = 0
    skipped = LLaDASampler(model, policy=AncestralUnmask()).generate(prompts, **settings)
    assert torch.equal(every.sequences, skipped.sequences)
    assert model.rows_seen == int(skipped.nfe.sum())
    expected = 40 * (
        1 - (1 - 1 / 40) ** 12
    )  # of steps with at least one flip; 9 rows, so a standard error of about 0.4
    assert abs(skipped.nfe.float().mean() - expected) < 2
    assert (every.nfe >= skipped.nfe + 5).all()


def test_dreams_empty_steps_cost_no_forward_and_change_nothing():
    class EveryStepQuota(FixedQuota):
        foresees = False

    model = TableModel(3)
    settings = {"max_new_tokens": 9, "steps": 30, "temperature": 0.0}
    prompts = torch.zeros(3, 2, dtype=torch.long)
    schedule = DreamSampler(model).policy.schedule
    every = DreamSampler(model, policy=EveryStepQuota(schedule=schedule)).generate(prompts, **settings)
    skipped = DreamSampler(model).generate(prompts, **settings)
    assert torch.equal(every.sequences, skipped.sequences)
    assert (every.nfe == 30).all()
    assert (skipped.nfe <= 9).all()


class WithHead(TableModel):
    """A table model that shows its states: the table is states @ head."""

    def __init__(self, seed, **kwargs):
        super().__init__(seed, **kwargs)
        generator = torch.Generator().manual_seed(seed)
        self.states = torch.randint(-3, 4, (self.table.shape[0], 16), generator=generator).float()
        self.lm_head = torch.nn.Linear(16, self.vocab, bias=True)
        with torch.no_grad():  # small integers: every order of summation gives the same bits
            self.lm_head.weight.copy_(torch.randint(-2, 3, (self.vocab, 16), generator=generator))
            self.lm_head.bias.copy_(torch.randint(-2, 3, (self.vocab,), generator=generator))
            self.table = self.lm_head(self.states)
        self.hidden_calls = 0

    def hidden(self, tokens, **kwargs):
        self.hidden_calls += 1
        table, self.table = self.table, self.states
        try:
            return self(tokens, **kwargs).logits
        finally:
            self.table = table


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("sampler_class", [LLaDASampler, DreamSampler])
def test_scores_from_hidden_states_give_the_same_tokens(sampler_class, policy, temperature):
    model = WithHead(2, eos=3)
    plain = sampler_class(model, policy=policy, stopping=[EndOfText()])
    spec = ModelSpec.of(model, **sampler_class.contract, hidden="hidden", lm_head="lm_head")
    lean = sampler_class(model, policy=policy, stopping=[EndOfText()], spec=spec)
    prompts = ragged_prompts(model.vocab, rows=6)
    settings = {"max_new_tokens": 12, "block_length": 6, "temperature": temperature, "seed": 4}
    expected = plain.generate(prompts, **settings)
    assert model.hidden_calls == 0
    got = lean.generate(prompts, **settings)
    assert model.hidden_calls >= got.nfe.max()  # the trunk alone is called
    assert torch.equal(got.sequences, expected.sequences)
    assert torch.equal(got.nfe, expected.nfe)


def test_a_hidden_attribute_that_is_not_there_is_named():
    spec = ModelSpec(mask_id=22, hidden="trunk.states", lm_head="lm_head")
    with pytest.raises(InvalidArgumentError, match=r"spec.hidden = 'trunk.states'.*TableModel has no such attribute"):
        LLaDASampler(TableModel(1), spec=spec)
    with pytest.raises(InvalidArgumentError, match="hidden and lm_head go together"):
        ModelSpec(mask_id=2, hidden="trunk")


def test_parameters_may_differ_from_request_to_request():
    model = SpikeModel(7)
    prompts = ragged_prompts(model.vocab, rows=5)
    taus = (0.2, 0.4, 0.6, 0.8, 1.0)
    settings = {"max_new_tokens": 16, "block_length": 16, "batch_size": 2}
    together = LLaDASampler(model, policy=Threshold(taus)).generate(prompts, **settings)
    for row, tau in enumerate(taus):
        alone = LLaDASampler(model, policy=Threshold(tau)).generate([prompts[row]], max_new_tokens=16, block_length=16)
        assert torch.equal(alone.completions[0], together.completions[row])
        assert alone.nfe[0] == together.nfe[row]
    assert together.nfe[0] < together.nfe[4]
    with pytest.raises(InvalidArgumentError, match="tau must be in"):
        Threshold((0.5, 1.5))


def test_explain_names_the_part_that_weakens_the_guarantee():
    sampler = LLaDASampler(TableModel(1, eos=3), policy=Threshold(0.9), stopping=[EndOfText()])
    text = sampler.explain()
    assert text.startswith("approximate: the weakest of")
    assert "<- Threshold(): approximate." in text
    assert "   EndOfText(): text_exact." in text


def test_every_part_says_what_its_guarantee_rests_on():
    def parts(cls):
        for sub in cls.__subclasses__():
            if sub.__module__.startswith("dlm_samplers.") and hasattr(sub, "guarantee"):
                yield sub
            yield from parts(sub)

    from dlm_samplers.parts import Part

    found = list(parts(Part))
    assert Threshold in found
    assert issubclass(Threshold, Policy)
    assert all(part.promise for part in found), [part for part in found if not part.promise]
