import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import commit_

pytestmark = pytest.mark.usefixtures("poisoned_empty")


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (4, 1000), (0, 5), (5, 0)])
def test_selected_positions_take_the_proposal(backend, shape):
    tokens, proposal = torch.randint(-(2**62), 2**62, (2, *shape))
    selected = torch.rand(shape) < 0.5
    wanted = torch.where(selected, proposal, tokens)
    before = proposal.clone(), selected.clone()
    assert commit_(tokens, proposal, selected, backend=backend) is None
    assert_equal("tokens", tokens, wanted)
    assert_equal("proposal", proposal, before[0])
    assert_equal("selected", selected, before[1])


def test_views_are_written_through_and_nothing_else(backend):
    canvas = torch.arange(60).view(5, 12)
    proposal = -torch.arange(60).view(12, 5).T[:, ::2] - 1
    selected = (torch.rand(10, 6) < 0.5)[::2]
    wanted = canvas.clone()
    wanted[:, 1::2] = torch.where(selected, proposal, canvas[:, 1::2])
    commit_(canvas[:, 1::2], proposal, selected, backend=backend)
    assert_equal("canvas", canvas, wanted)


def test_expanded_proposal(backend):
    tokens = torch.zeros(3, 4, dtype=torch.int64)
    commit_(tokens, torch.tensor([[7]]).expand(3, 4), torch.eye(3, 4, dtype=torch.bool), backend=backend)
    assert_equal("tokens", tokens, 7 * torch.eye(3, 4, dtype=torch.int64))
