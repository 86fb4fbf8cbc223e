import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import commit_, denoise_step_, keyed_uniform, score_tokens, select_positions

MASK = 15
OPS = ("score_tokens", "select_positions", "commit_", "denoise_step_", "keyed_uniform")


def parameters(shape):
    """temperature, top_k, top_p, seed, row_ids, step"""
    return (
        torch.rand(shape),
        torch.randint(0, 9, shape),
        torch.full((), 0.9).expand(shape),
        torch.zeros((), dtype=torch.int64).expand(shape),
        torch.arange(shape[0] * shape[1]).view(shape),
        torch.ones(shape, dtype=torch.int64),
    )


def samples(op, backend):
    shape = (2, 5)
    logits, score = torch.randn(*shape, 16), torch.rand(shape)
    eligible, at_least = torch.rand(shape) < 0.7, torch.ones(2, dtype=torch.int64)
    tokens = torch.full(shape, MASK)
    quota, threshold = torch.tensor([1, 2]), torch.tensor([0.9, 0.5])
    suppressed = torch.tensor([MASK])
    return {
        "score_tokens": [
            (logits, *parameters(shape), None, None, False, False, backend),
            (logits.bfloat16(), *parameters(shape), suppressed, eligible, True, True, backend),
            (logits[:, ::2], *parameters((2, 3)), None, None, True, False, backend),
        ],
        "select_positions": [
            (score, eligible, None, None, None, None, None, at_least, False, backend),
            (score, eligible, quota, threshold, threshold, threshold, score, at_least, True, backend),
        ],
        "commit_": [
            (tokens, torch.zeros_like(tokens), eligible, backend),
            (torch.full((2, 10), MASK)[:, ::2], torch.zeros_like(tokens), eligible, backend),
        ],
        "denoise_step_": [
            (tokens, logits, MASK, *parameters(shape), None, None, False, False, "margin", None, threshold, None, None,
             at_least, False, backend),
            (tokens, logits, MASK, *parameters(shape), suppressed, eligible, True, False, "random", quota, None, None,
             threshold, at_least, False, backend),
        ],
        "keyed_uniform": [(*torch.randint(99, (3, *shape)), 1, backend)],
    }[op]  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_opcheck(backend, op):
    """Schema (no hidden writes, no aliases), autograd registration, fake shapes and strides, functionalisation."""
    operator = getattr(torch.ops.dlm_kernels, op).default
    for arguments in samples(op, backend):
        torch.library.opcheck(operator, arguments)


def score(x, tokens, selected):
    return tuple(score_tokens(x, temperature=0.8, top_k=4, top_p=0.9, suppress_ids=[MASK]))


def select(x, tokens, selected):
    return select_positions(x[..., 0], selected, threshold=0.6, quota=1, factor=0.5)


def commit(x, tokens, selected):
    proposal = x.argmax(-1)
    commit_(tokens, proposal, selected)
    return tokens + 1


def denoise(x, tokens, selected):
    stats = denoise_step_(tokens, x * 2, mask_id=MASK, eligible=selected, threshold=0.5, temperature=1.0, step=2)
    return (*stats, tokens + 1)


def uniform(x, tokens, selected):
    return keyed_uniform(3, tokens, 1, stream=2) + 1


def run_compiled(function, backend, compiler):
    x, tokens = torch.randn(2, 6, 16), torch.full((2, 6), MASK)
    selected = torch.rand(2, 6) < 0.6
    from dlm_kernels import use_backend

    torch.compiler.reset()
    with use_backend(backend):
        eager_tokens, compiled_tokens = tokens.clone(), tokens.clone()
        wanted = function(x, eager_tokens, selected)
        compiled = torch.compile(function, fullgraph=True, backend=compiler)
        got = compiled(x, compiled_tokens, selected)
    for a, b in zip(got, wanted, strict=True):
        assert_equal("result", a, b)
    assert_equal("tokens", compiled_tokens, eager_tokens)


@pytest.mark.parametrize("function", [score, select, commit, denoise, uniform], ids=lambda f: f.__name__)
def test_compiles_as_one_graph(function):
    run_compiled(function, "reference", "aot_eager")


def test_a_model_and_its_step_are_one_graph(fast_backend):
    """Several steps with the seed and the step as tensors: no graph break, no recompilation, the tokens of eager calls."""
    from dlm_kernels import use_backend

    model = torch.nn.Sequential(torch.nn.Embedding(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 16)).requires_grad_(
        False
    )
    model[2].weight.mul_(9)

    def denoise(tokens, seed, step):
        return denoise_step_(
            tokens, model(tokens), mask_id=MASK, temperature=1.0, seed=seed, step=step, quota=2
        ).remaining

    torch.compiler.reset()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(denoise, fullgraph=True, backend=counting)
    eager_tokens, compiled_tokens = torch.full((2, 6), MASK), torch.full((2, 6), MASK)
    with use_backend(fast_backend):
        for step in range(3):
            keys = torch.tensor([[5], [6]]), torch.tensor(step)
            assert_equal("remaining", compiled(compiled_tokens, *keys), denoise(eager_tokens, *keys))
            assert_equal("tokens", compiled_tokens, eager_tokens)
    assert (eager_tokens != MASK).all()
    assert len(graphs) == 1


def test_compiles_with_inductor():
    run_compiled(denoise, "reference", "inductor")


def test_compiled_code_follows_the_backend_choice(fast_backend):
    """The backend is resolved when the op runs, so the same compiled code serves every backend."""
    run_compiled(denoise, fast_backend, "aot_eager")


def test_compiles_with_dynamic_shapes():
    from dlm_kernels import use_backend

    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: score_tokens(x, temperature=1.0), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    with use_backend("reference"):
        for rows in (3, 5, 8):
            x = torch.randn(rows, 4, 16)
            assert_equal("token", compiled(x).token, score_tokens(x, temperature=1.0).token)
