"""`accelerate` and `restore` on models: transformers' names and meaning, and nothing left behind."""

import copy

import pytest
import torch

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (pip install 'dlm-kernels[hf]')"
)

from transformers import (  # noqa: E402
    GenerationConfig,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)
from transformers.generation.streamers import BaseStreamer  # noqa: E402

from dlm_benches.architectures import (  # noqa: E402
    DreamStyleConfig,
    DreamStyleModel,
    LLaDAStyleConfig,
    LLaDAStyleModel,
    SDARStyleConfig,
    SDARStyleModel,
)
from dlm_kernels import InvalidArgumentError  # noqa: E402
from dlm_samplers import (  # noqa: E402
    BlockCache,
    ConfidenceDrop,
    DreamSampler,
    EndOfText,
    FixedQuota,
    LLaDASampler,
    LowConfidenceDynamic,
    ModelMismatchError,
    ModelSpec,
    Threshold,
    UnknownModelError,
    accelerate,
    restore,
)
from dlm_samplers.compat.dream import diffusion_generate  # noqa: E402
from dlm_samplers.integrations import versions  # noqa: E402

V, MASK, EOS, PAD = 41, 40, 3, 5
SHAPE = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.35,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}


class LLaDAModelLM(LLaDAStyleModel):
    pass


class DreamModel(DreamStyleModel):
    pass


class SDARForCausalLM(SDARStyleModel):
    pass


KINDS = {  # by the names of the published classes
    "llada": (LLaDAModelLM, LLaDAStyleConfig),
    "dream": (DreamModel, DreamStyleConfig),
    "sdar": (SDARForCausalLM, SDARStyleConfig),
}
PROMPTS = torch.tensor([[7, 1, 2, 9, 11], [13, 14, 15, 1, 2]])


def build(family="llada", seed=0, eos_scale=1.0, **config):
    model, settings = KINDS[family]
    torch.manual_seed(seed)
    built = model(settings(**SHAPE | config)).eval()
    with torch.no_grad():
        built.lm_head.weight[EOS] *= eos_scale
    return built


def state_of(model):
    """What there is to see of an object: its attributes, their order, its class."""
    return dict(vars(model)), list(vars(model)), type(model), model.config.to_dict()


@pytest.mark.parametrize("family", KINDS)
def test_the_model_is_what_it_was(family):
    model = build(family)
    before = state_of(model)
    with accelerate(model) as inside:
        assert inside is model
        model.generate(PROMPTS, max_new_tokens=4)
        assert state_of(model) != before
    assert state_of(model) == before
    assert not hasattr(model, "generate")

    accelerate(model)
    restore(model)
    restore(model)
    assert state_of(model) == before

    with pytest.raises(RuntimeError, match="enough"), accelerate(model):
        raise RuntimeError("enough")
    with pytest.raises(InvalidArgumentError), accelerate(model):
        model.generate(PROMPTS.float())
    assert state_of(model) == before


def test_a_generate_of_its_own_comes_back():
    model = build()
    model.generate = mine = lambda: "mine"
    with accelerate(model):
        assert model.generate(PROMPTS, max_new_tokens=2).shape == (2, 7)
    assert vars(model)["generate"] is mine
    restore(model)
    assert vars(model)["generate"] is mine


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1)])
def test_layers_come_off_in_any_order(order):
    model = build("dream")
    before = state_of(model)
    layers = [accelerate(model, policy=Threshold(tau)) for tau in (0.2, 0.5, 1.0)]
    forwards = [
        DreamSampler(model, policy=Threshold(tau)).generate(PROMPTS, max_new_tokens=8).nfe.tolist()
        for tau in (0.2, 0.5, 1.0)
    ]
    on = [0, 1, 2]
    for layer in order:
        out = model.generate(PROMPTS, max_new_tokens=8, return_dict_in_generate=True)
        assert out.nfe.tolist() == forwards[max(on)]
        layers[layer].restore()
        layers[layer].restore()
        on.remove(layer)
    assert state_of(model) == before


def test_nested_and_restored_inside():
    model = build()
    before = state_of(model)
    with accelerate(model):
        outer = vars(model)["generate"]
        with accelerate(model, policy=Threshold(0.5)):
            pass
        assert vars(model)["generate"] is outer
        with accelerate(model):
            restore(model)
            assert state_of(model) == before
    assert state_of(model) == before


def test_a_copy_of_an_accelerated_model_is_one_of_its_own():
    model = build()
    with accelerate(model):
        other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.neg_()
    assert not torch.equal(other.generate(PROMPTS), LLaDASampler(model).generate(PROMPTS).sequences)
    restore(other)
    assert not hasattr(other, "generate")


POLICY = {"llada": FixedQuota(), "dream": None, "sdar": LowConfidenceDynamic()}


