"""A model that is shown vectors: those of tokens it knows have to give what the tokens give."""

from dataclasses import replace

import pytest
import torch
from published.llada import LlavaLladaForMaskedDiffusion
from published.llada_llama import LlavaLLaDAModelLM
from published.parts import seeded

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
    describe,
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


PUBLISHED = {
    "LLaDA-V": lambda: (seeded(LlavaLLaDAModelLM, 1), {}),
    "LaViDa": lambda: (
        (trunk := seeded(LlavaLladaForMaskedDiffusion, 2).get_model()),
        {"embed": trunk.transformer.wte, "argument": "input_embeddings"},
    ),
}


@pytest.mark.parametrize("cache", [None, PrefixCache(), DualCache(), FeatureCache(gen_interval=3)], ids=str)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_code_is_shown_images(name, cache):
    """LLaDA-V's own forward fails on vectors; LaViDa's trunk has to be given token ids, None."""
    model, how = PUBLISHED[name]()
    spec = replace(describe(model, mask_id=40, eos_id=3).require_spec(), vocab_size=41)
    embed = how.get("embed") or model.get_input_embeddings()
    prompts = [torch.tensor([5, 6, 7, 8, 9, 10]), torch.tensor([11, 12, 13, 14, 15, 16])]
    wrapped = EmbeddedModel(model, spec, [embed(row[1:4]).detach() for row in prompts], **how)
    shown = [torch.cat([row[:1], ids, row[4:]]) for row, ids in zip(prompts, wrapped.ids, strict=True)]
    parts, settings = {"policy": Threshold(0.2), "cache": cache}, {"max_new_tokens": 12, "block_length": 4}
    expected = LLaDASampler(model, spec=spec, **parts).generate(prompts, **settings)
    out = LLaDASampler(wrapped, spec=wrapped.spec, **parts).generate(shown, **settings)
    for got, wanted in zip(out.completions, expected.completions, strict=True):
        assert torch.equal(got, wanted)
    other = EmbeddedModel(model, spec, [torch.zeros(3, 32), torch.zeros(3, 32)], **how)
    blank = LLaDASampler(other, spec=other.spec, **parts).generate(shown, **settings)
    assert any(not torch.equal(*pair) for pair in zip(out.completions, blank.completions, strict=True))


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
