"""What is particular to the Triton kernels. Runs in their interpreter: in the process of test_triton_interpreter.py."""

import math
import os
import warnings

import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import denoise_step_, score_tokens, step_buffers
from dlm_kernels.reference import portable_math as spec
from dlm_kernels.reference.philox import uniform_from_word
from kernels.rows import NAMES, awkward_rows
from kernels.test_rng import KNOWN_ANSWERS

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start", allow_module_level=True)

import triton
import triton.language as tl
from triton.runtime.interpreter import interpreter_builder

from dlm_kernels.triton import portable_math, runtime, select_positions
from dlm_kernels.triton import score_tokens as kernels
from dlm_kernels.triton.philox import keyed_words
from dlm_kernels.triton.rows import row_pointers

CANARY = 0x5A5A5A5A
VARIANTS = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "top_k": 9, "top_p": 0.8, "seed": 4},
    "sampling": {"temperature": 0.7, "top_p": 0.9, "confidence": "sampling", "suppress_ids": [2, 5]},
}


@triton.jit
def apply_kernel(x, out, WHICH: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i)
    if WHICH == "log":
        value = portable_math.log(value)
    elif WHICH == "exp":
        value = portable_math.exp(value)
    elif WHICH == "gumbel":
        value = portable_math.gumbel_from_uniform(value)
    elif WHICH == "uniform":
        value = portable_math.uniform_from_word(value.to(tl.uint32))
    else:
        value = portable_math.widen(value)
    tl.store(out + i, value)


