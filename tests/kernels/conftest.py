import pytest


@pytest.fixture(autouse=True)
def small_tensors(one_thread):
    """Tests of what threads do ask for them."""


@pytest.fixture
def in_backend(backend):
    """Every op of the test runs on `backend`."""
    from dlm_kernels import use_backend

    with use_backend(backend):
        yield backend
