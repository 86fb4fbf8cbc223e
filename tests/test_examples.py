"""Every example runs and prints what it is there to show."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(capsys, monkeypatch):
    """The lines that an example prints, run as a script."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_every_example_has_a_test():
    tested = {name[len("test_") :] for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


def test_infilling(run):
    lines = [line for line in run("infilling") if line]
    assert len(lines) == 6
    for template, filled in zip(lines[::2], lines[1::2], strict=True):
        filled, forwards = re.fullmatch(r"(.*)  \[(\d+) forwards\]", filled).groups()
        assert "_" not in filled
        assert re.fullmatch(re.sub(r"_+", "(.+)", re.escape(template)), filled)
        assert int(forwards) == template.count("_")


def test_constrained_json(run):
    lines = run("constrained_json")
    assert len(lines) == 4
    for line in lines:
        value = json.loads(line)
        assert list(value) == ["line", "name", "text"]
        assert isinstance(value["line"], int)
        assert re.fullmatch("[a-z]+", value["name"])
        assert re.fullmatch("[A-Za-z .,]+", value["text"])
    assert len(set(lines)) == 4, "drawn, not written out"


def test_streaming(run):
    text = "\n".join(run("streaming"))
    drafts, final = text.split("\n\nfinal: ")
    masks = [draft.count("_") for draft in drafts.split("This method is called when the")[1:]]
    assert masks[0] > masks[-1] == 0
    assert masks == sorted(masks, reverse=True)
    assert drafts.endswith(final)


def test_unequal_prompts(run):
    *_, calls, alone = run("unequal_prompts")
    refilled, waiting = map(int, re.findall(r"\d+", calls)[:2])
    assert refilled < waiting
    assert alone == "24 of 24 answers are those the question gets alone"


def test_cfg(run):
    found = [re.fullmatch(r"cfg_scale (\d): (\d+) of 100 sorted, (\d+) forwards", line).groups() for line in run("cfg")]
    right = {int(scale): int(n) for scale, n, _ in found}
    assert right[1] > right[0] + 10 > right[4]
    assert [int(forwards) for *_, forwards in found] == [5, 10, 10]


def test_lora(run):
    pytest.importorskip("peft")
    with pytest.warns(RuntimeWarning, match="lm_head"):
        adapted, without, merged = run("lora")
    assert adapted == "adapted: 5 5 5 5 5 5 5 5"
    assert without != adapted.replace("adapted", "without")
    assert merged == "merged, the same tokens: True"


def test_quantized(run):
    pytest.importorskip("torchao")
    lines = run("quantized", "3")[1:]
    rows = {
        line[:23].strip(): tuple(
            map(
                float,
                re.search(r"([\d.]+) MB  right ([\d.]+)%.*fp32 (\d+) \(\d+ tokens\)  alone (\d+) of 3 ", line).groups(),
            )
        )
        for line in lines
    }
    size, right, differ, alone = rows["fp32"]
    assert (differ, alone) == (0, 3)
    for name, row in rows.items():
        assert row[1] >= right - 15, name
        assert name == "fp32" or row[0] < 0.55 * size
    assert rows["int8, torchao, weights"][3] == 3


def test_custom_policy(run):
    lines = run("custom_policy")
    found = [re.match(r"(\w+) +(\w+)\(\) +(\d+) of 40, ([\d.]+) forwards", line).groups() for line in lines[:4]]
    right = {(task, policy): int(n) for task, policy, n, _ in found}
    assert len(right) == 4
    assert min(right.values()) >= 34
    assert "SureRun(): approximate. each token of a run is sure by itself" in "\n".join(lines)


def test_choose_policy(run):
    lines = run("choose_policy")[1:]
    rows = [(line[0] == "*", *map(float, re.match(r". +([\d.]+) forwards +(\d+)%", line).groups())) for line in lines]
    assert len(rows) == 9
    assert [forwards for _, forwards, _ in rows] == sorted(forwards for _, forwards, _ in rows)
    for marked, forwards, right in rows:
        beaten = any(n <= forwards and r >= right and (n, r) != (forwards, right) for _, n, r in rows)
        assert not (marked and beaten)
    assert sum(marked for marked, *_ in rows) >= 2
