"""What `generate` returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class SamplerOutput:
    """The finished batch.

    sequences: int64 [B, L], prompt included, padded on the side the input was padded on.
    nfe: int64 [B], model evaluations in which the row took part (2 a step under classifier-free guidance): its latency.
    canvases: int64 [B], canvases evaluated for the row: its cost. As nfe, except under `verify`, which evaluates several in
        one forward.
    positions: int64 [B], canvas columns that the model computed for the row, padding included: what a cache saves.
    generated: int64 [B], tokens generated, up to and including the end-of-text token.
    finished: bool [B]; False only in the output carried by `GenerationInterrupted`.
    completions: per row the generated tokens, int64 [n], without prompt, end-of-text token and what follows it.
    history: with return_history=True, int64 [B, L] canvases, one per step, the first before any step; else empty.
    """

    sequences: Tensor
    nfe: Tensor
    canvases: Tensor
    positions: Tensor
    generated: Tensor
    finished: Tensor
    completions: list[Tensor]
    history: list[Tensor] = field(default_factory=list)

    @property
    def tokens_per_forward(self) -> Tensor:
        """float32 [B]: generated tokens per model evaluation; 0 for a row that needed none."""
        return torch.where(self.nfe > 0, self.generated / self.nfe.clamp(min=1), 0.0)


class GenerationInterrupted(KeyboardInterrupt):
    """Ctrl-C during `generate`. `output` holds the whole batch as it was, `output.finished` says which rows are done."""

    def __init__(self, output: SamplerOutput) -> None:
        done, rows = int(output.finished.sum()), output.finished.numel()
        super().__init__(f"interrupted with {done} of {rows} rows finished; they are in .output")
        self.output = output
