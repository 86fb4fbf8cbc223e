"""Being here puts this folder on the path, so that the tests of its subfolders find `fakes` and `test_sampler`."""

import pytest


@pytest.fixture(autouse=True)
def small_tensors(one_thread):
    """Tests of what threads do ask for them."""
