"""The law of what is sampled: random order at temperature 1 under draft and verify, against exact enumeration.

Random order with one commit a step is the first-hitting sampler of a masked diffusion model without time (arXiv:2409.02908):
every order of the L positions is equally likely, and each token follows the model's conditional given those before it.
Chi-square tests with a false alarm rate of 1e-6 each; their seeds are fixed, so they pass or fail for good.
"""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from fakes import TableModel
from scipy.stats import chisquare

from dlm_benches.tiny.load import load
from dlm_samplers import DraftVerify, FixedQuota, LLaDASampler

FALSE_ALARM = 1e-6


def law(model, prompt, length, mask, values):
    """float64 [values] * length: the probability of every completion."""
    total = torch.zeros((values,) * length, dtype=torch.float64)
    canvases = list(itertools.product([*range(values), mask], repeat=length))
    rows = torch.tensor([[*prompt, *canvas] for canvas in canvases])
    logits = torch.cat([model(part).logits for part in rows.split(4096)])[:, len(prompt) :]
    logits[..., mask] = -torch.inf
    conditional = dict(zip(canvases, logits.double().softmax(-1), strict=True))
    for completion in itertools.product(range(values), repeat=length):
        for order in itertools.permutations(range(length)):
            canvas, probability = [mask] * length, 1.0
            for position in order:
                probability *= conditional[tuple(canvas)][position, completion[position]].item()
                canvas[position] = completion[position]
            total[completion] += probability / math.factorial(length)
    return total


def p_value(counts, expected):
    """Of a chi-square test; outcomes expected fewer than 5 times are pooled."""
    rare = expected < 5
    pooled = lambda values: [*values[~rare].tolist(), *([values[rare].sum().item()] if rare.any() else [])]  # noqa: E731
    return chisquare(pooled(counts), pooled(expected)).pvalue


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("vocabulary", [2, 3])
def test_a_table_model_is_sampled_from_its_own_law(vocabulary, width):
    model = TableModel(vocabulary, vocab=vocabulary + 1, low=1.0, high=3.0)
    rows, length = 20_000, 3
    expected = law(model, [1], length, model.mask, vocabulary)
    assert abs(expected.sum().item() - 1) < 1e-9
    sampler = LLaDASampler(model, policy=FixedQuota("random", tokens_per_step=1), verify=DraftVerify(width))
    out = sampler.generate(torch.ones(rows, 1, dtype=torch.long), max_new_tokens=length, temperature=1.0, seed=5)
    assert (out.nfe < length).any(), "drafts have to hold for this test to mean something"
    number = (out.sequences[:, 1:] * vocabulary ** torch.arange(length - 1, -1, -1)).sum(-1)
    counts = torch.bincount(number, minlength=vocabulary**length)
    assert p_value(counts.double(), expected.flatten() * rows) > FALSE_ALARM


class Restricted:
    """A trained model behind a prompt, with a vocabulary of its likeliest tokens there and the mask."""

    def __init__(self, model, prompt, size):
        self.model, self.prompt = model, torch.tensor(prompt)
        mask = model.config.mask_token_id
        likely = model(torch.tensor([[*prompt, mask, mask, mask]])).logits[0, -3:].softmax(-1).mean(0)
        self.ids = torch.tensor([*likely.topk(size).indices.tolist(), mask])
        self.mask = size
        self.config = SimpleNamespace(mask_token_id=size, eos_token_id=None, vocab_size=size + 1)

    def __call__(self, tokens, attention_mask=None):
        canvas = self.ids[tokens[:, 1:]]  # the first token stands for the prompt
        whole = torch.cat([self.prompt.expand(len(tokens), -1), canvas], dim=1)
        return SimpleNamespace(logits=self.model(whole).logits[:, len(self.prompt) - 1 :][..., self.ids])


def test_a_trained_model_is_sampled_from_its_own_law():
    rows, size, length = 4_000, 6, 3
    model = Restricted(load("reasoning"), [3, 17, 29, 11, 40], size)
    expected = law(model, [0], length, model.mask, size).flatten() * rows
    assert (expected > 5).sum() > 20, "the model has to be undecided for this test to mean something"
    sampler = LLaDASampler(model, policy=FixedQuota("random", tokens_per_step=1), verify=DraftVerify(2))
    out = sampler.generate(torch.zeros(rows, 1, dtype=torch.long), max_new_tokens=length, temperature=1.0, seed=2)
    assert (out.nfe < length).any()
    number = (out.sequences[:, 1:] * size ** torch.arange(length - 1, -1, -1)).sum(-1)
    counts = torch.bincount(number, minlength=size**length)
    assert p_value(counts.double(), expected) > FALSE_ALARM
