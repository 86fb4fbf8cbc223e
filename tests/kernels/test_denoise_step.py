import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import commit_, denoise_step_, keyed_uniform, score_tokens, select_positions
from dlm_kernels.rng import make_row_ids

pytestmark = pytest.mark.usefixtures("poisoned_empty")

MASK = 60
BATCH, LENGTH, VOCABULARY = 5, 24, 61


def problem():
    tokens = torch.randint(0, MASK, (BATCH, LENGTH))
    tokens[torch.rand(BATCH, LENGTH) < 0.6] = MASK
    tokens[3] = 1  # a finished row
    tokens[4] = MASK
    logits = torch.randn(BATCH, LENGTH, VOCABULARY) * 3
    logits[..., MASK] += 4  # often the best guess
    return tokens, logits


CASES = {
    "greedy_threshold": {"threshold": 0.6},
    "quota_per_row": {"quota": torch.tensor([1, 2, 3, 4, 5]), "at_least": 0},
    "margin_factor": {"score": "margin", "factor": 0.9},
    "entropy_bound": {"score": "neg_entropy", "entropy_bound": 0.8},
    "random_order": {"score": "random", "quota": 3, "step": 4, "seed": 8},
    "sampled": {"temperature": 0.9, "top_k": 8, "top_p": 0.9, "confidence": "sampling", "threshold": 0.7, "seed": 3},
    "dream": {"temperature": 0.9, "top_p": 0.8, "top_k": 5, "filter_order": "top_p_first", "quota": 2, "strict": True},
    "per_row": {
        "temperature": torch.tensor([[0.0], [0.3], [0.7], [1.0], [2.0]]),
        "seed": torch.arange(BATCH)[:, None],
        "threshold": torch.tensor([0.9, 0.7, 0.5, 0.3, 0.2]),
    },
    "mask_allowed": {"suppress_ids": (), "quota": 3},
    "suppressed": {"suppress_ids": [0, MASK], "quota": 3},
}
SCORING = ("temperature", "top_k", "top_p", "seed", "step", "confidence", "filter_order")
SELECTION = ("quota", "threshold", "factor", "entropy_bound", "at_least", "strict")


def step_by_step(tokens, logits, eligible, backend, *, score="confidence", suppress_ids=(MASK,), **options):
    """The three ops one after the other. Writes the tokens; returns the fields of StepStats."""
    live = (tokens == MASK) & (eligible if eligible is not None else True)
    ids = make_row_ids(torch.arange(BATCH)[:, None], torch.arange(LENGTH))
    scoring = {name: options[name] for name in SCORING if name in options}
    selection = {name: options[name] for name in SELECTION if name in options}
    scores = score_tokens(logits, eligible=live, row_ids=ids, suppress_ids=suppress_ids, backend=backend, **scoring)
    ranked = {
        "confidence": scores.confidence,
        "margin": scores.margin,
        "neg_entropy": -scores.entropy,
        "random": keyed_uniform(options.get("seed", 0), ids, options.get("step", 0), stream=1, backend=backend),
    }[score]
    selected = select_positions(ranked, live, entropy=scores.entropy, backend=backend, **selection)
    commit_(tokens, scores.token, selected, backend=backend)
    committed = selected.sum(1, dtype=torch.int32)
    return committed, live.sum(1, dtype=torch.int32) - committed, scores.confidence, selected


@pytest.mark.parametrize("restricted", [False, True], ids=["all", "eligible"])
@pytest.mark.parametrize("case", CASES)
def test_step_is_score_select_commit(backend, case, restricted):
    tokens, logits = problem()
    eligible = torch.rand(BATCH, LENGTH) < 0.5 if restricted else None
    wanted_tokens, before = tokens.clone(), logits.clone()
    wanted = step_by_step(wanted_tokens, logits, eligible, backend, **CASES[case])
    start = tokens.clone()
    stats = denoise_step_(tokens, logits, mask_id=MASK, eligible=eligible, backend=backend, **CASES[case])
    assert_equal("tokens", tokens, wanted_tokens)
    for (name, got), value in zip(stats._asdict().items(), wanted, strict=True):
        assert_equal(name, got, value)
    assert_equal("logits", logits, before)
    assert_equal("what was not selected", tokens[~stats.selected], start[~stats.selected])
    assert stats.committed.sum() > 0
    if "suppress_ids" not in CASES[case]:
        assert (tokens[stats.selected] != MASK).all()


