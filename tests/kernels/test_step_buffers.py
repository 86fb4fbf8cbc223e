"""Denoising steps in memory that is made once: what they give, whatever the memory held, and that they make no more of it."""

import math

import pytest
import torch
from backends import DEVICE
from tolerances import assert_equal
from torch.utils._python_dispatch import TorchDispatchMode

from dlm_benches.kernels import timing
from dlm_kernels import InvalidArgumentError, denoise_step_, dispatch, step_buffers
from kernels.operators import check_operator
from kernels.test_denoise_step import BATCH, CASES, LENGTH, MASK, VOCABULARY, problem

OP = "denoise_step_out_"
on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="counts in the memory of the CPU")


@pytest.mark.parametrize("case", CASES)
def test_steps_with_buffers_are_those_without(backend, case):
    tokens, logits = problem()
    fresh, reused = tokens.clone(), tokens.clone()
    out = step_buffers(tokens, logits, backend=backend)
    assert out.backend == backend
    counters = out.scratch[-1:] if backend == "triton" else ()
    spoilt = (*out.stats, *out.scratch[: len(out.scratch) - len(counters)])
    for step in range(3):
        assert not any(memory.any() for memory in counters), "a step leaves them as it wants to find them"
        for memory in spoilt:
            memory.fill_(math.nan if memory.is_floating_point() else 1)
        options = {"mask_id": MASK, **CASES[case], "step": torch.tensor(step)}
        wanted = denoise_step_(fresh, logits, backend=backend, **options)
        stats = denoise_step_(reused, logits, out=out, **options)
        assert stats is out.stats
        assert_equal("tokens", reused, fresh)
        for name, got, value in zip(stats._fields, stats, wanted, strict=True):
            assert_equal(name, got, value)


def test_operator(backend):
    tokens, logits = problem()
    out = step_buffers(tokens, logits, backend=backend)
    check_operator(
        OP,
        lambda: denoise_step_(tokens, logits, mask_id=MASK, quota=1, out=out),
        lambda: denoise_step_(tokens[:, :], logits, mask_id=MASK, score="random", temperature=1.0, out=out),
    )


@pytest.mark.parametrize("buffered", [False, True], ids=["fresh", "buffered"])
def test_a_model_and_its_step_compile_to_one_graph(backend, buffered):
    model = torch.nn.Sequential(torch.nn.Embedding(VOCABULARY, 16), torch.nn.Linear(16, VOCABULARY))
    tokens = torch.full((BATCH, LENGTH), MASK)

    def step(tokens, number, out):
        options = {"mask_id": MASK, "temperature": 0.8, "top_p": 0.9, "quota": 4, "step": number, "out": out}
        return denoise_step_(tokens, model(tokens), backend=backend, **options)

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    out = step_buffers(tokens, model(tokens), backend=backend) if buffered else None
    eager = tokens.clone()
    for number in map(torch.tensor, range(3)):
        wanted, stats = step(eager, number, None), compiled(tokens, number, out)
        assert_equal("tokens", tokens, eager)
        for name, got, value in zip(stats._fields, stats, wanted, strict=True):
            assert_equal(name, got, value)
            assert not buffered or got.data_ptr() == getattr(out.stats, name).data_ptr()


def every_option(device=None):
    """Tensors for all numbers, in the op's dtypes, some of them expanded."""

    def of(value, dtype=torch.float32, *shape):
        return torch.full((), value, dtype=dtype, device=device).expand(shape)

    return {
        "temperature": of(0.8, torch.float32, BATCH, 1),
        "top_k": of(9, torch.int64),
        "top_p": of(0.9),
        "seed": of(3, torch.int64, BATCH, 1),
        "step": of(1, torch.int64),
        "row_ids": torch.arange(BATCH * LENGTH, device=device).view(BATCH, LENGTH),
        "suppress_ids": torch.tensor([0, MASK], device=device),
        "quota": torch.arange(2 * BATCH, device=device)[::2],
        "threshold": of(0.9),
        "factor": of(0.5, torch.float32, BATCH),
        "entropy_bound": of(0.1),
        "at_least": of(1, torch.int64),
    }


