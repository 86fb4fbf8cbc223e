"""The transformer of `dlm_benches.transformer` in the form of Hugging Face models, called as the published ones are."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dlm_benches.architectures.config import (
    DreamStyleConfig,
    LLaDA2StyleConfig,
    LLaDAStyleConfig,
    MaskedDiffusionConfig,
    SDARStyleConfig,
)
from dlm_benches.tiny.load import folder_of
from dlm_benches.transformer import Attention, Trunk


def attend(
    attention: Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> Tensor:
    """Attention through transformers' interface, which caches hook into."""
    function = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    return function(attention, query, key, value, mask, dropout=0.0, scaling=attention.scaling, **kwargs)[0]


class _Pretrained(PreTrainedModel):
    config_class = MaskedDiffusionConfig
    base_model_prefix = "model"
    _no_split_modules: ClassVar[list[str]] = ["Layer"]
    _supports_sdpa = True
    _supports_attention_backend = True


class PretrainedTrunk(Trunk, _Pretrained):
    """The trunk, whose attention goes through transformers' interface."""

    def __init__(self, config: MaskedDiffusionConfig) -> None:
        _Pretrained.__init__(self, config)
        self.build(config, attend)
        self.post_init()


class MaskedDiffusionModel(_Pretrained):
    """Trunk and LM head: logits [B, L, V]."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MaskedDiffusionConfig) -> None:
        super().__init__(config)
        self.model = PretrainedTrunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Arguments as for the trunk."""
        states = self.model(input_ids, attention_mask, past_key_values=past_key_values, **kwargs)
        return CausalLMOutputWithPast(logits=self.lm_head(states), past_key_values=past_key_values)


class LLaDAStyleModel(MaskedDiffusionModel):
    """Called as LLaDA is: `model(ids, attention_mask=[B, L] or None)`."""

    config_class = LLaDAStyleConfig


class DreamStyleModel(MaskedDiffusionModel):
    """Called as Dream is: `model(ids, "full" or [B, 1, L, L], position_ids)`; output i predicts position i + 1."""

    config_class = DreamStyleConfig

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        return super().forward(input_ids, attention_mask, position_ids=position_ids, **kwargs)


class SDARStyleModel(MaskedDiffusionModel):
    """Called as SDAR is: `model(ids, mask, position_ids=, past_key_values=, store_kv=)`; no mask: block-causal."""

    config_class = SDARStyleConfig


class LLaDA2StyleModel(MaskedDiffusionModel):
    """Called as LLaDA2's released code is, and reads masks as that does: 4D ones as they are, bool or added; a 2D mask of ones,
    or none, is full attention, and one with a zero causal attention. Blocks are the caller's to ask for.
    """

    config_class = LLaDA2StyleConfig

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Any = None, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        if input_ids is not None and (attention_mask is None or attention_mask.ndim == 2):
            rows, length = input_ids.shape
            seen = torch.ones(rows, 1, length, length, dtype=torch.bool, device=input_ids.device)
            if attention_mask is not None and not bool(attention_mask.all()):
                own = torch.eye(length, dtype=torch.bool, device=input_ids.device)
                seen = (seen.tril() & attention_mask.bool()[:, None, None]) | own
            attention_mask = seen
        return super().forward(input_ids, attention_mask, **kwargs)


def trained(name: str) -> LLaDAStyleModel:
    """A bundled model as `dlm_benches.tiny.load.load` gives it, but a Hugging Face model: float32, evaluation mode.

    Raises `CheckpointError` for an unknown name.
    """
    return LLaDAStyleModel.from_pretrained(folder_of(name)).float().eval().requires_grad_(False)
