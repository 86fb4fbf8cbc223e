"""The kernel benchmark on tiny shapes: what it counts, checks and writes. No time is asserted."""

import json
import math
import re

import pytest
import torch
from typer.testing import CliRunner

from dlm_benches.cli import app
from dlm_benches.kernels import command, footprint, measure, report, timing
from dlm_benches.kernels.cases import Case, Rival, Sizes, Workload, make_logits, ours_by_backend
from dlm_benches.kernels.measure import FAMILIES, OPS, READ, all_cases, run_case
from dlm_benches.kernels.scoring import top_p_by_sort
from dlm_kernels.dispatch import backend_status, candidates
from dlm_kernels.library import SCHEMAS
from dlm_kernels.roofline import Traffic, bytes_moved

TINY = Sizes(rows=[2], vocabulary=[64])
FIGURES = {
    "median_ms",
    "p20_ms",
    "p80_ms",
    "rounds",
    "gb_per_s",
    "percent_of_read_bandwidth",
    "times_ours",
    "times_ours_p20_p80",
    "torch_peak_bytes",
    "resident_peak_bytes",
}


@pytest.fixture
def few_rounds(monkeypatch):
    monkeypatch.setattr(timing, "FEWEST_ROUNDS", 1)
    monkeypatch.setattr(timing, "MOST_ROUNDS", 2)
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)


def smaller(case):
    """The same case on a canvas that takes no time."""
    least = {"batch": 4, "length": 64, "dimension": 32, "width": 8, "positions": 4}
    return Case(
        case.op,
        {name: min(size, least.get(name, size)) for name, size in case.shape.items()},
        case.dtype,
        case.inputs,
        case.settings,
    )


CASES = [smaller(case) for case in all_cases(OPS, TINY)]


def test_every_op_has_cases():
    assert set(OPS) == set(SCHEMAS)
    assert {case.op for case in CASES} == set(SCHEMAS)


@pytest.mark.parametrize("case", CASES, ids=Case.title)
def test_every_case_is_right_and_writes_the_whole_schema(case, few_rounds):
    """`run_case` compares every backend with the reference and every deterministic rival with ours before it times them."""
    result = run_case(case, compile_=False)
    json.dumps(result)
    assert result["shape"] == dict(case.shape)
    first, *others = (name for name in candidates(case.op, "cpu") if backend_status(name).available)
    assert list(result["backends"].values()) == [first, *others]
    assert set(result["backends"]) | {READ} < set(result["candidates"])  # and at least one rival
    for figures in result["candidates"].values():
        assert set(figures) == FIGURES
    ours = result["candidates"][case.op]
    assert ours["times_ours"] == 1.0
    moved = result["traffic"]["read"] + result["traffic"]["written"]
    assert ours["gb_per_s"] == pytest.approx(moved / ours["median_ms"] / 1e6)
    read = result["candidates"][READ]
    assert read["gb_per_s"] == pytest.approx(result["bytes_of_one_read"] / read["median_ms"] / 1e6)
    assert read["percent_of_read_bandwidth"] == pytest.approx(100)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("op", ["score_tokens", "denoise_step_", "topk_kl", "cosine_rows", "gaussian_step_"])
def test_half_precision_cases_are_right(op, dtype, few_rounds):
    for case in all_cases([op], Sizes(rows=[2], vocabulary=[64], dtype=[dtype])):
        assert run_case(smaller(case), compile_=False)["dtype"] == dtype


def test_default_cases_have_the_shapes_that_are_claimed():
    shapes = {case.op: dict(case.shape) for case in all_cases(OPS, Sizes())}
    assert shapes["denoise_step_"] == {"batch": 16, "length": 256, "block": 32, "vocabulary": 126464}
    assert shapes["nearest_embedding"] == {"rows": 1024, "dimension": 128, "vocabulary": 30522}
    greedy = [c for c in all_cases(["score_tokens"], Sizes()) if c.settings == "greedy"]
    assert {c.shape["vocabulary"] for c in greedy} == {126464, 151936}
    assert {c.dtype for c in greedy} == {"fp32", "bf16"}


def test_traffic_counts_what_the_case_does():
    """The block's logits, not the canvas's; the positions that really commit."""
    case = Case("denoise_step_", {"batch": 2, "length": 64, "block": 32, "vocabulary": 64}, "bf16", "mixed", "2 a step")
    traffic = FAMILIES["denoise_step_"].build(case).traffic
    shape = {"batch": 2, "length": 64, "eligible": 64, "committed": 4, "vocabulary": 64, "itemsize": 2}
    assert traffic == bytes_moved("denoise_step_", **shape)