@pytest.mark.parametrize("family", KINDS)
def test_it_is_the_sampler(family):
    model = build(family, eos_scale=2.0)
    sampler = DreamSampler if family == "dream" else LLaDASampler
    spec = ModelSpec.of(model, **sampler.contract)
    if family == "sdar":
        spec = ModelSpec.of(model, attention_mask="4d_block", block_length=4)
    ended = 0
    for seed in range(4):
        prompts = torch.randint(6, MASK, (3, 6), generator=torch.Generator().manual_seed(seed))
        mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
        settings = {"temperature": 0.9, "top_k": 20, "top_p": 0.95}
        rows = [row[real.bool()] for row, real in zip(prompts, mask, strict=True)]
        block = 4 if family == "sdar" else 1  # the last block is generated whole
        budget = [-(-(len(row) + 22) // block) * block - len(row) for row in rows]
        plain = sampler(model, spec=spec, policy=POLICY[family], stopping=[EndOfText()])
        expected = plain.generate(rows, max_new_tokens=budget, seed=seed, **settings)
        with accelerate(model):
            out = model.generate(
                input_ids=prompts,
                attention_mask=mask,
                max_new_tokens=22,
                do_sample=True,
                seed=seed,
                pad_token_id=PAD,
                return_dict_in_generate=True,
                **settings,
            )
        assert torch.equal(out.nfe, expected.nfe)
        texts = []
        for row, prompt in enumerate(rows):
            text = expected.sequences[row, len(prompt) : len(prompt) + 22].tolist()
            if EOS in text:
                ended += 1
                text = text[: text.index(EOS) + 1]
            texts.append(text)
        longest = max(map(len, texts))
        new = [text + [PAD] * (longest - len(text)) for text in texts]
        assert out.sequences.tolist() == torch.cat([prompts, torch.tensor(new)], 1).tolist()
    assert ended


def test_lengths_counts_and_configs_are_transformers():
    model = build()
    with accelerate(model):
        assert model.generate(PROMPTS, max_length=9).shape == (2, 9)
        assert model.generate(PROMPTS, max_length=9, max_new_tokens=2).shape == (2, 7)
        config = GenerationConfig(max_new_tokens=6, do_sample=True, temperature=0.5)
        torch.manual_seed(3)
        one = model.generate(PROMPTS, generation_config=config)
        assert one.shape == (2, 11)
        assert model.generate(PROMPTS, config, max_new_tokens=3).shape == (2, 8)
        torch.manual_seed(3)
        assert torch.equal(model.generate(PROMPTS, config), one)
        assert not torch.equal(model.generate(PROMPTS, config), one)
        generator = torch.Generator().manual_seed(1)
        few = model.generate(PROMPTS, config, generator=generator, num_return_sequences=3)
        assert few.shape == (6, 11)
        assert torch.equal(few[:3, :5], PROMPTS[:1].expand(3, 5))
        assert len({tuple(row) for row in few.tolist()}) >= 4
        # Greedy whatever the temperature, as there.
        assert torch.equal(
            model.generate(PROMPTS, temperature=9.0, max_new_tokens=5), model.generate(PROMPTS, max_new_tokens=5)
        )
        model.generation_config = GenerationConfig(max_new_tokens=2, num_beams=4, pad_token_id=PAD)
        assert model.generate(PROMPTS).shape == (2, 7)
        # Guessed from the padding token.
        padded = torch.tensor([[PAD, PAD, 7, 1]])
        assert torch.equal(model.generate(padded)[:, 4:], model.generate(torch.tensor([[7, 1]]))[:, 2:])


def test_pad_and_stop_tokens_of_a_list():
    model = build()
    with accelerate(model):
        free = model.generate(PROMPTS, max_new_tokens=12, pad_token_id=PAD)[:, 5:]
        ends = [int(free[0, 3]), int(free[1, 6])]
        cut = model.generate(PROMPTS, max_new_tokens=12, pad_token_id=PAD, eos_token_id=ends)[:, 5:]
        for row in range(2):
            stop = next(i for i, token in enumerate(free[row].tolist()) if token in ends)
            assert cut[row, : stop + 1].tolist() == free[row, : stop + 1].tolist()
            assert set(cut[row, stop + 1 :].tolist()) <= {PAD}
        suppressed = model.generate(PROMPTS, max_new_tokens=12, suppress_tokens=sorted(set(free[0].tolist())))
        assert not set(suppressed[0, 5:].tolist()) & set(free[0].tolist())


class Recorder(BaseStreamer):
    def __init__(self):
        self.tokens, self.drafts, self.ended = [], 0, 0

    def put(self, value):
        self.tokens.append(value.tolist())

    def put_draft(self, value):
        self.drafts += 1

    def end(self):
        self.ended += 1


@pytest.mark.parametrize("family", KINDS)
def test_a_streamer_gets_what_is_returned(family):
    model = build(family, eos_scale=3.0)
    early = 0
    for seed in range(12):
        streamer = Recorder()
        prompt = torch.randint(6, MASK, (1, 5), generator=torch.Generator().manual_seed(seed))
        with accelerate(model, policy=Threshold(0.3)):
            out = model.generate(prompt, max_new_tokens=14, streamer=streamer, do_sample=True, seed=seed)
        assert streamer.tokens[0] == prompt.tolist()
        assert [token for put in streamer.tokens for token in put[0]] == out[0].tolist()
        assert streamer.ended == 1
        assert streamer.drafts > 0
        early += out.shape[1] < 19
    assert early


def test_a_streamer_is_for_one_row():
    model = build()
    with accelerate(model), pytest.raises(InvalidArgumentError, match="single row"):
        model.generate(PROMPTS, streamer=Recorder())


def test_processors_see_each_column_as_the_next_token():
    model = build()
    seen = []

    def spy(input_ids, scores):
        seen.append((input_ids.clone(), scores.dtype, tuple(scores.shape)))
        return scores

    with accelerate(model, policy=FixedQuota(tokens_per_step=2)):
        plain = model.generate(PROMPTS, max_new_tokens=4)
        assert torch.equal(model.generate(PROMPTS, max_new_tokens=4, logits_processor=[spy]), plain)
        assert [ids.shape for ids, *_ in seen[:4]] == [(2, n) for n in (5, 6, 7, 8)]
        assert torch.equal(seen[1][0], torch.cat([PROMPTS, torch.full((2, 1), MASK)], 1))
        assert {kind for _, *kind in map(tuple, seen) for kind in [tuple(kind)]} == {(torch.float32, (2, V))}
        assert len(seen) <= 4 + 4  # of the second step only what is masked

        banned = sorted(set(plain[:, 5:].flatten().tolist()))
        processors = LogitsProcessorList([SuppressTokensLogitsProcessor(banned)])
        other = model.generate(PROMPTS, max_new_tokens=4, logits_processor=processors)
        assert not set(other[:, 5:].flatten().tolist()) & set(banned)

    sure_to_end = build(eos_scale=8.0)
    with accelerate(sure_to_end):
        short = sure_to_end.generate(PROMPTS, max_new_tokens=10)
        least = MinNewTokensLengthLogitsProcessor(5, 7, EOS)
        long = sure_to_end.generate(PROMPTS, max_new_tokens=10, logits_processor=[least])
    assert short.shape[1] < 5 + 7
    assert long.shape[1] >= 5 + 7
    assert not (long[:, 5:12] == EOS).any()


def test_processors_say_what_they_cannot_do():
    model = build("sdar")
    penalty = RepetitionPenaltyLogitsProcessor(1.5)
    mask = torch.ones_like(PROMPTS)
    mask[0, 0] = 0
    with accelerate(model):
        assert model.generate(PROMPTS, max_new_tokens=6, logits_processor=[penalty]).shape == (2, 11)
        with pytest.raises(InvalidArgumentError, match="prompts of one length"):
            model.generate(PROMPTS, attention_mask=mask, logits_processor=[penalty])
    with accelerate(model, cache=BlockCache()), pytest.raises(InvalidArgumentError, match="goes without cache="):
        model.generate(PROMPTS, logits_processor=[penalty])


@pytest.mark.parametrize("policy", [FixedQuota(), Threshold(0.2)], ids=str)
def test_a_row_ends_where_a_criterion_first_holds(policy):
    model = build()
    with accelerate(model, policy=policy):
        free = model.generate(PROMPTS, max_new_tokens=12)
        stop = [int(free[0, 5 + 4]), int(free[1, 5 + 8])]
        asked = []

        def criterion(input_ids, scores, **kwargs):
            asked.append(tuple(input_ids[0].tolist()))
            return torch.tensor([int(input_ids[0, -1]) in stop])

        out = model.generate(PROMPTS, max_new_tokens=12, stopping_criteria=[criterion], pad_token_id=PAD)
    for row in range(2):
        text = free[row, 5:].tolist()
        end = next(i for i, token in enumerate(text) if token in stop)
        assert out[row, 5 : 5 + end + 1].tolist() == text[: end + 1]
        assert set(out[row, 5 + end + 1 :].tolist()) <= {PAD}
        mine = [ids for ids in asked if ids[:5] == tuple(PROMPTS[row].tolist())]
        assert mine == [tuple(free[row, : 5 + n].tolist()) for n in range(1, end + 2)]
    unsure = {"policy": LowConfidenceDynamic(), "remask": ConfidenceDrop()}
    with accelerate(model, **unsure), pytest.raises(InvalidArgumentError, match="stopping_criteria need final tokens"):
        model.generate(PROMPTS, stopping_criteria=[criterion])


def test_the_cache_of_a_block_causal_model_changes_nothing_but_the_work():
    model = build("sdar")
    with accelerate(model):
        cached = model.generate(PROMPTS, max_new_tokens=17, return_dict_in_generate=True)
        plain = model.generate(PROMPTS, max_new_tokens=17, return_dict_in_generate=True, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    assert torch.equal(cached.nfe, plain.nfe)
    assert cached.positions.sum() < plain.positions.sum() / 2


def test_dreams_own_method():
    model = build("dream")
    settings = {"max_new_tokens": 10, "steps": 5, "temperature": 0.4, "seed": 2, "output_history": True}
    with accelerate(model):
        for alg in ("origin", "entropy", "maskgit_plus"):
            settings |= {"alg": alg, "return_dict_in_generate": True}
            ours = model.diffusion_generate(PROMPTS, **settings)
            expected = diffusion_generate(model, PROMPTS, **settings)
            assert torch.equal(ours.sequences, expected.sequences)
            assert len(ours.history) == len(expected.history)
    with accelerate(model, policy=Threshold(0.2)):
        ours = model.diffusion_generate(PROMPTS, **settings)
    assert len(ours.history) < len(expected.history) + 5
    out = DreamSampler(model, policy=Threshold(0.2)).generate(PROMPTS, max_new_tokens=10, temperature=0.4, seed=2)
    assert torch.equal(ours.sequences, out.sequences)


REFUSED = [
    ({"max_tokens": 3}, r"unknown arguments \['max_tokens'\]"),
    ({"num_beams": 4}, "num_beams = 4 means nothing"),
    ({"repetition_penalty": 1.2}, "repetition_penalty = 1.2 .* logits_processor="),
    ({"generation_config": GenerationConfig(min_new_tokens=3)}, "min_new_tokens = 3"),
    ({"assistant_model": object()}, "assistant_model"),
    ({"prefix_allowed_tokens_fn": lambda *_: [1]}, "prefix_allowed_tokens_fn"),
    ({"num_return_sequences": 2}, "needs do_sample=True"),
    ({"do_sample": True, "temperature": 0.0}, "temperature must be > 0"),
    ({"max_length": 3}, "max_length = 3 is shorter than the prompt of 5"),
    ({"input_ids": PROMPTS}, "same argument"),
    ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1]] * 2)}, "padding in the middle"),
    ({"attention_mask": torch.tensor([[1, 1, 1, 1, 0]] * 2)}, "pad the prompts on the left"),
    ({"attention_mask": torch.ones(2, 4)}, "input_ids' shape"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_arguments_that_mean_nothing_are_named(arguments, message):
    model = build()
    with accelerate(model), pytest.raises(InvalidArgumentError, match=message):
        model.generate(PROMPTS, **arguments)


class Unnamed(torch.nn.Module):
    """Says in its name and config nothing of what it is."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, tokens, **kwargs):
        return self.inner(tokens, **kwargs)


def assert_untouched(target, error, message, **arguments):
    before = dict(vars(target)), type(target)
    with pytest.raises(error, match=message):
        accelerate(target, **arguments)
    assert (dict(vars(target)), type(target)) == before


def test_what_cannot_be_accelerated_is_left_alone(monkeypatch):
    model = build()
    assert_untouched(Unnamed(model), UnknownModelError, "not recognised. Looked at\n  classes: Unnamed")
    assert_untouched(model, InvalidArgumentError, "BlockCache is for block-causal models", cache=BlockCache())
    assert_untouched(model, InvalidArgumentError, "policy must be a Policy", policy="fast")
    assert_untouched(model, InvalidArgumentError, "belong inside spec", spec=ModelSpec(MASK), mask_id=MASK)
    blocks = ModelSpec(MASK, attention_mask="4d_block", block_length=4)
    assert_untouched(
        Unnamed(lambda tokens, attention_mask: model(tokens)), ModelMismatchError, "is bidirectional", spec=blocks
    )
    model.config.mask_token_id = None
    assert_untouched(model, InvalidArgumentError, "mask_id is missing")
    monkeypatch.setattr(versions.metadata, "version", lambda package: "4.40.1")
    assert_untouched(model, versions.UnsupportedVersionError, r"transformers 4.40.1 is too old: this needs .*>=4.48")


def test_a_model_without_a_name_goes_with_a_description():
    model = build()
    stranger = Unnamed(model)
    with accelerate(stranger, spec=ModelSpec(MASK, attention_mask="none")):
        out = stranger.generate(PROMPTS, max_new_tokens=6)
        mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
        with pytest.raises(InvalidArgumentError, match="the model cannot ignore padding"):
            stranger.generate(PROMPTS, attention_mask=mask)
    assert torch.equal(out, LLaDASampler(model).generate(PROMPTS, max_new_tokens=6).sequences)
