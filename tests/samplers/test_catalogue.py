"""The page of methods lists every part there is."""

from pathlib import Path

import pytest

import dlm_samplers
from dlm_samplers.catalogue import markdown, parts, rewritten
from dlm_samplers.parts import Part

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_page_is_what_the_classes_say():
    page = PAGE.read_text()
    assert rewritten(page) == page, "python -m dlm_samplers.catalogue docs/methods.md"


def test_every_exported_part_is_listed_with_its_guarantee():
    table = markdown()
    found = {cls for _, cls in parts()}
    assert dlm_samplers.Threshold in found
    assert all(issubclass(cls, Part) for cls in found)
    for cls in found:
        row = next(line for line in table.splitlines() if line.startswith(f"| `{cls.__name__}("))
        assert f" | {cls.guarantee} | " in row


def test_a_page_without_the_section_is_refused():
    with pytest.raises(ValueError, match="has no section"):
        rewritten("# Methods")
