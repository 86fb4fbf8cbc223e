"""How many launches an op takes, and that what one program goes on with has come from the others. No GPU, no interpreter."""

import os
import re
import tempfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles and counts what a GPU is given", allow_module_level=True)

import triton

from dlm_benches import resources_triton
from dlm_kernels.triton import denoise_step, score_tokens, select_positions
from dlm_kernels.triton.runtime import recording

SCORES = ("confidence", "margin", "neg_entropy", "random")


def on(dtype, *shape):
    return torch.empty(shape, dtype=dtype, device="meta")


def launches(op, batch, length, vocabulary, sampling=False, score="confidence"):
    """The kernels' names. Whether a row is greedy or filtered is on the device, so it cannot change them."""
    real, key, flags = (on(dtype, batch, length) for dtype in (torch.float32, torch.int64, torch.bool))
    number, count = on(torch.float32, batch), on(torch.int64, batch)
    logits = on(torch.bfloat16, batch, length, vocabulary)
    scoring = real, key, real, key, key, key, None, flags, sampling, False
    rules = count, number, number, number
    with recording() as made:
        if op == "score_tokens":
            score_tokens.score_tokens(logits, *scoring)
        elif op == "denoise_step_":
            denoise_step.denoise_step_(key, logits, 3, *scoring, score, *rules, count, False)
        else:
            select_positions.select_positions(real, flags, *rules, real, count, False)
    return [launch.kernel.__name__ for launch in made]


@pytest.mark.parametrize("vocabulary", [61, 1000, 126464])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 32), (3, 100), (64, 256), (4096, 8)])
def test_two_launches_whatever_the_batch(batch, length, vocabulary):
    for sampling in (False, True):
        assert launches("score_tokens", batch, length, vocabulary, sampling) == ["summarise_kernel", "draw_kernel"]
        for score in SCORES:
            names = launches("denoise_step_", batch, length, vocabulary, sampling, score)
            assert names == ["open_and_summarise_kernel", "draw_and_commit_kernel"]


@pytest.mark.parametrize(("length", "at_once"), [(1024, True), (1025, False), (8192, False)])
def test_long_rows_are_ranked_by_many_programs(length, at_once):
    ranking = [] if at_once else ["rank_kernel"]
    assert launches("select_positions", 2, length, 1) == [*ranking, "choose_kernel"]
    names = launches("denoise_step_", 2, length, 126464)
    assert names[0] == "open_and_summarise_kernel"
    assert names[1:] == (["draw_and_commit_kernel"] if at_once else ["draw_kernel", "rank_kernel", "choose_kernel"])


def test_small_vocabularies_have_fewer_warps_to_sort_with():
    assert launches("denoise_step_", 2, 256, 61)[1:] == ["draw_and_commit_kernel"]
    assert launches("denoise_step_", 2, 257, 61)[1:] == ["draw_kernel", "choose_kernel"]
    assert launches("denoise_step_", 2, 1024, 1000)[1:] == ["draw_and_commit_kernel"]


@pytest.mark.parametrize("module", [score_tokens, denoise_step], ids=["score_tokens", "denoise_step_"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_counters_order_the_memory_of_the_gpu(target, module):
    """All threads' stores before the atomic, a fence before it, L1 emptied after it, all threads' loads after that."""
    label = {"score_tokens": "V=1000 bfloat16", "denoise_step": "confidence"}[module.__name__.rpartition(".")[2]]
    with recording() as made:
        dict(module.specimens())[label]()
    for launch in made:
        source, options = resources_triton.compilation(launch, resources_triton.TARGETS[target])
        asm = triton.compile(source, target=resources_triton.TARGETS[target], options=options).asm
        ptx = re.findall(r"\b(bar\.sync|atom\.\S+|st\.shared)", asm["ptx"])
        atomics = [place for place, text in enumerate(ptx) if text.startswith("atom.")]
        assert atomics
        for place in atomics:
            assert ptx[place] == "atom.global.gpu.acq_rel.add.u32"
            assert ptx[place - 1] == "bar.sync"
            assert ptx[place + 1 : place + 3] == ["st.shared", "bar.sync"], "its result reaches the others"
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(asm["cubin"])
            code = resources_triton.tool("nvdisasm", "-c", str(cubin))
        sass = re.findall(r"\b(BAR\.SYNC|MEMBAR\.\S+|ATOMG?\.\S+|CCTL\.IVALL)", code)
        atomics = [place for place, text in enumerate(sass) if text.startswith("ATOM")]
        assert atomics
        for place in atomics:
            assert sass[place - 1].endswith(".GPU"), sass[place - 1]
            assert ".STRONG.GPU" in sass[place]
            assert sass[place + 1 : place + 3] == ["CCTL.IVALL", "BAR.SYNC"]
