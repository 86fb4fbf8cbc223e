"""Models under published names: what `describe` says of them, and that a sampler that goes by it calls them right."""

from types import SimpleNamespace

import pytest
import torch
from fakes import TableModel
from published import llada, parts
from published.parts import seeded
from torch import nn

from dlm_benches.architectures import (
    DreamStyleConfig,
    DreamStyleModel,
    LLaDAStyleConfig,
    LLaDAStyleModel,
    SDARStyleConfig,
    SDARStyleModel,
)
from dlm_kernels import InvalidArgumentError
from dlm_samplers import (
    AncestralUnmask,
    DreamSampler,
    EventDriven,
    LLaDASampler,
    ModelSpec,
    Sampler,
    UnknownModelError,
    describe,
    probe,
)


class Parts(nn.Module):
    """Has the attributes of a model whose trunk and head are apart."""

    def __init__(self, config=None, head=None):
        super().__init__()
        self.config = SimpleNamespace(**(config or {}))
        self.model = nn.Identity()
        self.model.forward = lambda input_ids, attention_mask=None, position_ids=None, use_cache=None: None
        self.lm_head = nn.Linear(2, 4) if head is None else head

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None): ...


class Told(nn.Module):
    def __init__(self, config=None, **attributes):
        super().__init__()
        self.config = SimpleNamespace(**(config or {}))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, input_ids, timesteps): ...


class Scored(Told):
    def forward(self, indices, sigma): ...


def named(name, base, *arguments, **keywords):
    return type(name, (base,), {})(*arguments, **keywords)


GPT2 = {"vocab_size": 50258}
LLAMAS = {"hidden": "model", "lm_head": "lm_head", "keywords": {"use_cache": False}}

SPECS = [
    ("LLaDAModelLM", Parts, {"vocab_size": 126464}, "LLaDA", ModelSpec(126336, 126081, 126464, **LLAMAS)),
    (
        "LLaDAModelLM",
        Parts,
        {"mask_token_id": 5, "eos_token_id": 3, "vocab_size": 99},
        "LLaDA",
        ModelSpec(5, 3, 99, **LLAMAS),
    ),
    (
        "LLaDAMoEModelLM",
        Parts,
        {"model_type": "llada", "vocab_size": 157184, "eos_token_id": 156892},
        "LLaDA-MoE",
        ModelSpec(156895, 156892, 157184, attention_mask="none", hidden="model", lm_head="lm_head"),
    ),
    (
        "DreamModel",
        Parts,
        {"vocab_size": 152064},
        "Dream",
        ModelSpec(
            151666,
            151643,
            152064,
            1,
            "4d_bool",
            "full",
            "position_ids",
            hidden="model",
            lm_head="lm_head",
        ),
    ),
    (
        "LLaDA2MoeModelLM",
        Parts,
        {"vocab_size": 157184},
        "LLaDA2",
        ModelSpec(
            156895,
            156892,
            157184,
            attention_mask="4d_block_additive",
            position_ids="position_ids",
            block_length=32,
            keywords={"use_cache": False},
            hidden="model",
            lm_head="lm_head",
        ),
    ),
    (
        "SDARForCausalLM",
        Parts,
        {"mask_token_id": 151669, "eos_token_id": 151645, "vocab_size": 151936, "block_size": 8},
        "SDAR",
        ModelSpec(
            151669,
            151645,
            151936,
            attention_mask="4d_block",
            position_ids="position_ids",
            block_length=8,
            keywords={"use_cache": False},
            hidden="model",
            lm_head="lm_head",
        ),
    ),
    (
        "MDLM",
        Told,
        {**GPT2, "time_conditioning": False},
        "MDLM",
        ModelSpec(50257, None, 50258, attention_mask="none", time_argument="timesteps"),
    ),
    (
        "MDLM",
        Scored,
        {**GPT2, "time_conditioning": True},
        "MDLM",
        ModelSpec(50257, None, 50258, attention_mask="none", time_argument="sigma", sees_time=True),
    ),
    (
        "BD3LM",
        Told,
        {**GPT2, "block_size": 16, "cross_attn": True},
        "BD3-LM",
        ModelSpec(
            50257,
            None,
            50258,
            attention_mask="none",
            time_argument="timesteps",
            block_length=16,
            keywords={"sample_mode": True},
        ),
    ),
    (
        "SEDD",
        Scored,
        {"tokens": 50257, "graph": {"type": "absorb"}},
        "SEDD",
        ModelSpec(50257, None, 50258, attention_mask="none", time_argument="sigma", sees_time=True, output="log_score"),
    ),
    ("MMadaModelLM", Parts, {"vocab_size": 134656}, "MMaDA", ModelSpec(126336, 126081)),
    ("LlavaLLaDAModelLM", Parts, {"vocab_size": 126464}, "LLaDA-V", ModelSpec(126336, 126081, **LLAMAS)),
]


