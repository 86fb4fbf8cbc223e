import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """As for the kernels' tests: on tensors this small, threads that wait for each other cost far more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