@on_cpu
@pytest.mark.parametrize("score", ["neg_entropy", "random"])
@pytest.mark.parametrize("numbers", [False, True], ids=["tensors", "numbers"])
def test_a_step_allocates_nothing(backend, score, numbers):
    """By the profiler's account of torch's allocator, which sees every tensor, also those of no operator's."""
    if backend not in ("cpu", "cuda"):
        pytest.skip("makes temporaries; Triton's interpreter does, its launches are tested below")
    tokens, logits = problem()
    options = {"temperature": 0.8, "top_p": 0.9, "quota": 2, "threshold": 0.9} if numbers else every_option()
    out = step_buffers(tokens, logits, backend=backend)

    def step():
        denoise_step_(tokens, logits, mask_id=MASK, score=score, out=out, **options)

    step()  # numbers are kept from the first call on
    assert timing.torch_peak(step, lambda: None) == 0
    fresh = timing.torch_peak(lambda: denoise_step_(tokens, logits, mask_id=MASK, backend=backend), lambda: None)
    assert fresh >= BATCH * LENGTH * 4, "the profiler sees what a step allocates"


class Allocations(TorchDispatchMode):
    """Names the operators whose results are in memory that none of their arguments had."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if any(result.alias_info is None for result in operator._schema.returns):
            self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("score", ["neg_entropy", "random"])
def test_triton_launches_allocate_nothing(score):
    """Launches that are noted instead of made, on tensors without memory."""
    pytest.importorskip("triton")
    from dlm_kernels.triton import denoise_step, runtime

    tokens = torch.empty(BATCH, LENGTH, dtype=torch.int64, device="meta")
    logits = torch.empty(BATCH, LENGTH, 5003, device="meta")
    stats, scratch = denoise_step.allocate_step(tokens, logits)
    o = every_option("meta")
    scoring = [o[name].expand(BATCH, LENGTH) for name in ("temperature", "top_k", "top_p", "seed", "row_ids", "step")]
    rules = [o[name].expand(BATCH) for name in ("quota", "threshold", "factor", "entropy_bound", "at_least")]
    arguments = (tokens, logits, MASK, *scoring, o["suppress_ids"], None, True, False, score, *rules, False)
    with runtime.recording() as launches, Allocations() as made:
        denoise_step.denoise_step_out_(*arguments, *stats, scratch)
    assert len(launches) == 2
    assert made.names == []
    with runtime.recording(), Allocations() as made:
        denoise_step.denoise_step_(*arguments)
    assert "aten.empty.memory_format" in made.names, "the mode sees what a step allocates"


@on_cpu
def test_memory_of_the_cpp_step_does_not_grow_with_the_vocabulary():
    if not dispatch.backend_status("cpu").available:
        pytest.skip("no C++ kernels")
    sizes, peaks = [], []
    for vocabulary in (2**12, 2**22):
        tokens, logits = torch.full((1, 2), MASK), torch.randn(1, 2, vocabulary)
        out = step_buffers(tokens, logits, backend="cpu")
        sizes.append(sum(memory.nbytes for memory in (*out.stats, *out.scratch)))

        def step(tokens=tokens, logits=logits, out=out):
            denoise_step_(tokens, logits, mask_id=MASK, temperature=0.7, out=out)

        peaks.append(timing.memory(step, lambda tokens=tokens: tokens.fill_(MASK))["resident_peak_bytes"])
    assert sizes[0] == sizes[1]
    if peaks[1] is not None:
        assert peaks[1] < 2**20, "a row has 16 MiB"


def test_bad_buffers(backend):
    tokens, logits = problem()
    out = step_buffers(tokens, logits, backend=backend)
    other = "numba" if backend == "reference" else "reference"

    def replaced(**stats):
        return out._replace(stats=out.stats._replace(**stats))

    shape = rf"\[{BATCH}, {LENGTH}\]"
    bad = [
        (r"out .*\[4, 24, 61\].*\[5, 24, 61\]", (tokens[1:], logits[1:]), {}),
        (r"out .*\[5, 24, 62\].*\[5, 24, 61\]", (tokens, logits.new_zeros(BATCH, LENGTH, 62)), {}),
        (f"out .*'{other}'.*'{backend}'", (tokens, logits), {"backend": other}),
        ("out must come from step_buffers, got StepStats", (tokens, logits), {"out": out.stats}),
        (r"out\.stats\.remaining must be torch\.int32, got torch\.int64", (tokens, logits),
         {"out": replaced(remaining=out.stats.remaining.long())}),
        (rf"out\.stats\.confidence must have shape {shape}, got \[{BATCH}, 7\]", (tokens, logits),
         {"out": replaced(confidence=torch.zeros(BATCH, 7, device=DEVICE))}),
        (r"out\.stats\.selected must be on .*, got meta", (tokens, logits),
         {"out": replaced(selected=out.stats.selected.to("meta"))}),
        (r"out\.stats\.selected must be contiguous, got strides", (tokens, logits),
         {"out": replaced(selected=torch.zeros(LENGTH, BATCH, dtype=torch.bool, device=DEVICE).T)}),
        (r"out must have the \d+ tensors it was made with, got", (tokens, logits),
         {"out": out._replace(scratch=(*out.scratch, tokens))}),
    ]  # fmt: skip
    if out.scratch:
        short = (*out.scratch[:-1], out.scratch[-1].flatten()[1:])
        bad.append((r"out\.scratch must have shape", (tokens, logits), {"out": out._replace(scratch=short)}))
    for memory in (*out.stats, *out.scratch):
        memory.zero_()
    start = tokens.clone()
    for message, arguments, options in bad:
        with pytest.raises(InvalidArgumentError, match=message):
            denoise_step_(*arguments, mask_id=MASK, **{"out": out, **options})
    assert_equal("tokens", tokens, start)
    assert not any(memory.any() for memory in out.stats), "nothing was written"
    assert denoise_step_(tokens, logits, mask_id=MASK, out=out, backend=backend) is out.stats


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nothing_to_do(backend, shape):
    tokens, logits = torch.full(shape, MASK), torch.empty(*shape, VOCABULARY)
    out = step_buffers(tokens, logits, backend=backend)
    for counts in (out.stats.committed, out.stats.remaining):
        counts.fill_(7)
    stats = denoise_step_(tokens, logits, mask_id=MASK, out=out)
    assert stats.committed.tolist() == stats.remaining.tolist() == [0] * shape[0]


def test_buffers_of_inference_mode_serve_outside_it(backend):
    tokens, logits = problem()
    with torch.inference_mode():
        out = step_buffers(tokens, logits, backend=backend)
        denoise_step_(tokens.clone(), logits, mask_id=MASK, out=out)
    assert denoise_step_(tokens, logits, mask_id=MASK, out=out).committed.sum() > 0


def test_buffers_may_be_arguments_of_the_next_step(backend):
    """What a step reads it has read before it writes there."""
    tokens, logits = problem()
    fresh, out = tokens.clone(), step_buffers(tokens, logits, backend=backend)
    first = denoise_step_(fresh, logits, mask_id=MASK, quota=6, backend=backend)
    denoise_step_(tokens, logits, mask_id=MASK, quota=6, out=out)
    fresh[first.selected] = tokens[first.selected] = MASK
    options = {"mask_id": MASK, "at_least": 0, "temperature": 1.0}
    wanted = denoise_step_(
        fresh, logits, eligible=first.selected, quota=first.committed - 2, backend=backend, **options
    )
    stats = denoise_step_(
        tokens, logits, eligible=out.stats.selected, quota=out.stats.committed.sub_(2), out=out, **options
    )
    assert_equal("tokens", tokens, fresh)
    for name, got, value in zip(stats._fields, stats, wanted, strict=True):
        assert_equal(name, got, value)
