"""`callback_on_step_end` of a diffusers pipeline in this library's loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.models import ModelSpec
from dlm_samplers.sampler import Sampler
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping import StoppingRule


@dataclass(frozen=True)
class StepCallback(StoppingRule):
    """Shows a callback of LLaDA2Pipeline the step of a single row, and stops nothing.

    It is called with the tensors named of `block_x`, the canvas up to the end of the block, and, of the block, `active_block`,
    `transfer_index`, `editing_transfer_index`, `sampled_tokens` and `sampled_probs`, which mean something where a token may
    change. A `block_x` that it returns takes the canvas's place.
    """

    pipe: Any
    function: Any
    names: list[str]
    seen: dict[str, Any] = field(default_factory=dict)

    guarantee = Guarantee.EXACT
    promise = "it stops nothing; a callback that returns another canvas answers for it"

    @classmethod
    def of(cls, pipe: Any, function: Any, names: list[str] | None) -> StepCallback:
        if isinstance(function, (PipelineCallback, MultiPipelineCallbacks)):
            names = function.tensor_inputs
        return cls(pipe, function, ["block_x"] if names is None else names)

    @property
    def wanted(self) -> bool:
        return self.function is not None

    def start(self, state: SamplerState) -> None:
        state.position_memory["callback.tokens"] = state.tokens.clone()

    def stop(self, state: SamplerState, spec: ModelSpec, evaluation: Evaluation) -> Tensor:
        block = slice(int(state.block_start[0]), int(state.block_end[0]))
        before = state.position_memory["callback.tokens"][:, block]
        masked = before == state.mask_id
        if self.seen.get("block") != block:
            self.seen.update(block=block, filling=0)
        changed = state.tokens[:, block] != before
        self.seen.update(
            active_block=masked,
            transfer_index=masked & changed,
            editing_transfer_index=~masked & changed,
            sampled_tokens=evaluation.scores.token[:, block],
            sampled_probs=evaluation.scores.confidence[:, block],
            timestep=self.seen["filling"],
        )
        self.seen["filling"] += int(bool(masked.any()))
        return torch.zeros_like(state.live)

    def call(self, _: Sampler, step: int, state: SamplerState) -> None:
        end = self.seen["block"].stop
        tensors = {name: state.tokens[:, :end].clone() if name == "block_x" else self.seen[name] for name in self.names}
        returned = self.function(self.pipe, step, self.seen["timestep"], tensors)
        if "block_x" in returned:
            state.tokens[:, :end] = returned["block_x"]
        state.position_memory["callback.tokens"] = state.tokens.clone()
