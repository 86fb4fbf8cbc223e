"""A denoising step captured in a CUDA graph: replays read the tensors that hold seed and step, in memory made once."""

import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import denoise_step_, step_buffers
from dlm_kernels.dispatch import backend_status, has_kernel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

BATCH, LENGTH, VOCABULARY = 3, 40, 5003
MASK = VOCABULARY - 1


@pytest.mark.parametrize("buffered", [False, True], ids=["fresh", "buffered"])
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_replays_follow_the_seed_and_step_tensors(name, buffered):
    if not (has_kernel("denoise_step_", name) and backend_status(name).available):
        pytest.skip(f"{name}: {backend_status(name).reason or 'no kernel'}")
    with torch.device("cuda"):
        logits = torch.randn(BATCH, LENGTH, VOCABULARY) * 3
        start = torch.full((BATCH, LENGTH), MASK)
        tokens, seed, step = start.clone(), torch.zeros(BATCH, 1, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    options = {"mask_id": MASK, "temperature": 1.0, "top_p": 0.9, "quota": 5}
    out = step_buffers(tokens, logits, backend=name) if buffered else None

    def run():
        return denoise_step_(tokens, logits, seed=seed, step=step, out=out, backend=name, **options)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles the kernels, which a capture must not
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stats = run()
    assert not buffered or stats is out.stats

    seen = []
    for number in range(4):
        seed.copy_(torch.arange(BATCH, device="cuda")[:, None] + 7 * number)
        step.fill_(number)
        tokens.copy_(start)
        graph.replay()
        eager = start.clone()
        wanted = denoise_step_(eager, logits, seed=seed, step=step, backend=name, **options)
        assert_equal("tokens", tokens, eager)
        for field, got, value in zip(stats._fields, stats, wanted, strict=True):
            assert_equal(field, got, value)
        seen.append(tokens.clone())
    assert not torch.equal(seen[0], seen[1]), "the noise changes with the step"


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_step_with_buffers_and_tensors_allocates_nothing(name):
    if not (has_kernel("denoise_step_", name) and backend_status(name).available):
        pytest.skip(f"{name}: {backend_status(name).reason or 'no kernel'}")
    with torch.device("cuda"):
        tokens, logits = torch.full((BATCH, LENGTH), MASK), torch.randn(BATCH, LENGTH, VOCABULARY)
        zero, one, warm = torch.zeros((), dtype=torch.int64), torch.ones((), dtype=torch.int64), torch.ones(())
        row_ids, suppressed = torch.arange(BATCH * LENGTH).view(BATCH, LENGTH), torch.tensor([0, MASK])
    options = {
        **{"temperature": warm, "top_k": zero, "top_p": warm, "seed": zero, "step": one, "row_ids": row_ids},
        **{"suppress_ids": suppressed, "quota": one, "threshold": warm, "at_least": one},
    }
    out = step_buffers(tokens, logits, backend=name)

    def allocated():
        return torch.cuda.memory_stats()["allocation.all.allocated"]

    for attempt in range(2):  # the first one compiles
        before = allocated()
        denoise_step_(tokens, logits, mask_id=MASK, out=out, **options)
        assert attempt == 0 or allocated() == before
