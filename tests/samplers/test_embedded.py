"""A model that is shown vectors: those of tokens it knows have to give what the tokens give."""

import pytest
import torch

pytest.importorskip("transformers")

from dlm_benches.architectures import LLaDAStyleConfig, LLaDAStyleModel
from dlm_kernels import InvalidArgumentError
from dlm_samplers import (
    DraftVerify,
    DualCache,
    EmbeddedModel,
    FeatureCache,
    FixedQuota,
    LLaDASampler,
    ModelSpec,
    PrefixCache,
    Threshold,
    accelerate,
    restore,
)

MASK = 96
SPLIT = {"hidden": "model", "lm_head": "lm_head"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LLaDAStyleModel(LLaDAStyleConfig(vocab_size=97, hidden_size=48, initializer_range=0.3)).eval()


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(MASK, (length,), generator=generator) for length in (9, 4, 13)]


def shown(model, rows, spec):
    """The model and prompts in which every second token of each row is a vector."""
    pieces = [model.get_input_embeddings()(row[::2]).detach() for row in rows]
    wrapped = EmbeddedModel(model, spec, pieces)
    prompts = [row.clone() for row in rows]
    for prompt, ids in zip(prompts, wrapped.ids, strict=True):
        prompt[::2] = ids
    return wrapped, prompts


CASES = {
    "logits": ({}, {}, {}),
    "hidden states": ({}, SPLIT, {}),
    "a cache": ({"cache": PrefixCache()}, SPLIT, {}),
    "a cache of blocks": ({"cache": DualCache()}, SPLIT, {}),
    "a cache that looks into layers": ({"cache": FeatureCache(gen_interval=3)}, SPLIT, {}),
    "drafts": ({"verify": DraftVerify(4), "policy": FixedQuota("random", tokens_per_step=1)}, {}, {}),
    "guidance": ({}, {}, {"cfg_scale": 1.5}),
    "draws": ({}, SPLIT, {"temperature": 0.8, "seed": 7}),
    "waiting rows": ({}, SPLIT, {"batch_size": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_vectors_of_known_tokens_give_what_the_tokens_give(model, rows, case):
    parts, split, settings = CASES[case]
    spec = ModelSpec(mask_id=MASK, vocab_size=97, **split)
    parts = {"policy": Threshold(0.3)} | parts
    settings = {"max_new_tokens": 16, "block_length": 8, **settings}
    expected = LLaDASampler(model, spec=spec, **parts).generate(rows, **settings)
    wrapped, prompts = shown(model, rows, spec)
    out = LLaDASampler(wrapped, spec=wrapped.spec, **parts).generate(prompts, **settings)
    for got, wanted in zip(out.completions, expected.completions, strict=True):
        assert torch.equal(got, wanted)
    assert torch.equal(out.nfe, expected.nfe)


def test_a_vector_that_is_no_tokens_is_what_the_model_sees(model):
    """Against a loop by hand: the model's own call with the vectors, the most confident mask first."""
    vectors = torch.randn(5, 48, generator=torch.Generator().manual_seed(2))
    wrapped = EmbeddedModel(model, ModelSpec(mask_id=MASK, vocab_size=97), [vectors])
    out = LLaDASampler(wrapped, spec=wrapped.spec).generate(wrapped.ids, max_new_tokens=6, block_length=None)
    new = torch.full((6,), MASK)
    with torch.no_grad():
        for _ in range(6):
            seen = torch.cat([vectors, model.get_input_embeddings()(new)])[None]
            logits = model(inputs_embeds=seen).logits[0, 5:]
            logits[:, MASK] = -torch.inf
            sure, token = logits.softmax(-1).max(-1)
            place = sure.masked_fill(new != MASK, -1).argmax()
            new[place] = token[place]
    assert torch.equal(out.completions[0], new)


def test_a_trunk_that_takes_no_vectors_is_left_out(model):
    class Trunk(torch.nn.Module):
        def forward(self, input_ids, attention_mask=None):
            raise AssertionError

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.lm_head, self.inner = Trunk(), model.lm_head, model

        def get_input_embeddings(self):
            return model.get_input_embeddings()

        def forward(self, input_ids=None, attention_mask=None, features=None):
            return self.inner(input_ids, attention_mask, inputs_embeds=features)

    spec = ModelSpec(mask_id=MASK, vocab_size=97, hidden="trunk", lm_head="lm_head")
    wrapped = EmbeddedModel(Outer(), spec, [torch.randn(3, 48)], argument="features")
    assert wrapped.spec.hidden is None
    assert LLaDASampler(wrapped, spec=wrapped.spec).generate(wrapped.ids, max_new_tokens=4).nfe.tolist() == [4]


def test_bad_vectors_and_models_are_named(model):
    spec = ModelSpec(mask_id=MASK)
    with pytest.raises(
        InvalidArgumentError, match=r"vectors\[1\] must be floats \[n, 48\], got torch.float32 \[2, 47\]"
    ):
        EmbeddedModel(model, spec, [torch.zeros(2, 48), torch.zeros(2, 47)])
    with pytest.raises(InvalidArgumentError, match=r"vectors\[0\] must be floats \[n, 48\], got torch.int64"):
        EmbeddedModel(model, spec, [torch.zeros(2, 48, dtype=torch.int64)])

    def bare(input_ids, attention_mask=None):
        return model(input_ids)

    with pytest.raises(InvalidArgumentError, match="embed: function has no get_input_embeddings"):
        EmbeddedModel(bare, spec, [])
    with pytest.raises(InvalidArgumentError, match="forward takes no 'inputs_embeds'"):
        EmbeddedModel(bare, spec, [], embed=model.get_input_embeddings())


def test_transformers_generate_takes_embeddings_and_returns_what_follows(model, rows):
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
    given = {"spec": ModelSpec(mask_id=MASK, vocab_size=97, **SPLIT), "policy": Threshold(0.3)}
    settings = {"attention_mask": mask, "max_new_tokens": 12, "block_length": 8, "return_dict_in_generate": True}
    accelerate(model, **given)
    try:
        expected = model.generate(ids, **settings)
        vectors = model.get_input_embeddings()(ids).detach()
        out = model.generate(inputs_embeds=vectors, **settings)
        assert torch.equal(out.sequences, expected.sequences[:, width:])
        assert torch.equal(out.nfe, expected.nfe)
        with pytest.raises(InvalidArgumentError, match="inputs_embeds goes without input_ids"):
            model.generate(ids, inputs_embeds=vectors)
        with pytest.raises(InvalidArgumentError, match=r"inputs_embeds must be a float tensor \[B, P, D\]"):
            model.generate(inputs_embeds=vectors[0])
    finally:
        restore(model)
