"""How many canvases a forward evaluates for each row."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.loop import Loop

WIDTHS = (1, 2, 4, 8, 16)
MOST = WIDTHS[-1]
FORWARDS_BETWEEN_LOOKS = {"cpu": 1}
"""A look at how the drafts fare, and at how much is left to do, waits for the device; on a CPU it costs nothing."""
DEFAULT_FORWARDS_BETWEEN_LOOKS = 4
HOPE, HOPE_WEIGHT = 0.9, 16.0
"""Before anything is known: the share of guesses that turn out right, and how many guesses that opinion is worth."""
FADING = 0.9
"""What earlier forwards count for after a look: drafts fare differently at the start of a text and at its end."""
TIMINGS = 3

COSTS: WeakKeyDictionary[Any, dict[tuple[Any, ...], float]] = WeakKeyDictionary()
"""Seconds of a forward, per model and (device, rows and columns rounded up to powers of two, width, guidance, policy)."""


class Width:
    """The width of each forward of one `generate` call."""

    def __init__(self, loop: Loop, setting: int | Literal["auto"], trial: Callable[[SamplerState, int], None]) -> None:
        """trial: does what a forward of a state at a width does, and forgets it."""
        self.loop = loop
        self.trial = trial
        self.setting = setting
        self.forwards = 0
        self.chosen = 1
        self.guesses = torch.tensor([HOPE * HOPE_WEIGHT, (1 - HOPE) * HOPE_WEIGHT])  # right, wrong
        self.walks = torch.zeros(2, len(WIDTHS))  # steps made at each width or up to it, rows counted there
        self.unread: list[Tensor] = []
        self.own_costs: dict[tuple[Any, ...], float] = {}

    def choose(self, state: SamplerState) -> int:
        self.forwards += 1
        if self.forwards == 1:
            return 1  # nothing to draft from
        device = state.tokens.device.type
        if (self.forwards - 2) % FORWARDS_BETWEEN_LOOKS.get(device, DEFAULT_FORWARDS_BETWEEN_LOOKS) == 0:
            left = int(state.masked().sum(-1).max())  # a step commits one position at least
            self.chosen = max(1, min(left, self._best(state) if self.setting == "auto" else self.setting))
        return self.chosen

    def learn(self, path: Tensor, live: Tensor) -> None:
        """The walks [B, W] of a forward: with nodes in the order of their promise, they tell of every smaller width too."""
        width = path.shape[1]
        if self.setting != "auto" or width == 1:
            return
        rows = live.sum()
        within = [(path < most).long().cumprod(-1).sum(-1) * live for most in WIDTHS if most <= width]
        steps = torch.stack([steps.sum() for steps in within])
        all_steps = (path < width).sum(-1)
        right, wrong = ((all_steps - 1) * live).sum(), ((all_steps < width) & live).sum()
        self.unread.append(torch.cat([torch.stack([right, wrong, rows]), steps]))

    def _read(self) -> None:
        for right, wrong, rows, *steps in (seen.tolist() for seen in self.unread):
            self.guesses += torch.tensor([right, wrong])
            self.walks[:, : len(steps)] *= FADING
            self.walks[0, : len(steps)] += torch.tensor(steps)
            self.walks[1, : len(steps)] += rows
        self.unread.clear()

    def _best(self, state: SamplerState) -> int:
        """The width with the most expected steps a second."""
        self._read()
        rows = 1 << (state.live.numel() - 1).bit_length()
        alone = self._seconds(state, rows, 1)
        best, most = 1, 1 / alone
        for width, steps in list(zip(WIDTHS, self.expected(), strict=True))[1:]:
            seconds = self._seconds(state, rows, width)
            if steps / seconds > most:
                best, most = width, steps / seconds
            if seconds >= width * alone:
                break  # more canvases than this cannot pay, even if every guess is right
        return best

    def expected(self) -> list[float]:
        """Steps a forward at each of WIDTHS: as counted, and beyond the widths tried with the same share of right guesses."""
        right = float(self.guesses[0] / self.guesses.sum())
        geometric = [sum(right**n for n in range(width)) for width in WIDTHS]
        scale, steps = 1.0, []
        for (total, rows), guess in zip(self.walks.T.tolist(), geometric, strict=True):
            scale = total / rows / guess if rows else scale
            steps.append(scale * guess)
        return steps

    def _seconds(self, state: SamplerState, rows: int, width: int) -> float:
        """Of one forward of so many rows like these at this width, with all that goes with it; timed once."""
        model, device = self.loop.sampler.adapter.model, state.tokens.device
        try:
            costs = COSTS.setdefault(model, {})
        except TypeError:  # a callable that cannot be remembered
            costs = self.own_costs
        columns = 1 << (state.width - 1).bit_length()
        key = (device, rows, width, columns, bool(self.loop.cfg_scale), str(self.loop.sampler.policy))
        if key not in costs:
            costs[key] = self._time(state, rows, width)
        return costs[key]

    def _time(self, state: SamplerState, rows: int, width: int) -> float:
        sample = state.take(torch.arange(rows, device=state.tokens.device) % state.live.numel())
        times = []
        try:
            for _ in range(1 + TIMINGS):
                begin = time.perf_counter()
                self.trial(sample, width)
                times.append(time.perf_counter() - begin)
        except torch.OutOfMemoryError:
            return math.inf
        return min(times[1:])
