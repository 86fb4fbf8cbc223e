"""The families of models that `describe` recognises: their names and how each is called.

Names, call contracts and default ids were read from the code that the models are published with; constants say where they
come from. An id is assumed only where no configuration names one and the vocabulary has the size it goes with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dlm_kernels import InvalidArgumentError
from dlm_samplers.models.adapter import as_matrix
from dlm_samplers.models.seen import Seen
from dlm_samplers.models.spec import DREAM, LLADA

Ids = tuple[tuple[int, int | None, range], ...]

LLADA_IDS: Ids = ((126336, 126081, range(126349, 126465)),)
"""(mask, end of text, sizes of vocabulary, from the tokenizer's to the embedding's): LLaDA 8B and 1.5."""
MMADA_IDS: Ids = ((126336, 126081, range(126349, 134657)),)
"""The same with 8,192 image codes."""
LLADA_MOE_IDS: Ids = ((156895, 156892, range(156896, 157185)),)
"""LLaDA-MoE and LLaDA2."""
QWEN_DREAM_IDS: Ids = ((151666, 151643, range(151667, 152065)),)
"""Dream and DiffuCoder, on Qwen2.5's vocabulary."""
QWEN_SDAR_IDS: Ids = ((151669, 151643, range(151670, 152065)),)
"""SDAR, on Qwen3's."""
GPT2_MASK_IDS: Ids = ((50257, None, range(50258, 50259)),)
"""MDLM, BD3-LM and SEDD add the mask to GPT-2's 50,257 tokens."""

TWO_D_MASK = (
    "A 2D attention_mask is not block-causal in the published code: of ones it is bidirectional, with a zero causal. The "
    "spec builds the 4D mask; probe(model, spec) shows it."
)
ANCESTRAL = (
    "Its published sampler is compat.mdlm.sample; as a composition LLaDASampler(model, policy=AncestralUnmask()) with "
    "block_length=None and temperature=1.0."
)
EMBEDDED_IMAGES = (
    "An image enters as vectors, which the model's own code makes of it: EmbeddedModel, or generate(inputs_embeds=...)."
)
BLIND_TO_MASKS = (
    "Published code takes an attention_mask and shows it to nothing, so padding is seen: rows of one length at a time, or a "
    "cache, which attends by masks of its own. A copy that honours it: attention_mask='2d'; probe(model, spec) shows it."
)


@dataclass(frozen=True)
class Contract:
    """What a family's rule found out.

    arguments: of ModelSpec, beyond the ids; None: no sampler of masked models can drive it, `instead` says what can.
    ids: defaults.
    mask_id, vocab_size: where the model itself says so.
    """

    arguments: Mapping[str, Any] | None = None
    ids: Ids = ()
    mask_id: int | None = None
    vocab_size: int | None = None
    sampler: str | None = "LLaDASampler"
    notes: tuple[str, ...] = ()
    instead: str | None = None
    token_ranges: Mapping[str, range] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Names, in lower case, and a rule. `applies`: what else has to hold where a name alone would be too common."""

    name: str
    classes: frozenset[str]
    model_types: frozenset[str]
    contract: Callable[[Seen], Contract]
    applies: Callable[[Seen], bool] = lambda seen: True

    def evidence(self, seen: Seen) -> tuple[str, tuple[int, int]] | None:
        """Why a model belongs here, and how far from its own class the name is, the nearest first; None: it does not."""
        if not self.applies(seen):
            return None
        for distance, name in enumerate(seen.classes):
            if name.lower() in self.classes:
                return f"class {name}" + (f", a base of {seen.classes[0]}" if distance else ""), (0, distance)
        for name in seen.architectures:
            if name.lower() in self.classes:
                return f"config.architectures has {name}", (1, 0)
        if seen.model_type is not None and seen.model_type.lower() in self.model_types:
            return f"config.model_type is {seen.model_type!r}", (2, 0)
        return None


def _masks(seen: Seen, contract: Mapping[str, Any], positions: tuple[str, ...] = ()) -> dict[str, Any]:
    """The contract, less what the model's forward does not take."""
    arguments = dict(contract)
    if not seen.takes("attention_mask"):
        return arguments | {"attention_mask": "none", "full_attention_mask": None, "position_ids": None}
    if positions:  # `**kwargs` would swallow a name the model does not know
        arguments["position_ids"] = next((name for name in positions if seen.takes(name, by_name=True)), None)
    return arguments


