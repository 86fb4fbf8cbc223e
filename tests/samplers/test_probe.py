"""Probing models whose behaviour is known."""

from types import SimpleNamespace

import pytest
import torch

from dlm_benches.tiny import vocab
from dlm_benches.tiny.load import load
from dlm_kernels import InvalidArgumentError
from dlm_samplers import ModelMismatchError, ModelSpec, probe

V = 31


class Attention(torch.nn.Module):
    """One layer of attention with a pattern of choice; `padding`: what it does with a mask."""

    def __init__(self, pattern="bidirectional", block=4, padding="honoured", shift=0, noise=0.0):
        super().__init__()
        torch.manual_seed(3)
        self.embed = torch.nn.Embedding(V, 16)
        self.place = torch.nn.Embedding(64, 16)
        self.head = torch.nn.Linear(16, V)
        self.pattern, self.block, self.padding, self.shift, self.noise = pattern, block, padding, shift, noise
        self.config = SimpleNamespace(mask_token_id=V - 1, eos_token_id=3, vocab_size=V)

    def forward(self, tokens, attention_mask=None):
        length = tokens.shape[1]
        column = torch.arange(length)
        see = torch.ones(length, length, dtype=torch.bool)
        if self.pattern == "causal":
            see = see.tril()
        elif self.pattern == "block_causal":
            see = column[:, None] // self.block >= column // self.block
        elif self.pattern == "window":
            see = (column - column[:, None]).abs() < 3
        see = see.expand(len(tokens), -1, -1)
        positions = column.expand_as(tokens)
        if attention_mask is not None and self.padding == "honoured":
            positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
            see = see & attention_mask.bool()[:, None, :]
        x = self.embed(tokens) + self.place(positions)
        scores = (x @ x.transpose(1, 2) / 4).masked_fill(~see, -1e9)
        logits = self.head(x + scores.softmax(-1) @ x)
        if self.shift:
            logits = torch.cat([logits[:, 1:], logits[:, -1:]], 1)
        return logits + self.noise * torch.rand(()) * len(tokens)


@pytest.mark.parametrize(
    ("pattern", "block", "expected"),
    [
        ("bidirectional", None, ("bidirectional", None)),
        ("causal", None, ("causal", None)),
        ("window", None, ("bidirectional", None)),
        *(("block_causal", block, ("block_causal", block)) for block in (2, 3, 4, 8, 12)),
    ],
)
def test_attention_patterns_are_recognised(pattern, block, expected):
    found = probe(Attention(pattern, block), check=False)
    assert (found.attention, found.block_length) == expected
    assert found.deterministic


def test_a_description_that_the_model_contradicts_raises_with_test_expectation_and_finding():
    with pytest.raises(
        ModelMismatchError, match=r"change of one token: the description says .* is block_causal in blocks"
    ):
        probe(Attention("block_causal", 4))
    with pytest.raises(ModelMismatchError, match=r"change of one token: .* is causal"):
        probe(load("reasoning-ar"), ModelSpec(mask_id=vocab.MASK))
    with pytest.raises(ModelMismatchError, match=r"padding on the left: the description says attention_mask='2d'"):
        probe(Attention(padding="ignored"))
    spec = ModelSpec(mask_id=V - 1, vocab_size=V, attention_mask="none")
    assert probe(Attention(padding="ignored"), spec).left_padding == "not asked"
    with pytest.raises(InvalidArgumentError, match="length must be at least 4, got 3"):
        probe(Attention(), length=3)


def test_the_bundled_model_is_what_its_description_says():
    sample = vocab.encode("Sqwerty=eqrtwy")
    found = probe(load("reasoning"), sample=sample)
    assert (found.attention, found.left_padding, found.right_padding) == ("bidirectional", "honoured", "honoured")
    assert found.logit_shift == 0
    assert found.batch_difference < 1e-4
    assert "bidirectional" in str(found)
    spec = ModelSpec(mask_id=vocab.MASK, vocab_size=vocab.SIZE, logit_shift=1)
    with pytest.raises(ModelMismatchError, match="alignment on the sample: the description says logit_shift=1"):
        probe(load("reasoning"), spec, sample=sample)


def test_a_shifted_model_is_found_out_by_its_sample():
    class Shifted(torch.nn.Module):
        config = load("reasoning").config

        def __init__(self):
            super().__init__()
            self.inner = load("reasoning")

        def forward(self, tokens, attention_mask=None):
            logits = self.inner(tokens, attention_mask).logits
            return torch.cat([logits[:, 1:], logits[:, :1]], 1)

    assert probe(Shifted(), sample=vocab.encode("Sqwerty=eqrtwy"), check=False).logit_shift == 1


def test_arithmetic_that_depends_on_the_batch_or_the_call_is_reported():
    found = probe(Attention(noise=1e-3), check=False)
    assert not found.deterministic
    assert found.batch_difference > 1e-4
