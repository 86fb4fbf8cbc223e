"""Book-keeping of one `generate` call over the caller's whole batch, while rows come into the state and leave it."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.canvas import Prompts, to_caller_layout
from dlm_samplers.models import ModelSpec
from dlm_samplers.output import SamplerOutput
from dlm_samplers.state import SamplerState


class Run:
    """The caller's B rows: canvases, counts, and those still waiting for a place in the batch."""

    def __init__(self, everything: SamplerState, batch_size: int | None, return_history: bool) -> None:
        rows = everything.tokens.shape[0]
        device = everything.tokens.device
        self.tokens = everything.tokens.clone()
        self.editable, self.length = everything.editable.clone(), everything.length.clone()
        self.nfe = torch.zeros(rows, dtype=torch.int64, device=device)
        self.positions = torch.zeros_like(self.nfe)
        self.canvases = torch.zeros_like(self.nfe)
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)
        self.nan = torch.zeros(rows, dtype=torch.bool, device=device)
        self.history = [self.tokens.clone()] if return_history else None
        self.batch_size = rows if batch_size is None else batch_size
        self.waiting = everything
        self.admitted = 0
        self.padded = False
        self.state = everything.take(torch.arange(0, device=device))

    def next_batch(self) -> bool:
        """Takes finished rows out of the state and waiting ones in; False when none is left.

        The loop's one look at device values.
        """
        state = self.state
        if bool(self.nan.any()):
            raise InvalidArgumentError(f"model: NaN logits in row {int(self.nan.int().argmax())} of the batch")
        waiting = self.waiting.tokens.shape[0] - self.admitted
        live = int(state.live.sum())
        if live == state.live.numel() and (not waiting or live >= self.batch_size):
            return live > 0
        self.save()
        if live < state.live.numel():
            state.keep(state.live.nonzero()[:, 0])
        while waiting and (room := self.batch_size - state.live.numel()) > 0:
            admitted = torch.arange(self.admitted, self.admitted + min(room, waiting), device=state.live.device)
            newcomers = self.waiting.take(admitted)
            newcomers.enter_blocks()
            self.admitted, waiting = self.admitted + admitted.numel(), waiting - admitted.numel()
            self.done[admitted] = ~newcomers.live
            newcomers.keep(newcomers.live.nonzero()[:, 0])  # a prompt without blanks needs no place
            state.join(newcomers)
        self._fit()
        return state.live.numel() > 0

    def _fit(self) -> None:
        """Drops columns that no row of the batch uses."""
        state = self.state
        if state.live.numel():
            self.state.become(state.resized(max(int(state.length.max()), 1)))
        self.padded = not bool(state.valid.all())

    def note_nan(self, state: SamplerState, confidence: Tensor, scored: Tensor) -> None:
        found = (confidence.isnan() & scored).any(-1)
        self.nan |= torch.zeros_like(self.nfe).index_add_(0, state.index, found.long()) > 0

    def count(self, state: SamplerState, evaluations: int, columns: Tensor | int) -> None:
        """One forward of `state`, in which a request may have several rows, over `columns` of each."""
        live = state.live.long()
        rows = torch.zeros_like(self.nfe).index_add_(0, state.index, live)
        self.nfe += evaluations * (rows > 0)
        self.canvases += evaluations * rows
        self.positions.index_add_(0, state.index, evaluations * columns * live)

    def open_positions(self) -> int:
        """Masked positions of the whole call."""
        waiting = self.waiting.editable[self.admitted :].sum()
        return int(self.state.masked().sum() + waiting)

    def record(self) -> None:
        if self.history is not None:
            self.save()
            self.history.append(self.tokens.clone())

    def save(self) -> None:
        """The state's rows into the caller's batch."""
        state = self.state
        self.tokens[state.index, : state.width] = state.tokens
        self.editable[state.index, : state.width] = state.editable
        self.length[state.index] = state.length
        self.done[state.index] = ~state.live

    def output(self, spec: ModelSpec, prompts: Prompts, *, finished: bool) -> SamplerOutput:
        if self.state.live.numel():
            self.save()
        done = torch.ones_like(self.done) if finished else self.done
        tokens, eos = self.tokens, spec.eos_id
        column = torch.arange(tokens.shape[1], device=tokens.device)
        generated_region = (column >= prompts.length[:, None]) & (column < self.length[:, None])
        if eos is None:
            end = self.length.clone()
        else:
            # A row that stopped early keeps masks after its end of text; they become end-of-text tokens.
            ended = generated_region & (tokens == eos)
            end = torch.where(ended.any(-1), ended.int().argmax(-1), self.length)
            rest = (tokens == spec.mask_id) & (column > end[:, None]) & self.editable
            tokens = tokens.masked_fill(rest, eos)
        kept = self.editable & (column <= end[:, None]) & (tokens != spec.mask_id)
        return SamplerOutput(
            sequences=to_caller_layout(tokens, self.length, prompts),
            nfe=self.nfe,
            positions=self.positions,
            canvases=self.canvases,
            generated=kept.sum(-1),
            finished=done,
            completions=[
                row[int(start) : int(stop)] for row, start, stop in zip(tokens, prompts.length, end, strict=True)
            ],
            history=[to_caller_layout(canvas, self.length, prompts) for canvas in self.history or []],
        )