def _split(seen: Seen, arguments: dict[str, Any]) -> dict[str, Any]:
    """With hidden and lm_head, if the trunk takes what the model takes."""
    found = seen.split("model", "lm_head")
    masked, positions = arguments.get("attention_mask", "2d") != "none", arguments.get("position_ids")
    keywords = [*arguments.get("keywords", {}), *(["attention_mask"] if masked else [])]
    taken = all(seen.takes(name, "model") for name in keywords)
    if taken and (positions is None or seen.takes(positions, "model", by_name=True)):
        arguments |= found
    return arguments


def _without_cache(seen: Seen, arguments: dict[str, Any]) -> dict[str, Any]:
    """Llama's code makes a cache of the whole canvas in every forward unless it is told not to."""
    return arguments | {"keywords": {"use_cache": False}} if seen.takes("use_cache", by_name=True) else arguments


AT_NORM = ("model", "model.transformer.ff_out", "model.transformer.ln_f")
"""LLaDA's trunk, its head, which the trunk applies itself, and what the head is applied to."""


def states_of(model: Any) -> dict[str, Any]:
    """`hidden`, `lm_head` and `hidden_after` of a spec for a model that may be of any family; {} where they are not found."""
    seen = Seen.of(model)
    return seen.split("model", "lm_head") or _split_at_norm(seen, {})[0]


