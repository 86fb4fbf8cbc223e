"""The benchmark of event-driven sampling on a short canvas: what it counts and prints. No time is asserted."""

import io
import json

import pytest
from rich.console import Console

from dlm_benches.samplers import events


@pytest.mark.usefixtures("one_thread")
def test_document_and_what_is_printed():
    document = events.measure(batch=3, length=12, steps=12, rounds=2)
    assert json.loads(json.dumps(document)) == document
    rows = document["candidates"]
    per_row, lean = rows["EventDriven"], rows[events.OURS]
    assert per_row["nfe_mean"] == lean["nfe_mean"], "the head's rows do not change what commits"
    assert per_row["nfe_mean"] < rows[events.PUBLISHED]["nfe_mean"] <= 12
    assert abs(per_row["nfe_mean"] - document["expected_nfe"]) < 3
    assert rows[events.PUBLISHED]["speed_up"] == 1
    assert document["goals"][2]["met"], "law by enumeration"
    out = io.StringIO()
    events.show(document, Console(file=out, width=150))
    for text in (events.PUBLISHED, "greatest difference of probability", "law by enumeration within 1e-12"):
        assert text in out.getvalue()