def test_a_wrong_rival_stops_the_case(few_rounds, monkeypatch):
    monkeypatch.setattr(measure.scoring, "softmax_max", lambda logits: (logits.argmin(-1), logits.amax(-1)))
    case = Case("score_tokens", {"rows": 2, "vocabulary": 64}, "fp32", "peaked", "greedy")
    with pytest.raises(AssertionError, match=r"score_tokens: rows = 2.*eager softmax \+ max: result 0 differs"):
        run_case(case, compile_=False)


def test_a_wrong_backend_stops_the_case(few_rounds):
    x = torch.zeros(4)

    def ours(backend):
        return x.clone() if backend == "reference" else x + 1

    work = Workload(ours, Traffic(0, 0, 0), x)
    with pytest.raises(AssertionError, match="op, cpu: result 0 differs"):
        measure.check(Case("op", {"rows": 4}), work, {"op, cpu": "cpu"})


def test_state_is_restored_before_every_call():
    x = torch.zeros(3)
    seen = []
    work = Workload(lambda backend: None, Traffic(0, 0, 0), x, state=(x,))

    def overwrite():
        seen.append(x.clone())
        x.add_(1)

    times = timing.interleave({"a": overwrite, "b": overwrite}, work.restore, seconds=0.0)
    timing.memory(overwrite, work.restore)
    assert all(torch.equal(before, torch.zeros(3)) for before in seen)
    assert len(times["a"]) == len(times["b"]) >= timing.FEWEST_ROUNDS


def test_slow_candidates_leave_after_the_first_rounds(monkeypatch):
    monkeypatch.setattr(timing, "SLOW", 0.0)
    times = timing.interleave({"slow": lambda: None}, lambda: None, seconds=1.0)
    assert len(times["slow"]) == timing.FEWEST_ROUNDS


def test_torch_peak_is_the_most_that_was_held_at_once():
    x = torch.zeros(1000)

    def two_at_once_three_in_all():
        a = x + x  # 4,000 bytes
        b = a + a  # 8,000
        del a
        return b + b  # 8,000 again

    peaks = {timing.torch_peak(two_at_once_three_in_all, lambda: None) for _ in range(3)}
    assert peaks == {8000}


def test_resident_peak_sees_what_torch_does_not():
    numpy = pytest.importorskip("numpy")
    size = 64 * 2**20
    peak = timing.resident_peak(lambda: numpy.ones(size, numpy.uint8), lambda: None)
    if peak is None:
        pytest.skip("/proc does not tell here")
    assert 0.9 * size < peak < 1.5 * size


def test_the_reference_is_left_out_of_large_cases_where_there_is_a_kernel():
    large = Traffic(10**9, 0, 0)
    assert "reference" not in ours_by_backend("score_tokens", large, None).values()
    assert "reference" in ours_by_backend("score_tokens", Traffic(10, 0, 0), None).values()
    assert ours_by_backend("score_tokens", large, ["reference"]) == {"score_tokens": "reference"}


@pytest.mark.parametrize("inputs", ["peaked", "gaussian", "mixed"])
def test_logits_are_what_their_name_says(inputs):
    confidence = make_logits((500, 4096), torch.float32, inputs).softmax(-1).amax(-1)
    spread = ((confidence > 0.1) & (confidence < 0.9)).float().mean()
    if inputs == "peaked":
        assert confidence.min() > 0.999
    elif inputs == "gaussian":
        assert confidence.max() < 0.1
    else:
        assert spread > 0.3
        assert (confidence > 0.9).any()


@pytest.mark.parametrize("op", OPS)
def test_the_footprint_is_what_the_hungriest_candidate_takes(op, monkeypatch):
    """By the allocator's account of all calls, the reference's in pieces that are small beside such small cases as well."""
    for name in ("score_tokens", "uniform_step", "score_entropy_step", "topk_kl", "nearest_embedding"):
        monkeypatch.setattr(f"dlm_kernels.reference.{name}.ELEMENTS_AT_ONCE", 2**13)

    def calls(case):
        work = FAMILIES[op].build(case, compile_=False)
        measure.check(case, work, ours_by_backend(op, work.traffic, None))
        for rival in work.rivals.values():
            work.result(rival.run)

    estimated = measured = 0
    for case in all_cases([op], Sizes(rows=[32], vocabulary=[1000], dtype=["fp32"])):
        case = smaller(case)
        measure.steps._logits.cache_clear()
        peak = timing.torch_peak(lambda case=case: calls(case), lambda: None)
        estimated, measured = footprint.needed(case) - footprint.BESIDE, max(measured, peak)
        assert peak <= estimated, case.title()
    assert estimated < 1.5 * measured