@pytest.mark.parametrize("case", CASES)
def test_every_backend_commits_the_reference_tokens(fast_backend, case):
    tokens, logits = problem()
    results = {}
    for name in (fast_backend, "reference"):
        results[name] = tokens.clone()
        stats = denoise_step_(results[name], logits, mask_id=MASK, backend=name, **CASES[case])
        results[name + "_stats"] = stats
    assert_equal("tokens", results[fast_backend], results["reference"])
    for field in ("committed", "remaining", "selected"):
        pair = (getattr(results[f"{name}_stats"], field) for name in (fast_backend, "reference"))
        assert_equal(field, *pair)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_views_of_tokens_and_logits(backend, dtype):
    tokens, logits = problem()
    logits = logits.to(dtype)
    plain = tokens.clone()
    wanted = denoise_step_(plain, logits, mask_id=MASK, threshold=0.5, backend=backend)
    canvas = torch.full((BATCH, 2 * LENGTH), -1)
    canvas[:, ::2] = tokens
    wide = torch.randn(BATCH, LENGTH + 2, VOCABULARY + 5).to(dtype)
    wide[:, 1:-1, 2:-3] = logits
    stats = denoise_step_(canvas[:, ::2], wide[:, 1:-1, 2:-3], mask_id=MASK, threshold=0.5, backend=backend)
    assert_equal("tokens", canvas[:, ::2].contiguous(), plain)
    assert (canvas[:, 1::2] == -1).all()
    for got, value in zip(stats, wanted, strict=True):
        assert_equal("stats", got, value)


def test_a_row_does_not_depend_on_its_neighbours(backend):
    tokens, logits = problem()
    options = {"mask_id": MASK, "temperature": 1.0, "threshold": 0.6, "backend": backend}
    whole = tokens.clone()
    denoise_step_(whole, logits, **options)
    for b in range(BATCH):
        alone = tokens[b : b + 1].clone()
        ids = make_row_ids(b, torch.arange(LENGTH))
        denoise_step_(alone, logits[b : b + 1], row_ids=ids, **options)
        assert_equal("tokens", alone[0], whole[b])


def test_bits_do_not_depend_on_threads(backend, two_threads):
    logits = torch.randn(3, 40, 5003) * 4
    results = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        tokens = torch.full((3, 40), MASK)
        stats = denoise_step_(
            tokens, logits, mask_id=MASK, temperature=0.7, top_p=0.9, quota=30, threshold=0.5, backend=backend
        )
        results.append((tokens, *stats))
    for two, one in zip(*results, strict=True):
        assert_equal("bits", two, one)


def test_steps_end(backend):
    """Every live row commits at least one position a step, so at most L steps empty the canvas, NaN logits or not."""
    tokens, logits = problem()
    logits[0, 3] = float("nan")
    left = (tokens == MASK).sum(1)
    for step in range(LENGTH):
        stats = denoise_step_(tokens, logits, mask_id=MASK, threshold=1.0, step=step, backend=backend)
        assert (stats.committed >= left.clamp(max=1)).all()
        left = left - stats.committed
        assert_equal("remaining", stats.remaining.long(), left)
    assert not (tokens == MASK).any()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nothing_to_do(backend, shape):
    tokens = torch.full(shape, MASK)
    stats = denoise_step_(tokens, torch.empty(*shape, VOCABULARY), mask_id=MASK, backend=backend)
    assert stats.committed.tolist() == [0] * shape[0]
    assert stats.remaining.tolist() == [0] * shape[0]
    assert stats.selected.shape == shape
    finished = torch.zeros(2, 3, dtype=torch.int64)
    stats = denoise_step_(finished, torch.full((2, 3, VOCABULARY), float("nan")), mask_id=MASK, backend=backend)
    assert stats.committed.tolist() == [0, 0]
    assert stats.confidence.eq(0).all()