@pytest.mark.parametrize(("name", "base", "config", "family", "spec"), SPECS)
def test_published_classes(name, base, config, family, spec):
    found = describe(named(name, base, config))
    assert (found.family, found.spec) == (family, spec)
    assert name in found.because[0]
    assert family in str(found)
    assert found.sampler == ("DreamSampler" if family == "Dream" else "LLaDASampler")


TRAINING = {"mask_index": 7, "vocab_size": 8, "time_conditioning": True, "backbone": None}


@pytest.mark.parametrize(("parameterization", "output"), [("subs", "subs"), ("d3pm", "logits"), ("sedd", "log_score")])
def test_the_training_module_of_mdlm_says_what_it_returns(parameterization, output):
    found = describe(named("Diffusion", Scored, parameterization=parameterization, **TRAINING))
    expected = ModelSpec(7, None, 8, attention_mask="none", time_argument="sigma", sees_time=True, output=output)
    assert found.spec == expected


def test_the_network_of_mdlm_is_not_taken_for_duos():
    hydra = {"parameterization": "subs", "time_conditioning": False, "model": {"length": 1024}}
    found = describe(named("DIT", Scored, hydra, vocab_size=50258))
    assert found.spec == ModelSpec(50257, None, 50258, attention_mask="none", time_argument="sigma")
    for other in ({}, {"algo": {"parameterization": "mean"}}):
        with pytest.raises(UnknownModelError):
            describe(named("DIT", Scored, other))


def test_the_training_module_needs_more_than_its_common_name():
    with pytest.raises(UnknownModelError):
        describe(named("Diffusion", Scored))
    found = describe(named("Diffusion", Scored, parameterization="ar", **TRAINING))
    assert found.spec is None
    with pytest.raises(InvalidArgumentError, match=r"'ar'"):
        found.require_spec()


class LLaDAModelLM(Parts):
    pass


def test_the_nearest_name_decides_then_architectures_then_the_model_type():
    ids = {"mask_token_id": 4, "vocab_size": 5}
    derived = named("Finetuned", LLaDAModelLM, ids)
    assert describe(derived).because == ("class LLaDAModelLM, a base of Finetuned",)
    assert describe(named("MMadaModelLM", LLaDAModelLM, ids)).family == "MMaDA"
    by_type = named("Mine", Parts, {"model_type": "Dream", **ids})
    assert describe(by_type).because == ("config.model_type is 'Dream'",)
    by_architecture = named("Mine", Parts, {"model_type": "llada", "architectures": ["DreamModel"], **ids})
    assert describe(by_architecture).because == ("config.architectures has DreamModel",)
    assert describe(named("LLaDAModelLM", Parts, {"model_type": "Dream", **ids})).family == "LLaDA"


