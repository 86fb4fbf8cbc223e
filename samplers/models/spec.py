"""The description of a diffusion language model that a sampler needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from dlm_kernels import InvalidArgumentError

MaskFormat = Literal["none", "2d", "4d_bool", "4d_block", "4d_block_additive"]
Output = Literal["logits", "subs", "log_score"]


@dataclass(frozen=True)
class ModelSpec:
    """How to call a masked (absorbing) diffusion language model.

    mask_id: the mask token. eos_id: end of text; None if there is none.
    vocab_size: width of the logits; None: taken from the first forward.
    logit_shift: 0 if output i predicts position i (LLaDA); 1 if it predicts position i + 1 (Dream: adapted from an
        autoregressive model; position 0 reads its own output).
    attention_mask: what the model gets as `attention_mask` when a batch has padding. "2d": [B, L] int64, 1 on real
        tokens (LLaDA). "4d_bool": [B, 1, L, L] bool, the outer product (Dream). "4d_block": bool, that and block-causal, with
        or without padding (SDAR). "4d_block_additive": the same as 0 and -inf in the model's own dtype (LLaDA2). "none": the
        model cannot ignore padding, so all rows of a batch must have the same length.
    full_attention_mask: what it gets when there is no padding: None, or the string that Dream's code expects.
    position_ids: name of the keyword for [B, L] position ids, which are passed only with padding and with block masks; None:
        never passed.
    block_length: of block-causal attention, in columns from the left edge, which are then the sampler's blocks; None: every
        position sees every other.
    any_attention: the model honours any [B, 1, L, L] bool `attention_mask`, True where a row's query may look at a column's
        key, together with position ids, which may repeat. For methods that show it more than a canvas.
    suppressed_ids: tokens never generated; None means the mask token alone.
    hidden, lm_head: attributes of the model: what is called like the model and returns the states [B, L, D] (or an object
        with .last_hidden_state) that the head, a linear layer, is applied to. With both, logits are computed at the
        positions that may change alone, and never held. None: the model is called for its logits, as it is, with a warning,
        where the head is more than a matrix (quantised, with LoRA).
    hidden_after: for a trunk that applies the head itself, as LLaDA's does: attribute of the model, a module whose output the
        states are; the trunk's forward ends there. None: the trunk returns them.
    attention: class name of the modules that call `torch.nn.functional.scaled_dot_product_attention`, once a forward each, in
        a model that takes `position_ids`; for caches. None: that of published code is known, and other models attend through
        transformers' attention interface or take windows.
    sees_time: the model knows how far a row is in more ways than by its masks: what it says of a canvas holds for one step, and
        unless it is told the time no forward may be left out.
    time_argument: name of the model's keyword for the noise level sigma, float32 [B], e^-sigma being the share of clean tokens;
        None: there is none. Without `sees_time` it gets zeros, as MDLM does when it is trained without time conditioning (a log
        score: sigma all the same, for its scale).
    output: what the model returns. "logits": logits or log-probabilities of each position's token. "subs": log-probabilities
        that repeat the token where there is one (MDLM's SUBS), so that they say nothing of it. "log_score": SEDD's log score
        log p_t(x with token v at i) - log p_t(x) of the absorbing process, see `Adapter`.
    keywords: further keywords of every call.
    """

    mask_id: int
    eos_id: int | None = None
    vocab_size: int | None = None
    logit_shift: Literal[0, 1] = 0
    attention_mask: MaskFormat = "2d"
    full_attention_mask: str | None = None
    position_ids: str | None = None
    block_length: int | None = None
    any_attention: bool = False
    suppressed_ids: tuple[int, ...] | None = None
    hidden: str | None = None
    lm_head: str | None = None
    hidden_after: str | None = None
    attention: str | None = None
    sees_time: bool = False
    time_argument: str | None = None
    output: Output = "logits"
    keywords: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.logit_shift not in (0, 1):
            raise InvalidArgumentError(f"logit_shift must be 0 or 1, got {self.logit_shift!r}")
        if self.attention_mask not in get_args(MaskFormat):
            raise InvalidArgumentError(
                f"attention_mask must be one of {get_args(MaskFormat)}, got {self.attention_mask!r}"
            )
        if self.block_length is not None and self.block_length < 1:
            raise InvalidArgumentError(f"block_length must be at least 1 or None, got {self.block_length}")
        if self.attention_mask.startswith("4d_block") and self.block_length is None:
            raise InvalidArgumentError(f"attention_mask={self.attention_mask!r} needs block_length")
        if self.output not in get_args(Output):
            raise InvalidArgumentError(f"output must be one of {get_args(Output)}, got {self.output!r}")
        if self.hidden is not None and (self.time_argument is not None or self.output != "logits"):
            raise InvalidArgumentError(
                "hidden goes with output='logits' and without time_argument: the head of the others is more than a linear layer"
            )
        if (self.hidden is None) != (self.lm_head is None):
            raise InvalidArgumentError("hidden and lm_head go together: give both or neither")
        if self.hidden_after is not None and self.hidden is None:
            raise InvalidArgumentError("hidden_after goes with hidden, the trunk whose forward ends after it")
        if self.any_attention and self.position_ids is None:
            raise InvalidArgumentError("any_attention needs position_ids, the name of the model's keyword for them")
        for name in ("mask_id", "eos_id"):
            token = getattr(self, name)
            if token is None and name == "eos_id":
                continue
            if isinstance(token, bool) or not isinstance(token, int) or token < 0:
                raise InvalidArgumentError(f"{name} must be a token id (int >= 0), got {token!r}")
            if self.vocab_size is not None and token >= self.vocab_size:
                raise InvalidArgumentError(f"{name} = {token} is outside the vocabulary of {self.vocab_size} tokens")

    @property
    def never(self) -> tuple[int, ...]:
        """Token ids that the sampler suppresses."""
        return (self.mask_id,) if self.suppressed_ids is None else self.suppressed_ids

    @property
    def fill_id(self) -> int:
        """What stands in columns a row does not use: the end-of-text token if there is one."""
        return self.mask_id if self.eos_id is None else self.eos_id

    @classmethod
    def of(cls, model: Any, *, mask_id: int | None = None, eos_id: int | None = None, **defaults: Any) -> ModelSpec:
        """A description filled from the arguments, then from `model.config`, then from `defaults`.

        Raises InvalidArgumentError when no mask token can be found.
        """
        config = getattr(model, "config", None)

        def from_config(*names: str) -> Any:
            for name in names:
                value = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
            return None

        if mask_id is None:
            mask_id = from_config("mask_token_id", "mask_id")
        if eos_id is None:
            eos_id = from_config("eos_token_id", "eos_id")
        if mask_id is None:
            raise InvalidArgumentError(
                "mask_id is missing: the model has no config.mask_token_id, so pass mask_id= or spec=ModelSpec(mask_id=...)"
            )
        vocab_size = from_config("vocab_size")
        # Checkpoints pad the embedding, not the other way round: a smaller config value is wrong, so it is not used.
        if vocab_size is not None and vocab_size <= mask_id:
            vocab_size = None
        return replace(cls(mask_id=mask_id, eos_id=eos_id, vocab_size=vocab_size), **defaults)


LLADA: dict[str, Any] = {}
"""Contract of LLaDA 8B, 1.5, MoE: unshifted logits, 2D attention mask, rotary positions by column."""

DREAM: dict[str, Any] = {
    "logit_shift": 1,
    "attention_mask": "4d_bool",
    "full_attention_mask": "full",
    "position_ids": "position_ids",
}
"""Contract of Dream and DiffuCoder."""

BLOCK_CAUSAL: dict[str, Any] = {"attention_mask": "4d_block", "position_ids": "position_ids"}
"""Contract of SDAR and of LLaDA2 under a bool mask, but for the block."""
