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


class Mixed(Attention):
    """LLaDA2's reading of masks: 2D ones are bidirectional, 2D with a zero causal, 4D is added to the scores."""

    def __init__(self, takes_2d=True):
        super().__init__()
        self.takes_2d = takes_2d

    def forward(self, tokens, attention_mask=None, position_ids=None):
        length = tokens.shape[1]
        bias = torch.zeros(1, length, length)
        if attention_mask is not None and attention_mask.ndim == 2:
            if not self.takes_2d:
                raise RuntimeError("a 4D mask, please")
            if not attention_mask.all():
                see = torch.ones(length, length).tril().bool() & attention_mask.bool()[:, None]
                bias = torch.where(see | torch.eye(length).bool(), 0.0, -torch.inf)
        elif attention_mask is not None:
            bias = attention_mask[:, 0]
        x = self.embed(tokens) + self.place(torch.arange(length))
        return self.head(x + (x @ x.transpose(1, 2) / 4 + bias).softmax(-1) @ x)


BLOCKS = {"mask_id": V - 1, "vocab_size": V, "block_length": 4}


def test_what_a_block_causal_model_makes_of_a_2d_mask():
    found = probe(Mixed(), ModelSpec(attention_mask="4d_block_additive", **BLOCKS))
    assert (found.attention, found.block_length) == ("block_causal", 4)
    assert (found.plain_mask, found.padded_plain_mask) == ("bidirectional", "causal")
    assert (found.left_padding, found.right_padding) == ("not asked", "honoured")
    assert "2D mask, padded   causal" in str(found)
    found = probe(Mixed(takes_2d=False), ModelSpec(attention_mask="4d_block_additive", **BLOCKS))
    assert (found.plain_mask, found.padded_plain_mask) == ("fails", "fails")
    own_blocks = ModelSpec(attention_mask="2d", **BLOCKS)  # a model that is block-causal by itself
    found = probe(Attention("block_causal", 4), own_blocks)
    assert (found.attention, found.plain_mask) == ("block_causal", "block_causal")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"attention_mask": "2d"}, r"block_causal in blocks of 4, the model is bidirectional; .*'4d_block' or"),
        ({"attention_mask": "4d_block"}, r"is bidirectional; a model that adds its mask .*'4d_block_additive'"),
        ({"attention_mask": "2d", "block_length": None}, "padding on the right|padding on the left"),
    ],
)
def test_a_mask_of_the_wrong_kind_is_found_out(spec, message):
    with pytest.raises(ModelMismatchError, match=message):
        probe(Mixed(), ModelSpec(**{**BLOCKS, **spec}))


class Split(torch.nn.Module):
    """Trunk and head; `scale`: of the logits that it returns itself."""

    def __init__(self, scale=1.0):
        super().__init__()
        inner = Attention()
        self.lm_head, self.scale, self.config = inner.head, scale, inner.config
        inner.head = torch.nn.Identity()
        self.trunk = inner

    def forward(self, tokens, attention_mask=None):
        return self.lm_head(self.trunk(tokens, attention_mask)) * self.scale


def test_a_head_whose_product_is_not_the_logits_is_found_out():
    spec = ModelSpec(V - 1, 3, V, hidden="trunk", lm_head="lm_head")
    found = probe(Split(), spec)
    assert found.head == "agrees"
    assert "LM head           agrees with the model's own logits" in str(found)
    with pytest.raises(ModelMismatchError, match=r"lm_head = 'lm_head': .* product with the states is the logits"):
        probe(Split(0.5), spec)
    assert probe(Split(0.5), spec, check=False).head == "differs"
    assert probe(Split(None), spec).head == "fails"  # which is said, and hinders no sampler
    assert probe(Split(0.5), ModelSpec(V - 1, 3, V)).head is None


def test_another_block_length_than_described_is_found_out():
    with pytest.raises(
        ModelMismatchError, match="says block_causal in blocks of 6, the model is block_causal in blocks of 4"
    ):
        probe(Attention("block_causal", 4), ModelSpec(**{**BLOCKS, "block_length": 6}))
    found = probe(Attention("block_causal", 16), ModelSpec(**{**BLOCKS, "block_length": 16}))
    assert found.block_length == 16  # the canvas is made long enough


def test_a_call_that_the_model_refuses_is_a_mismatch_that_says_so():
    for spec, words in [({"time_argument": "sigma"}, "TypeError: .*sigma"), ({"keywords": {"blocks": 2}}, "blocks")]:
        with pytest.raises(ModelMismatchError, match=f"called as the description says, it raises .*{words}"):
            probe(Attention(), ModelSpec(mask_id=V - 1, vocab_size=V, **spec))


class Told(Attention):
    """Told the noise level, and returning what MDLM and SEDD return."""

    def __init__(self, output="logits", listens=True, pattern="bidirectional"):
        super().__init__(pattern)
        self.output, self.listens = output, listens

    def forward(self, tokens, sigma):
        logits = super().forward(tokens)
        if self.listens:
            logits = logits * (1 + sigma[:, None, None])
        mask = tokens == V - 1
        if self.output == "subs":
            logits[..., V - 1] = -1e6
            logits = logits.log_softmax(-1)
            repeat = torch.full_like(logits, -1e6).scatter(-1, tokens[..., None], 0.0)
            return torch.where(mask[..., None], logits, repeat)
        if self.output == "log_score":
            logits = logits - torch.expm1(sigma).log()[:, None, None]
            return logits.scatter(-1, tokens[..., None], 0.0)
        return logits


@pytest.mark.parametrize("output", ["logits", "subs", "log_score"])
def test_the_noise_level_and_what_it_moves(output):
    told = {"mask_id": V - 1, "vocab_size": V, "attention_mask": "none", "time_argument": "sigma", "output": output}
    for listens in (True, False):
        spec = ModelSpec(sees_time=listens, **told)
        found = probe(Told(output, listens), spec)
        assert found.time == ("moves" if listens else "does not move")
        assert found.attention == "bidirectional"
        assert "the output " + found.time in str(found)
    with pytest.raises(ModelMismatchError, match=r"noise level: the description says sees_time=True"):
        probe(Told(output, listens=False), ModelSpec(sees_time=True, **told))
    with pytest.raises(ModelMismatchError, match=r"change of one token: .* is causal"):
        probe(Told(output, pattern="causal"), ModelSpec(**told))
    assert probe(Attention(), check=False).time is None