def _split_at_norm(seen: Seen, arguments: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """As `_split`, for a trunk that applies the head itself; and notes."""
    if seen.at(AT_NORM[2]) is None:
        return arguments, ()
    for name in ("scale_logits", "weight_tying"):
        if (value := seen.at(f"model.config.{name}")) is not False:
            note = (
                f"model.config.{name} is {value!r}: logits are more than ff_out of the last norm, or may be. They are read as "
                "they are, and no cache goes with them."
            )
            return arguments, (note,)
    if arguments.get("attention_mask") == "none" or seen.takes("attention_mask", "model", by_name=True):
        arguments |= seen.split(*AT_NORM)
    return arguments, ()


def llada(seen: Seen) -> Contract:
    """Also LLaDA-V's language model, which has LLaDA's name and Llama's parts."""
    arguments = _masks(seen, LLADA)
    if seen.at(AT_NORM[2]) is None:
        return Contract(_split(seen, _without_cache(seen, arguments)), LLADA_IDS)
    arguments, notes = _split_at_norm(seen, arguments)
    return Contract(arguments, LLADA_IDS, notes=notes)


def llada_moe(seen: Seen) -> Contract:
    arguments = _masks(seen, LLADA) | {"attention_mask": "none"}
    return Contract(_split(seen, arguments), LLADA_MOE_IDS, notes=(BLIND_TO_MASKS,))


def dream(seen: Seen) -> Contract:
    arguments = _masks(seen, DREAM, ("position_ids",))
    return Contract(_split(seen, arguments), QWEN_DREAM_IDS, sampler="DreamSampler")


def _blocks(seen: Seen, mask: str, default: int, ids: Ids, note: str) -> Contract:
    block_length = seen.setting("block_length", "block_size")
    notes: tuple[str, ...] = (note,)
    if not isinstance(block_length, int) or isinstance(block_length, bool):
        block_length = default
        notes += (f"block_length: no configuration has it; {default} is that of the published checkpoints.",)
    arguments = _masks(seen, {"attention_mask": mask, "block_length": block_length}, ("position_ids",))
    if arguments["attention_mask"] == "none":
        raise InvalidArgumentError(
            f"model: by its names block-causal, but the forward of {seen.classes[0]} takes no attention_mask; give "
            "spec=ModelSpec(...)"
        )
    return Contract(_split(seen, _without_cache(seen, arguments)), ids, notes=notes)


def llada2(seen: Seen) -> Contract:
    return _blocks(seen, "4d_block_additive", 32, LLADA_MOE_IDS, TWO_D_MASK)


def sdar(seen: Seen) -> Contract:
    note = "Without attention_mask the published code is bidirectional; the spec builds the 4D block mask."
    return _blocks(seen, "4d_block", 4, QWEN_SDAR_IDS, note)


TIME_ARGUMENTS = ("timesteps", "sigma")


def mdlm(seen: Seen) -> Contract:
    """The checkpoint's class, `model(input_ids, timesteps)`, or its network, `model(indices, sigma)`: logits before SUBS."""
    time = next(name for name in TIME_ARGUMENTS if seen.takes(name, by_name=True))
    arguments = {"time_argument": time, "sees_time": bool(seen.setting("time_conditioning"))}
    if not seen.takes("attention_mask", by_name=True):
        arguments["attention_mask"] = "none"
    return Contract(arguments, GPT2_MASK_IDS, notes=(ANCESTRAL,))


def bd3lm(seen: Seen) -> Contract:
    """As MDLM; with `sample_mode` the input is a canvas, else a canvas and its clean text side by side."""
    contract = mdlm(seen)
    assert contract.arguments is not None
    arguments = {**contract.arguments, "attention_mask": "none", "keywords": {"sample_mode": True}}
    notes: tuple[str, ...] = ()
    if seen.setting("cross_attn") is not False:
        block_size = seen.setting("block_size")
        if not isinstance(block_size, int):
            raise InvalidArgumentError(
                "model: recognised as BD3-LM, and its config has no block_size; give spec=ModelSpec(...)"
            )
        arguments["block_length"] = block_size
        if seen.setting("attn_backend") == "flex":
            notes = ("Its forward samples with config.attn_backend = 'sdpa' alone, and this one is 'flex'.",)
    return Contract(arguments, GPT2_MASK_IDS, notes=notes)


PARAMETERIZATIONS = {"subs": "subs", "d3pm": "logits", "sedd": "log_score"}


def lightning(seen: Seen) -> Contract:
    """The training module of MDLM's repository, `model(x, sigma)`."""
    inner = seen.inner
    if inner.parameterization not in PARAMETERIZATIONS:
        return Contract(
            instead=f"its parameterization is {inner.parameterization!r}; {sorted(PARAMETERIZATIONS)} are absorbing diffusion"
        )
    arguments = {
        "attention_mask": "none",
        "time_argument": "sigma",
        "sees_time": bool(inner.time_conditioning),
        "output": PARAMETERIZATIONS[inner.parameterization],
    }
    return Contract(arguments, mask_id=int(inner.mask_index), vocab_size=int(inner.vocab_size), notes=(ANCESTRAL,))


def sedd(seen: Seen) -> Contract:
    tokens = seen.setting("tokens")
    absorb = seen.setting("graph.type") == "absorb" or getattr(seen.inner, "absorb", None) is True
    if not absorb:
        return uniform(seen)
    arguments = {"attention_mask": "none", "time_argument": "sigma", "sees_time": True, "output": "log_score"}
    size = None if tokens is None else int(tokens) + 1
    return Contract(arguments, GPT2_MASK_IDS, mask_id=None if tokens is None else int(tokens), vocab_size=size)


def uniform(seen: Seen) -> Contract:
    return Contract(
        sampler=None,
        instead="its noise replaces tokens by random ones, so there is no mask to fill, and samplers of masked models do not "
        "apply. One step is dlm_kernels.uniform_step_, for log scores dlm_kernels.score_entropy_step_(graph='uniform')",
    )


def diffusion_gemma(seen: Seen) -> Contract:
    return Contract(
        sampler=None,
        instead="an encoder reads the prompt and a decoder denoises a canvas of random tokens, without a mask. Use "
        "DiffusionGemmaSampler of dlm_samplers.integrations.transformers.diffusion_gemma, or diffusers' DiffusionGemmaPipeline "
        "with a scheduler of dlm_samplers.integrations.diffusers",
    )


def mmada(seen: Seen) -> Contract:
    """LLaDA with image codes behind the text vocabulary (its `t2i_generate` reads that range of the logits)."""
    ranges = {}
    text, codes = seen.setting("llm_vocab_size"), seen.setting("codebook_size")
    if isinstance(text, int) and isinstance(codes, int):
        first = text + (seen.setting("num_new_special_tokens") or 0)
        ranges = {"text": range(first), "image": range(first, first + codes)}
    notes = (
        "Logits cover text and image codes: for text suppress the image's (ModelSpec.suppressed_ids), for images the text's, "
        "with token_ranges.",
    )
    arguments, more = _split_at_norm(seen, {**_masks(seen, LLADA), "vocab_size": None})
    return Contract(arguments, MMADA_IDS, notes=notes + more, token_ranges=ranges)


def llada_v(seen: Seen) -> Contract:
    """Its own forward fails on vectors, and on a mask without an image, so its trunk is called."""
    arguments = _split(seen, _without_cache(seen, _masks(seen, LLADA)))
    return Contract({**arguments, "vocab_size": None}, LLADA_IDS, notes=(EMBEDDED_IMAGES,))


def lavida(seen: Seen) -> Contract:
    return Contract(
        sampler=None,
        instead="its forward is a step of training, which wants labels. Describe and sample model.get_model(), whose forward "
        "returns logits",
    )


def lavida_trunk(seen: Seen) -> Contract:
    """LLaDA's trunk, which applies the head itself; the outer model knows no more than it."""
    arguments = _masks(seen, LLADA) | {"attention_mask": "none", "vocab_size": None}
    images = (
        "An image enters as vectors, which the model's own code makes of it: EmbeddedModel(model, spec, vectors, "
        "embed=model.transformer.wte, argument='input_embeddings')."
    )
    config = getattr(seen.inner, "config", None)
    plain = all(getattr(config, name, None) is False for name in ("scale_logits", "weight_tying"))
    if plain and as_matrix(seen.at("transformer.ff_out")) is not None and seen.path is not None:
        path = seen.path
        arguments |= {"hidden": f"{path}forward", "lm_head": f"{path}transformer.ff_out"}
        arguments["hidden_after"] = f"{path}transformer.ln_f"
    return Contract(arguments, LLADA_IDS, notes=(images, BLIND_TO_MASKS))


def _returns_logits(seen: Seen) -> bool:
    """LLaDA-V's trunk, but for the case of its letters, has the same name, and returns states."""
    return seen.at("transformer.ff_out") is not None


def _is_masked_backbone(seen: Seen) -> bool:
    """Duo's network has the same name."""
    return _is_told_the_time(seen) and seen.setting("parameterization") in PARAMETERIZATIONS


def _is_told_the_time(seen: Seen) -> bool:
    return any(seen.takes(name, by_name=True) for name in TIME_ARGUMENTS)


def _is_training_module(seen: Seen) -> bool:
    return seen.has("parameterization", "mask_index", "vocab_size", "time_conditioning", "backbone")


def _names(*names: str) -> frozenset[str]:
    return frozenset(name.lower() for name in names)


FAMILIES = (
    Family("MMaDA", _names("MMadaModelLM"), _names("mmada"), mmada),
    Family("LaViDa", _names("LlavaLladaForMaskedDiffusion"), frozenset(), lavida),
    Family("LaViDa's trunk", _names("LlavaLladaModel"), frozenset(), lavida_trunk, _returns_logits),
    Family("LLaDA-V", _names("LlavaLLaDAModelLM"), _names("llava_llada"), llada_v),
    Family("LLaDA-MoE", _names("LLaDAMoEModelLM"), _names("llada_moe", "lladamoe"), llada_moe),
    Family("LLaDA2", _names("LLaDA2MoeModelLM"), _names("llada2_moe", "llada2_moe_veomni"), llada2),
    Family("LLaDA", _names("LLaDAModelLM"), _names("llada"), llada),
    Family("Dream", _names("DreamModel"), _names("dream"), dream),
    Family("SDAR", _names("SDARForCausalLM", "SDARMoeForCausalLM"), _names("sdar", "sdar_moe"), sdar),
    Family("MDLM", _names("MDLM"), _names("mdlm"), mdlm, _is_told_the_time),
    Family("MDLM's network", _names("DIT", "DiMamba"), frozenset(), mdlm, _is_masked_backbone),
    Family("BD3-LM", _names("BD3LM"), _names("bd3lm"), bd3lm, _is_told_the_time),
    Family("MDLM's training module", _names("Diffusion"), frozenset(), lightning, _is_training_module),
    Family("SEDD", _names("SEDD"), _names("sedd"), sedd, _is_told_the_time),
    Family("uniform-state diffusion (Duo, UDLM)", _names("DUO", "DUO_BASE", "UDLM"), _names("duo", "udlm"), uniform),
    Family(
        "DiffusionGemma",
        _names("DiffusionGemmaForBlockDiffusion"),
        _names("diffusion_gemma", "diffusion_gemma_text"),
        diffusion_gemma,
    ),
)
