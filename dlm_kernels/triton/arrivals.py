"""The last program to arrive goes on with what all have stored, so that no further launch is needed to wait for them.

Counters are int32, zero before a launch and zero after it: the last to arrive resets its own. They can then be used by launch
after launch and in CUDA graphs, but not by two at a time. A kernel that is stopped halfway leaves them as they are; on a GPU
its context is lost with them, and in the interpreter, where Python goes on after an exception, scratch must be made anew.

Why what the others stored is there to be read (PTX memory model):
- before: the barrier orders the stores of all threads of a program before the atomic of one of them, whose release at GPU scope
  covers them, as release is cumulative;
- between: every arrival reads and writes the counter, so the last one's acquire synchronizes with each release before it;
- after: Triton hands the atomic's result to all threads through shared memory and a barrier, which orders their loads after the
  acquire. An acquire at GPU scope also empties the multiprocessor's L1 (CCTL.IVALL), so plain loads find nothing stale there.
`tests/kernels/test_triton_arrivals.py` looks for all of this in compiled kernels. Triton's barrier for AMD GPUs orders shared
memory alone, so that the first step is not given there: `runtime.HANDS_OVER`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def last_to_arrive(counter, arriving, expected):
    """Whether with these `arriving` (of the program's work) all `expected` are there. Where nothing else is expected nothing is
    counted. What the program stored before it can also read afterwards, whichever thread did."""
    tl.debug_barrier()
    last = arriving == expected
    if arriving < expected:
        last = tl.atomic_add(counter, arriving, sem="acq_rel", scope="gpu") + arriving == expected
        if last:
            tl.store(counter, 0)
    return last
