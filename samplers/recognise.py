"""Which family a model belongs to, by the names of its class and its config."""

from __future__ import annotations

from typing import Any

from torch import nn

from dlm_kernels import InvalidArgumentError
from dlm_samplers.models import ModelSpec
from dlm_samplers.models.spec import DREAM, LLADA

BLOCK_CAUSAL: dict[str, Any] = {"attention_mask": "4d_block", "position_ids": "position_ids"}
"""Contract of SDAR and LLaDA2, but for the block."""

FAMILIES: tuple[tuple[str, dict[str, Any], int | None], ...] = (
    # A part of the name, in lower case; the contract; the released block where attention is block-causal.
    ("llada2", BLOCK_CAUSAL, 32),
    ("sdar", BLOCK_CAUSAL, 4),
    ("dream", DREAM, None),
    ("diffucoder", DREAM, None),
    ("llada", LLADA, None),
)


def recognise(model: Any, *, mask_id: int | None = None, eos_id: int | None = None) -> ModelSpec:
    """The description of a LLaDA-, Dream-, SDAR- or LLaDA2-type model; nothing of it is imported or called.

    Raises InvalidArgumentError for any other, and for one without a mask token in its config where `mask_id` is not given.
    """
    config = getattr(model, "config", None)
    names = f"{type(model).__name__} {getattr(config, 'model_type', '')}".lower().replace("-", "").replace("_", "")
    for name, contract, block in FAMILIES:
        if name not in names:
            continue
        defaults = dict(contract)
        if block is not None:
            sizes = (getattr(config, key, None) for key in ("block_length", "block_size"))
            defaults["block_length"] = next((size for size in sizes if isinstance(size, int)), block)
        return ModelSpec.of(model, mask_id=mask_id, eos_id=eos_id, **defaults, **states_of(model))
    known = ", ".join(name for name, *_ in FAMILIES)
    raise InvalidArgumentError(
        f"{type(model).__name__} is not one of the model families known by name ({known}); pass spec=ModelSpec(...)"
    )


def states_of(model: Any) -> dict[str, str]:
    """Fields of `ModelSpec`: where the hidden states and the head are, if they are where transformers' own models have them."""
    head, trunk = getattr(model, "lm_head", None), getattr(model, "model", None)
    found = isinstance(head, nn.Linear) and isinstance(trunk, nn.Module)
    return {"hidden": "model", "lm_head": "lm_head"} if found else {}
