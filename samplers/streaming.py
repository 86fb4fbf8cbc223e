"""Showing text while it is generated: streamers and the progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.state import SamplerState


class Streamer(Protocol):
    """The streamer protocol of transformers; `put_draft(value=canvas [1, L])`, called every step, is optional."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


class StreamWriter:
    """Feeds a streamer: the prompt, the canvas after each step, and generated tokens once they and all before are final."""

    def __init__(self, streamer: Streamer, state: SamplerState, revised: bool) -> None:
        """revised: tokens of the current block may still be taken back."""
        if state.tokens.shape[0] != 1:
            raise InvalidArgumentError(f"streamer works for a single row, got a batch of {state.tokens.shape[0]}")
        self.streamer = streamer
        self.revised = revised
        self.sent = int(state.prompt_length[0])
        streamer.put(state.tokens[:, : self.sent])

    def step(self, state: SamplerState) -> None:
        draft = getattr(self.streamer, "put_draft", None)
        if draft is not None:
            draft(value=state.tokens)
        masked = state.masked()[0, self.sent : int(state.length[0])]
        settled = self.sent + (int(masked.int().argmax()) if bool(masked.any()) else masked.numel())
        self._put(state.tokens, min(settled, int(state.block_start[0])) if self.revised else settled)

    def end(self, tokens: Tensor, length: int) -> None:
        """tokens [1, L]: the canvas, of which `length` columns are in use."""
        if self.revised:
            self._put(tokens, length)
        self.streamer.end()

    def _put(self, tokens: Tensor, settled: int) -> None:
        if settled > self.sent:
            self.streamer.put(tokens[:, self.sent : settled])
            self.sent = settled


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A rich progress bar over `total` tokens; yields the function that says how many are committed."""
    try:
        from rich.progress import Progress
    except ImportError as error:
        raise InvalidArgumentError("progress=True needs rich: pip install 'dlm-kernels[bench]'") from error
    with Progress(transient=True) as bar:
        task = bar.add_task("denoising", total=total)
        yield lambda tokens: bar.update(task, completed=tokens)