def applied(which, x):
    out = torch.empty(x.shape, dtype=torch.float32)
    apply_kernel[(x.numel() // 1024,)](x, out, WHICH=which, BLOCK=1024)
    return out


def test_arithmetic_has_the_bits_of_the_specification():
    positive = torch.cat([torch.rand(2**16) * 30, 2.0 ** torch.arange(-126.0, 4.0)[:128], torch.rand(896)]).clamp(
        2.0**-126
    )
    negative = torch.cat(
        [-torch.rand(2**16) * 95, torch.tensor([0.0, -0.0, -87.0, -87.1, -math.inf, math.nan]).repeat(171)[:1024]]
    )
    words = torch.randint(2**32, (2**16,))
    words[:4] = torch.tensor([0, 1, 2**32 - 1, 2**31])
    uniform = uniform_from_word(words)
    assert_equal("log", applied("log", positive).view(torch.int32), spec.log(positive).view(torch.int32))
    assert_equal("exp", applied("exp", negative).view(torch.int32), spec.exp(negative).view(torch.int32))
    assert_equal("uniform", applied("uniform", words), uniform)
    assert_equal(
        "gumbel", applied("gumbel", uniform).view(torch.int32), spec.gumbel_from_uniform(uniform).view(torch.int32)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_precision_number_is_widened_exactly(dtype):
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    assert_equal("fp32", applied("widen", x), x.float())


@triton.jit
def words_kernel(seed, row_id, step, block, out, STREAM: tl.constexpr):
    at = tl.arange(0, 1)
    w0, w1, w2, w3 = keyed_words(
        tl.load(seed + at), tl.load(row_id + at), tl.load(step + at), tl.load(block + at), STREAM
    )
    tl.store(out + at, w0.to(tl.int64))
    tl.store(out + 1 + at, w1.to(tl.int64))
    tl.store(out + 2 + at, w2.to(tl.int64))
    tl.store(out + 3 + at, w3.to(tl.int64))


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, wanted):
    """The vectors of Random123, by way of our keys."""

    def signed(high, low):
        value = high << 32 | low
        return torch.tensor([value - 2**64 if value >= 2**63 else value])

    block = torch.tensor([counter[0] & 0xFFFFFF], dtype=torch.int32)
    out = torch.zeros(4, dtype=torch.int64)
    words_kernel[(1,)](
        signed(key[1], key[0]), signed(counter[3], counter[1]), torch.tensor([counter[2]]), block, out, STREAM=counter[0] >> 24
    )  # fmt: skip
    assert tuple(out.tolist()) == wanted


@triton.jit
def pointers_kernel(logits, b, l, out):  # noqa: E741
    at = tl.arange(0, 1)
    tl.store(out + at, row_pointers(logits, tl.load(b + at), tl.load(l + at)).to(tl.int64))


@pytest.mark.parametrize("stride", [2**31 - 1, 2**31, 2**40])
def test_row_offsets_beyond_32_bits(stride):
    x, out = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.int64)
    pointers_kernel[(1,)]((x, stride, 126464), torch.tensor([5]), torch.tensor([40_000]), out)
    assert out.item() == x.data_ptr() + 2 * (5 * stride + 40_000 * 126464)


@pytest.fixture
def invalid_operations_raise():
    """inf - inf, 0 * inf and the like, which numpy reports; a GPU would go on with NaN."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="invalid value")
        warnings.filterwarnings("error", message="All-NaN")
        yield


@pytest.mark.parametrize("vocabulary", [7, 5000])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_operation_is_invalid(invalid_operations_raise, variant, vocabulary):
    rows = awkward_rows(vocabulary, torch.float32)
    got, wanted = (score_tokens(rows, backend=name, **VARIANTS[variant]) for name in ("triton", "reference"))
    assert_equal("token", got.token, wanted.token, NAMES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bits_do_not_depend_on_how_rows_are_shared_out(monkeypatch, variant):
    """Many rows a program as here, or one as on a GPU; tiles of a row in one program or in several."""
    x = torch.randn(4, 9_000) * 4
    wanted = score_tokens(x, backend="triton", **VARIANTS[variant])
    monkeypatch.setattr(runtime, "INTERPRETED_ELEMENTS", 0)
    for multiprocessors in (1, 132):
        monkeypatch.setattr(runtime, "multiprocessors", lambda device, n=multiprocessors: n)
        got = score_tokens(x, backend="triton", **VARIANTS[variant])
        for name, value in wanted._asdict().items():
            assert_equal(name, getattr(got, name), value)


@pytest.fixture(params=["in_order", "reversed", "shuffled"])
def order_of_programs(request, monkeypatch):
    """The interpreter runs a launch's programs one after the other; here also in other orders than that of their numbers."""
    set_index = interpreter_builder.set_grid_idx

    def set_other(x, y, z):
        _, ny, nz = interpreter_builder.grid_dim
        total = math.prod(interpreter_builder.grid_dim)
        place = (x * ny + y) * nz + z
        if request.param == "reversed":
            place = total - 1 - place
        elif request.param == "shuffled":
            place = torch.randperm(total, generator=torch.Generator().manual_seed(total))[place].item()
        set_index(place // (ny * nz), place // nz % ny, place % nz)

    monkeypatch.setattr(interpreter_builder, "set_grid_idx", set_other)


@pytest.mark.parametrize("elements", [0, 2**15], ids=["one_row_a_program", "several_rows"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_whichever_program_is_last_finishes(order_of_programs, monkeypatch, variant, elements):
    """Scores and steps, again and again in the same memory; a row of tokens without an open position, and rows never live."""
    x, mask = torch.randn(3, 2, 4_100) * 4, 7
    live = torch.tensor([[True, True], [True, True], [True, False]])
    tokens = torch.full((3, 2), mask)
    tokens[1] = 3
    options = {"score": "margin", "quota": 1, "mask_id": mask, "eligible": live, **VARIANTS[variant]}
    step_tokens, wanted_tokens = tokens.clone(), tokens.clone()
    wanted = score_tokens(x, eligible=live, backend="reference", **VARIANTS[variant])
    monkeypatch.setattr(runtime, "INTERPRETED_ELEMENTS", elements)
    out = step_buffers(tokens, x, backend="triton")
    for _ in range(2):
        got = score_tokens(x, eligible=live, backend="triton", **VARIANTS[variant])
        assert_equal("token", got.token, wanted.token)
        for name in ("confidence", "margin", "entropy", "logsumexp"):
            torch.testing.assert_close(getattr(got, name), getattr(wanted, name))
        wanted_step = denoise_step_(wanted_tokens, x, backend="reference", **options)
        step = denoise_step_(step_tokens, x, out=out, **options)
        assert_equal("tokens", step_tokens, wanted_tokens)
        for name in ("committed", "remaining", "selected"):
            assert_equal(name, getattr(step, name), getattr(wanted_step, name))
        assert not out.scratch[-1].any(), "counters are as they were"


def test_rows_too_long_for_one_program_commit_the_same(monkeypatch):
    x = torch.randn(2, 24, 61)
    tokens = torch.where(torch.rand(2, 24) < 0.8, 7, 3)
    other = tokens.clone()
    options = {"mask_id": 7, "factor": 0.9, "entropy_bound": 0.5, "backend": "triton"}
    wanted = denoise_step_(tokens, x, **options)
    monkeypatch.setattr(select_positions, "MOST_SORTED", 16)
    got = denoise_step_(other, x, **options)
    assert_equal("tokens", other, tokens)
    for name, value in wanted._asdict().items():
        assert_equal(name, getattr(got, name), value)


def guarded(tensor):
    """A tensor like this one in the middle of a buffer of canaries, and the buffer's margins."""
    words = tensor.element_size() * tensor.numel() // 4
    buffer = torch.full((words + 64,), CANARY, dtype=torch.int32)
    inner = buffer[32 : 32 + words].view(tensor.dtype).view(tensor.shape)
    return inner, (buffer[:32], buffer[-32:])


@pytest.mark.parametrize("vocabulary", [61, 4099])
def test_launches_write_into_what_they_are_given_and_nowhere_else(vocabulary):
    x = torch.randn(3, 5, vocabulary)
    wanted = score_tokens(x, temperature=1.0, top_k=7, confidence="sampling", backend="triton")
    out, out_margins = zip(*map(guarded, kernels.allocate_scores((3, 5), x.device)), strict=True)
    scratch = kernels.score_scratch(15, vocabulary, x.device)
    states, state_margins = zip(*map(guarded, scratch.states), strict=True)
    summary, summary_margins = zip(*map(guarded, scratch.summary), strict=True)
    counters, counter_margins = guarded(scratch.counters)
    counters.zero_()
    key = torch.zeros(3, 5, dtype=torch.int64)
    kernels.launch_score_tokens(
        x, torch.ones(3, 5), key + 7, torch.ones(3, 5), key, torch.arange(15).view(3, 5), key, None, None, True, False,
        out, kernels.Scratch(states, summary, counters),
    )  # fmt: skip
    for name, got in zip(wanted._fields, out, strict=True):
        assert_equal(name, got, getattr(wanted, name))
    for margins in (*out_margins, *state_margins, *summary_margins, counter_margins):
        assert all((margin == CANARY).all() for margin in margins)
