import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors here are small, and two threads that wait for each other on a busy machine take fifty times as long.

    Tests of what threads do ask for them (`two_threads`).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_backend(backend):
    """Every op of the test runs on `backend`."""
    from dlm_kernels import use_backend

    with use_backend(backend):
        yield backend