def test_ids_are_assumed_only_with_the_vocabulary_they_go_with():
    for config in ({}, {"vocab_size": 126336}, {"vocab_size": 200_000}):
        with pytest.raises(
            InvalidArgumentError, match=r"mask_id is missing: recognised as LLaDA \(class LLaDAModelLM\)"
        ):
            describe(LLaDAModelLM(config))
    given = describe(LLaDAModelLM({"vocab_size": 200_000}), mask_id=9, eos_id=8)
    assert given.spec == ModelSpec(9, 8, 200_000, **LLAMAS)
    own = LLaDAModelLM({"vocab_size": 126464, "mask_token_id": 17})
    assert describe(own).spec == ModelSpec(17, None, 126464, **LLAMAS)  # another mask: the rest may be another's too
    named_elsewhere = LLaDAModelLM({"vocab_size": 50})
    named_elsewhere.generation_config = SimpleNamespace(mask_token_id=49, eos_token_id=[1, 2])
    assert describe(named_elsewhere).spec == ModelSpec(49, None, 50, **LLAMAS)
    assert describe(LLaDAModelLM({"vocab_size": 50, "mask_token_id": 50})).spec == ModelSpec(50, **LLAMAS)


def test_a_head_that_is_not_a_plain_linear_layer_is_left_to_the_model():
    config = {"vocab_size": 152064}
    quantised = nn.Linear(2, 4)
    quantised.weight = nn.Parameter(torch.zeros(4, 2, dtype=torch.uint8), requires_grad=False)
    offloaded = nn.Linear(2, 4, device="meta")
    wrapped = type("Adapted", (nn.Linear,), {})(2, 4)
    subclass = nn.Linear(2, 4)
    subclass.weight = nn.Parameter(torch.zeros(4, 2).as_subclass(type("Quantised", (torch.Tensor,), {})))
    hooked, replaced = nn.Linear(2, 4), nn.Linear(2, 4)
    hooked.register_forward_hook(lambda *_: None)
    replaced.forward = lambda x: x
    for head in (quantised, offloaded, wrapped, subclass, hooked, replaced, nn.Identity()):
        assert describe(named("DreamModel", Parts, config, head=head)).spec.hidden is None
    model = named("DreamModel", Parts, config)
    model.model.forward = lambda input_ids, attention_mask=None, **kwargs: None  # would drop the position ids
    assert describe(model).spec.hidden is None


def test_uniform_noise_and_canvases_are_recognised_and_refused_with_directions():
    for model, words in [
        (named("DUO", Told, GPT2), "uniform_step_"),
        (named("Mine", Told, {"model_type": "udlm", **GPT2}), "uniform_step_"),
        (named("SEDD", Scored, {"tokens": 8, "graph": {"type": "uniform"}}), "score_entropy_step_"),
        (named("DiffusionGemmaForBlockDiffusion", Parts), "DiffusionGemmaPipeline"),
        (named("LlavaLladaForMaskedDiffusion", Parts), r"model\.get_model\(\)"),
    ]:
        found = describe(model)
        assert found.spec is None
        assert words.replace("\\", "") in str(found)
        for cls in (Sampler, LLaDASampler, DreamSampler):
            with pytest.raises(InvalidArgumentError, match=f"recognised as .*{words}"):
                cls(model, mask_id=3)


def test_transformers_own_class_is_recognised():
    transformers = pytest.importorskip("transformers", minversion="5.10")
    cls = getattr(transformers, "DiffusionGemmaForBlockDiffusion", None)
    if cls is None:
        pytest.skip("no DiffusionGemma in this transformers")
    model = cls.__new__(cls)
    nn.Module.__init__(model)  # its names are enough
    assert describe(model).family == "DiffusionGemma"


def test_image_codes_have_their_range():
    config = {"vocab_size": 134656, "llm_vocab_size": 126464, "codebook_size": 8192, "num_new_special_tokens": 0}
    found = describe(named("MMadaModelLM", Parts, config))
    assert found.token_ranges == {"text": range(126464), "image": range(126464, 134656)}
    assert "image tokens: 126464 to 134655" in str(found)


def test_an_unknown_model_is_told_what_was_looked_at_and_given_a_template():
    model = named("Finetuned", TableModel, 0)
    model.config.model_type, model.config.architectures = "mystery", ["MysteryLM"]
    with pytest.raises(UnknownModelError) as raised:
        describe(model)
    message = str(raised.value)
    for words in ("Finetuned, TableModel", "mystery", "MysteryLM", "mask_token_id=22", "vocab_size=23", "ModelSpec("):
        assert words in message
    assert isinstance(raised.value, InvalidArgumentError)
    with pytest.raises(UnknownModelError, match="classes: function"):
        describe(lambda tokens: tokens)


