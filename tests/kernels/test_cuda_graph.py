"""A denoising step captured in a CUDA graph: replays read the tensors that hold seed and step."""

import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import denoise_step_
from dlm_kernels.dispatch import backend_status, has_kernel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

BATCH, LENGTH, VOCABULARY = 3, 40, 5003
MASK = VOCABULARY - 1


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_replays_follow_the_seed_and_step_tensors(name):
    if not (has_kernel("denoise_step_", name) and backend_status(name).available):
        pytest.skip(f"{name}: {backend_status(name).reason or 'no kernel'}")
    with torch.device("cuda"):
        logits = torch.randn(BATCH, LENGTH, VOCABULARY) * 3
        start = torch.full((BATCH, LENGTH), MASK)
        tokens, seed, step = start.clone(), torch.zeros(BATCH, 1, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
        # Ids as a tensor: a list would be copied from the host, which a graph cannot hold.
        options = {"mask_id": MASK, "suppress_ids": torch.tensor([MASK]), "temperature": 1.0, "top_p": 0.9, "quota": 5}

    def run():
        return denoise_step_(tokens, logits, seed=seed, step=step, backend=name, **options)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles the kernels, which a capture must not
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stats = run()

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