def test_the_command_refuses_what_does_not_fit(monkeypatch):
    """The batch of 256 has 33 GB of logits in fp32 and more than 130 GB in an fp64 softmax."""
    monkeypatch.setattr(footprint, "available", lambda: 64e9)
    monkeypatch.setattr(measure, "run", lambda *_, **__: pytest.fail("was run"))
    arguments = ["kernels", "--op", "denoise_step_", "--op", "commit_", "--rows", "256"]
    ran = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert ran.exit_code == 2
    said = " ".join(ran.output.replace("│", " ").split())
    assert re.search(r"for --rows: denoise_step_: batch = 256, .* takes about 174\.\d GB .* 64\.0 GB are free", said)


def test_default_cases_fit_in_16_gb():
    assert max(map(footprint.needed, all_cases(OPS, Sizes()))) < 16e9


def test_a_container_s_limit_counts(tmp_path):
    assert footprint._left_to_container(tmp_path) == math.inf
    for name, text in (("max", "1000\n"), ("current", "700\n"), ("stat", "anon 1\ninactive_file 50\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert footprint._left_to_container(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert footprint._left_to_container(tmp_path) == math.inf


def test_the_eager_nucleus_keeps_what_ours_does():
    """The rival of top-p must do the same work: only tokens of the nucleus, and all of them, are drawn."""
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]]).repeat(4000, 1)
    drawn = top_p_by_sort(logits, 0.8)[0]
    assert set(drawn.tolist()) == {0, 1}  # 0.636 + 0.234 reach 0.8


def test_diffusers_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)  # makes the import fail
    shape = {"batch": 2, "length": 64, "block": 32, "vocabulary": 64}
    work = FAMILIES["denoise_step_"].build(Case("denoise_step_", shape, "fp32", "mixed", measure.steps.THRESHOLD))
    assert "diffusers not installed" in work.notes["BlockRefinementScheduler"]
    assert not any("BlockRefinement" in name for name in work.rivals)


def test_rivals_that_draw_are_not_compared():
    work = FAMILIES["keyed_uniform"].build(Case("keyed_uniform", {"batch": 2, "length": 8}))
    assert [rival for rival in work.rivals.values() if isinstance(rival, Rival) and rival.agrees] == []


def test_the_command_writes_a_document(tmp_path, few_rounds):
    out = tmp_path / "deep" / "kernels.json"
    arguments = ["kernels", "--op", "rows_changed", "--op", "commit_", "--rows", "2", "--json", str(out)]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    assert "tokens[selected] = ..." in ran.output  # not taken for markup
    document = report.load(out)
    assert document["schema"] == "dlm-bench/kernels/2"
    assert [result["op"] for result in document["results"]] == ["rows_changed", "commit_", "commit_"]
    assert {"cpu", "instruction_set", "cores", "threads", "clock", "versions"} < set(document["environment"])
    assert [path.name for path in out.parent.iterdir()] == ["kernels.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "score"], "'score' is not an op; there are score_tokens"),
        (["--op", "commit_", "--clock", "cpu"], "give --threads 1"),
        (["--op", "commit_", "--backend", "gpu"], "'gpu' is not one of"),
        (["--op", "commit_", "--backend", "cuda"], "backend 'cuda' is not available"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message):
    if "cuda" in arguments and backend_status("cuda").available:
        pytest.skip("it is there")
    ran = CliRunner().invoke(app, ["kernels", *arguments], env={"COLUMNS": "300"})
    assert ran.exit_code == 2
    assert message in " ".join(ran.output.replace("│", " ").split())


def test_the_command_says_that_a_backend_lacks_the_op(monkeypatch):
    monkeypatch.setattr(command, "has_kernel", lambda op, backend: False)
    ran = CliRunner().invoke(app, ["kernels", "--op", "commit_", "--backend", "reference"], env={"COLUMNS": "300"})
    assert ran.exit_code == 2
    assert "reference has none of these ops" in ran.output
