import pytest


@pytest.fixture(autouse=True)
def small_tensors(one_thread):
    """Tests of what threads do ask for them."""
