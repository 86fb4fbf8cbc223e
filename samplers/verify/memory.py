"""What verification remembers of a row: the scores that the last verified canvas got."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels import TokenScores
from dlm_samplers.state import SamplerState

PREFIX = "draft_verify."


def reserve(state: SamplerState) -> None:
    """Nothing known yet: every position proposes to stay masked, which makes no new draft."""
    for name in TokenScores._fields:
        state.position_memory[_key(name)] = torch.zeros_like(state.tokens, dtype=torch.float32)
    state.position_memory[_key("token")] = torch.full_like(state.tokens, state.mask_id)


def remember(state: SamplerState, scores: TokenScores, scored: Tensor) -> None:
    """Scores [B, L] where `scored`."""
    for name, value in scores._asdict().items():
        unknown = state.mask_id if name == "token" else 0
        state.position_memory[_key(name)] = value.masked_fill(~scored, unknown)


def recall(state: SamplerState) -> TokenScores:
    return TokenScores(*(state.position_memory[_key(name)] for name in TokenScores._fields))


def ours(name: str) -> bool:
    """Whether a name in the state's memory is verification's own."""
    return name.startswith(PREFIX)


def fresh(memory: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy that the parts may write to; of what is ours, which they do not know, only the names."""
    return {name: value if ours(name) else value.clone() for name, value in memory.items()}


def _key(name: str) -> str:
    return PREFIX + name
