"""Which distribution the entropies of the bound are measured on."""

import pytest
import torch
from fakes import SpikeModel

from dlm_kernels import InvalidArgumentError
from dlm_samplers import DreamSampler, EntropyBound, LLaDASampler


def first_commits(logits, gamma, temperature):
    """Positions of least entropy, as long as the entropies before the last sum to gamma or less."""
    entropy = torch.distributions.Categorical(logits=logits / temperature).entropy().tolist()
    order = sorted(range(len(entropy)), key=lambda i: (entropy[i], i))
    spent, chosen = 0.0, []
    for i in order:
        if chosen and spent > gamma:
            break
        chosen.append(i)
        spent += entropy[i]
    return sorted(chosen)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize(
    ("sampler_class", "statistics", "tempered"),
    [
        (LLaDASampler, None, False),
        (LLaDASampler, "model", False),
        (LLaDASampler, "sampling", True),
        (DreamSampler, None, True),
        (DreamSampler, "model", False),
    ],
)
def test_entropies_are_of_the_distribution_asked_for(sampler_class, statistics, tempered, temperature):
    differ = 0
    for seed in range(40):
        model = SpikeModel(seed)
        canvas = torch.tensor([[1, 2, 3] + [model.mask] * 12])
        logits = model(canvas).logits[0].double()
        logits[:, model.mask] = -torch.inf
        shift = 1 if sampler_class is DreamSampler else 0
        logits = logits[3 - shift : 15 - shift]
        out = sampler_class(model, policy=EntropyBound(1.0, statistics)).generate(
            canvas[:, :3], max_new_tokens=12, block_length=None, temperature=temperature, return_history=True
        )
        got = (out.history[1] != out.history[0])[0, 3:].nonzero()[:, 0].tolist()
        assert got == first_commits(logits, 1.0, temperature if tempered else 1.0)
        differ += got != first_commits(logits, 1.0, 1.0 if tempered else temperature)
    assert differ > 10


def test_an_unknown_distribution_is_refused():
    with pytest.raises(InvalidArgumentError, match="statistics must be 'model', 'sampling' or None, got 'both'"):
        EntropyBound(statistics="both")
