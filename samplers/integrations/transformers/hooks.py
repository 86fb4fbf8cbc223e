"""Logits processors, stopping criteria and streamers of transformers in this library's loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.models import ModelSpec
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping import StoppingRule

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler


def by_position(processor: Callable[..., Any], mask_id: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A processor of transformers, `f(input_ids [B, n], scores [B, V])`, as one of `Sampler.generate`.

    It is called for every column that is masked in some row, with the tokens left of it, among them masks, and its scores in
    fp32: what it knows as the next token is the column's. It has to be a function of these alone.
    """

    def process(tokens: Tensor, logits: Tensor) -> Tensor:
        processed = logits.to(torch.float32, copy=True)
        for column in (tokens == mask_id).any(0).nonzero()[:, 0].tolist():
            processed[:, column] = processor(tokens[:, :column], processed[:, column])
        return processed

    return process


@dataclass(frozen=True)
class StopWhen(StoppingRule):
    """A row ends at the first token at which a stopping criterion of transformers, `f(input_ids [1, n], scores) -> bool [1]`,
    holds.

    It is asked about every token once that and all before it are settled, in their order; `scores` is None. Reads the canvas
    back from the device.
    """

    criterion: Callable[..., Any] = field(repr=False)
    kept: Tensor = field(repr=False)
    """int64 [rows of the call], written: generated tokens up to the end; -1 for rows that no criterion ended."""
    settled: dict[int, int] = field(default_factory=dict, repr=False)
    """Columns of each row that the criterion has been asked about."""

    guarantee = Guarantee.TEXT_EXACT
    promise = "what is left of the end is final, and the rest is not asked for"

    def check(self, sampler: Sampler) -> None:
        if sampler.remask is not None:
            raise InvalidArgumentError("stopping_criteria need final tokens: leave them out with remask=")

    def stop(self, state: SamplerState, spec: ModelSpec, evaluation: Evaluation) -> Tensor:
        masked = state.masked()
        stopped = torch.zeros_like(state.live)
        settled = torch.where(masked.any(-1), masked.int().argmax(-1), state.length).tolist()
        rows = zip(state.index.tolist(), state.prompt_length.tolist(), settled, state.live.tolist(), strict=True)
        for row, (request, prompt, until, live) in enumerate(rows):
            for length in range(self.settled.get(request, prompt) + 1, until + 1 if live else 0):
                if bool(torch.as_tensor(self.criterion(state.tokens[row : row + 1, :length], None)).all()):
                    self.kept[request] = length - prompt
                    stopped[row] = True
                    break
            self.settled[request] = max(until, prompt)
        return stopped


class UntilEnd:
    """A streamer that gets nothing of what comes after the end of its row."""

    def __init__(self, streamer: Any, eos_ids: tuple[int, ...], kept: Tensor, limit: int) -> None:
        """kept: of `StopWhen`; limit: generated tokens that were asked for."""
        self.streamer, self.eos_ids, self.kept, self.limit = streamer, set(eos_ids), kept, limit
        self.sent: int | None = None
        """Generated tokens; None before the prompt."""
        self.over = False
        if hasattr(streamer, "put_draft"):
            self.put_draft = streamer.put_draft

    def put(self, value: Tensor) -> None:
        if self.sent is None:
            self.streamer.put(value.cpu())
            self.sent = 0
            return
        if self.over:
            return
        tokens = value[0].tolist()
        count = next((place + 1 for place, token in enumerate(tokens) if token in self.eos_ids), len(tokens))
        end = int(self.kept[0]) if self.kept[0] >= 0 else self.limit
        count = min(count, end - self.sent)
        self.over = self.sent + count == end or tokens[count - 1] in self.eos_ids
        if count > 0:
            self.streamer.put(value[:, :count].cpu())
            self.sent += count

    def end(self) -> None:
        self.streamer.end()