class Peft(nn.Module):
    """As PEFT keeps its base model; prompt learning has no layer in between."""

    def __init__(self, model, prompt_learning=False):
        super().__init__()
        self.base_model = model
        if not prompt_learning:
            self.base_model = nn.Module()
            self.base_model.model = model
        self.inner = [model]

    def get_base_model(self):
        return self.inner[0]

    def forward(self, *arguments, **keywords):
        return self.get_base_model()(*arguments, **keywords)


class DreamModel(DreamStyleModel):
    pass


class SDARForCausalLM(SDARStyleModel):
    pass


class LLaDAWithLlamasParts(LLaDAStyleModel):
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return super().forward(input_ids, attention_mask, **kwargs)


LLaDAWithLlamasParts.__name__ = "LLaDAModelLM"


@pytest.fixture(params=["Dream", "SDAR", "LLaDA"])
def real(request):
    torch.manual_seed(0)
    cls, config = {
        "Dream": (DreamModel, DreamStyleConfig),
        "SDAR": (SDARForCausalLM, SDARStyleConfig),
        "LLaDA": (LLaDAWithLlamasParts, LLaDAStyleConfig),
    }[request.param]
    return cls(config(vocab_size=97, eos_token_id=None)).eval()


WRAPPED = {
    "itself": (lambda model: model, "model"),
    "PEFT": (Peft, "base_model.model.model"),
    "prompt learning": (lambda model: Peft(model, prompt_learning=True), None),
    "compiled": (lambda model: torch.compile(model, backend="eager"), None),
    "DataParallel": (nn.DataParallel, None),
    "compiled PEFT": (lambda model: torch.compile(Peft(model), backend="eager"), None),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_wrappers_are_looked_through_and_the_tokens_are_the_same(real, wrapped):
    wrap, hidden = WRAPPED[wrapped]
    model = wrap(real)
    found, plain = describe(model), describe(real)
    assert found.family == plain.family
    assert len(found.because) == 1 + len(describe(model).because[1:])
    assert found.spec.hidden == hidden
    assert found.spec == ModelSpec(
        **{**vars(plain.spec), "hidden": hidden, "lm_head": hidden and f"{hidden[:-5]}lm_head"}
    )
    cls = DreamSampler if found.family == "Dream" else LLaDASampler
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
    ours = cls(model).generate(prompts, max_new_tokens=12, temperature=0.7, seed=5)
    without = ModelSpec(**{**vars(plain.spec), "hidden": None, "lm_head": None})
    theirs = cls(real, spec=without).generate(prompts, max_new_tokens=12, temperature=0.7, seed=5)
    assert torch.equal(ours.sequences, theirs.sequences)


def test_under_autocast_the_head_is_left_to_the_model(real):
    cls = DreamSampler if describe(real).family == "Dream" else LLaDASampler
    real.model.norm = nn.Linear(64, 64)  # so that the states are bf16 there, and the head's weights are not
    with torch.autocast("cpu", torch.bfloat16):
        out = cls(real).generate([[1, 2, 3]], max_new_tokens=8)
    assert out.finished.all()


def test_the_description_of_a_real_architecture_holds(real):
    found = describe(real)
    seen = probe(real)
    block = found.spec.block_length
    assert seen.attention == ("bidirectional" if block is None else "block_causal")
    assert seen.block_length == block


def test_a_sampler_of_the_other_family_points_to_the_right_one():
    torch.manual_seed(0)
    dream = DreamModel(DreamStyleConfig(vocab_size=97))
    with pytest.raises(
        InvalidArgumentError, match=r"recognised as Dream \(class DreamModel\).*i \+ 1.*Use DreamSampler"
    ):
        LLaDASampler(dream)
    with pytest.raises(InvalidArgumentError, match="Use DreamSampler"):
        LLaDASampler(dream, mask_id=96)
    assert Sampler(dream).spec.logit_shift == 1
    assert LLaDASampler(dream, spec=ModelSpec(mask_id=96)).spec.logit_shift == 0
    llada = LLaDAWithLlamasParts(LLaDAStyleConfig(vocab_size=97))
    with pytest.raises(InvalidArgumentError, match=r"recognised as LLaDA \(.*Use LLaDASampler"):
        DreamSampler(llada)


def test_a_model_without_a_known_name_has_the_class_contract():
    model = TableModel(0)
    assert LLaDASampler(model).spec == ModelSpec.of(model)
    assert DreamSampler(model).spec.logit_shift == 1
    assert LLaDASampler(lambda tokens: tokens, mask_id=3).spec == ModelSpec(mask_id=3)


class MDLM(nn.Module):
    """Called as the checkpoints are; the time moves its outputs if it is conditioned on it."""

    def __init__(self, time_conditioning):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.config = SimpleNamespace(vocab_size=11, mask_token_id=10, time_conditioning=time_conditioning)

    def forward(self, input_ids, timesteps):
        if not self.config.time_conditioning:
            timesteps = torch.zeros_like(timesteps)
        x = self.embed(input_ids)
        return self.head(torch.tanh(x + x.mean(1, keepdim=True) + timesteps[:, None, None]))


def test_mdlm_is_sampled_as_it_was_conditioned():
    prompts = torch.zeros(3, 2, dtype=torch.int64)
    for timed in (False, True):
        sampler = LLaDASampler(MDLM(timed), policy=AncestralUnmask())
        assert sampler.spec.sees_time is timed
        out = sampler.generate(prompts, max_new_tokens=4, block_length=None, steps=64, temperature=1.0)
        assert out.finished.all()
        assert (out.sequences != 10).all()
        assert (out.nfe <= 4).all()  # a step without a flip costs no forward: the model is told the time of the next
    LLaDASampler(MDLM(False), policy=EventDriven())
    with pytest.raises(InvalidArgumentError, match="sees no time"):
        LLaDASampler(MDLM(True), policy=EventDriven())


def test_lladas_trunk_ends_at_its_norm_in_what_derives_from_it_too():
    states = {"hidden": "model", "lm_head": "model.transformer.ff_out", "hidden_after": "model.transformer.ln_f"}
    for name in ("LLaDAModelLM", "MMadaModelLM"):
        model = seeded(type(name, (llada.LLaDAModelLM,), {}), 0)
        spec = describe(model).spec
        assert {field: getattr(spec, field) for field in states} == states
        adapted = describe(Peft(model)).spec
        assert {field: getattr(adapted, field) for field in states} == {
            field: "base_model.model." + path for field, path in states.items()
        }
        bare = ModelSpec(spec.mask_id, spec.eos_id, parts.V)
        settings = {"max_new_tokens": 8, "block_length": 4}
        expected = LLaDASampler(model, spec=bare).generate([[5, 6], [7]], **settings).sequences
        for whole in (model, Peft(model)):
            assert torch.equal(LLaDASampler(whole).generate([[5, 6], [7]], **settings).sequences, expected)
    unusual = llada.LLaDAModelLM()
    del unusual.model.config.scale_logits
    assert describe(unusual).spec.hidden is None
    assert describe(nn.DataParallel(llada.LLaDAModelLM())).spec.hidden is None
    with pytest.raises(InvalidArgumentError, match="hidden_after goes with hidden"):
        ModelSpec(1, hidden_after="norm")
    model.model.wpe = nn.Identity()
    sampler = LLaDASampler(model, spec=ModelSpec(40, **{**states, "hidden_after": "model.wpe"}))
    with pytest.raises(
        InvalidArgumentError, match=r"spec.hidden_after = 'model.wpe': a forward of LLaDAModel does not"
    ):
        sampler.generate([[1]], max_new_tokens=1)
    with pytest.raises(InvalidArgumentError, match=r"spec.hidden_after = 'no': MMadaModelLM has no such attribute"):
        LLaDASampler(model, spec=ModelSpec(40, **{**states, "hidden_after": "no"}))
