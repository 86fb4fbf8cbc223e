"""Takes times and memory: all candidates of a case take turns in one process, so that the machine's noise meets them alike."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

SECONDS_PER_CASE = 4.0  # for the quick candidates, after the rounds of all
SLOW = 0.3  # seconds of a first call; such a candidate takes part in the first rounds only
FEWEST_ROUNDS, MOST_ROUNDS = 3, 25
LEAST_SECONDS = 0.5  # calls of microseconds are repeated beyond MOST_ROUNDS until then

Candidate = Callable[[], Any]
# "cpu" is the time that the process's threads ran. With one thread it is what the wall clock shows on a quiet machine, but for
# the caches and the memory bandwidth that others take; with more it is their sum, and waiting costs as well.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def interleave(
    candidates: dict[str, Candidate],
    restore: Callable[[], None],
    seconds: float = SECONDS_PER_CASE,
    clock: str = "wall",
) -> dict[str, list[float]]:
    """Seconds of every call after a first one; the i-th entries of all lists are of the same round."""
    slow = set()
    for name, candidate in candidates.items():
        if timed(candidate, restore, clock) > SLOW:
            slow.add(name)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    begin, round_ = time.perf_counter(), 0
    while True:
        for name, candidate in candidates.items():
            if round_ < FEWEST_ROUNDS or name not in slow:
                times[name].append(timed(candidate, restore, clock))
        round_ += 1
        elapsed = time.perf_counter() - begin
        if round_ == FEWEST_ROUNDS:
            if len(slow) == len(candidates):
                return times
            begin, elapsed = time.perf_counter(), 0.0  # the slow ones have left
        if round_ >= FEWEST_ROUNDS and (elapsed > seconds or (round_ >= MOST_ROUNDS and elapsed > LEAST_SECONDS)):
            return times


def timed(candidate: Candidate, restore: Callable[[], None], clock: str) -> float:
    now = CLOCKS[clock]
    restore()
    begin = now()
    candidate()
    return now() - begin


def memory(candidate: Candidate, restore: Callable[[], None]) -> dict[str, int | None]:
    """Peak bytes of one call, after one that does not count.

    torch_peak_bytes: what torch's allocator handed out and not yet took back; the same in every run. resident_peak_bytes:
    growth of the process, so also what a backend allocates by itself; pages that were kept from the calls before do not show,
    and a few that others touch do. None where /proc does not tell.
    """
    restore()
    candidate()
    return {
        "torch_peak_bytes": torch_peak(candidate, restore),
        "resident_peak_bytes": resident_peak(candidate, restore),
    }


def torch_peak(candidate: Candidate, restore: Callable[[], None]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its stages on stderr
    restore()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        candidate()
    assert recorded.profiler is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def resident_peak(candidate: Candidate, restore: Callable[[], None]) -> int | None:
    restore()
    try:
        with contextlib.suppress(AttributeError):  # glibc: give free pages back, so that using them shows
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
        before = status_bytes("VmRSS")
        candidate()
        return max(0, status_bytes("VmHWM") - before)
    except (OSError, KeyError):
        return None


def status_bytes(key: str) -> int:
    """A line of /proc/self/status that is in kB, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(dict(line.split(":", 1) for line in lines)[key].split()[0])


def compiled(
    forms: dict[str, Callable[..., Any]], arguments: tuple[Any, ...], dynamic: bool | None = None
) -> tuple[str, Callable[..., Any]] | None:
    """The fastest of torch.compile's renderings of these forms, by name; None if none compiles here."""
    ready: dict[str, Callable[..., Any]] = {}
    for name, form in forms.items():
        try:
            ready[name] = torch.compile(form, dynamic=dynamic)
            ready[name](*arguments)
        except Exception as error:  # inductor needs a compiler and may fail in many ways
            print(f"torch.compile of {name!r} failed: {type(error).__name__}", file=sys.stderr)
            ready.pop(name, None)
    if len(ready) < 2:
        return next(iter(ready.items()), None)
    calls = {name: (lambda form=form: form(*arguments)) for name, form in ready.items()}
    times = interleave(calls, lambda: None, seconds=1.0)
    best = min(times, key=lambda name: sorted(times[name])[len(times[name]) // 2])
    return best, ready[best]
