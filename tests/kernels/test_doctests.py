import doctest
from importlib import import_module

import pytest

MODULES = ("score_tokens", "select_positions", "commit", "denoise_step", "rng", "dispatch", "roofline")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_docs_run(name):
    result = doctest.testmod(import_module(f"dlm_kernels.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
