import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import InvalidArgumentError, gather_rows, use_backend
from kernels.operators import check_compiles, check_operator

OP = "gather_rows"
pytestmark = pytest.mark.usefixtures("poisoned_empty")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
@pytest.mark.parametrize(
    ("shape", "slots"), [((3, 7), 4), ((2, 5, 3, 2), 9), ((1, 1, 4), 1), ((2, 0, 3), 2), ((2, 3), 0)]
)
def test_rows_one_by_one(backend, shape, slots, dtype):
    source = torch.randint(0, 2 if dtype == torch.bool else 100, shape).to(dtype)
    positions = torch.randint(-2, shape[1] + 2, (shape[0], slots))
    got = gather_rows(source, positions, backend=backend)
    wanted = torch.zeros(shape[0], slots, *shape[2:], dtype=dtype)
    for b in range(shape[0]):
        for m, n in enumerate(positions[b].tolist()):
            if 0 <= n < shape[1]:
                wanted[b, m] = source[b, n]
    assert_equal("rows", got, wanted)
    assert got.is_contiguous()


def test_a_cache_with_heads_first(backend):
    cache, positions = torch.randn(2, 4, 9, 3), torch.tensor([[8, 0, -1], [3, 3, 2]])
    got = gather_rows(cache.transpose(1, 2), positions, backend=backend)
    assert_equal("rows", got[1, 2], cache[1, :, 2])
    assert_equal("rows", got[0, 2], torch.zeros(4, 3))
    assert got.is_contiguous()


def test_any_strides(backend):
    """Expanded, reversed by a permutation, sliced in every dimension; positions too."""
    positions = torch.randint(-1, 8, (5, 3)).T
    for source in (
        torch.randn(1, 7, 2).expand(3, 7, 2),
        torch.randn(4, 2, 7, 3).permute(3, 2, 0, 1),
        torch.randn(6, 14, 4, 6)[::2, ::2, 1:3, ::3],
        torch.randn(3, 7, 1, 1, 2, 2)[..., 0],
        torch.randn(3, 7, 2, dtype=torch.complex64).conj(),
    ):
        assert_equal("rows", gather_rows(source, positions, backend=backend), gather_rows_one_by_one(source, positions))


def gather_rows_one_by_one(source, positions):
    rows = [
        [source[b, n] if 0 <= n < source.shape[1] else torch.zeros_like(source[b, 0]) for n in row]
        for b, row in enumerate(positions.tolist())
    ]
    return torch.stack([torch.stack(row) for row in rows]).resolve_conj()


def test_threads_change_nothing(fast_backend, two_threads):
    source, positions = torch.randn(3, 8, 500, 96).transpose(1, 2), torch.randint(-1, 501, (3, 300))
    got = gather_rows(source, positions, backend=fast_backend)
    assert_equal("rows", got, gather_rows(source, positions, backend="reference"))


def test_opcheck_and_compile(backend):
    source, positions = torch.randn(2, 5, 3), torch.tensor([[4, -1], [0, 0]])
    with use_backend(backend):
        check_operator(
            "gather_rows",
            lambda: gather_rows(source, positions),
            lambda: gather_rows(torch.zeros(2, 4, 5, 3).transpose(1, 2), positions),
        )
    check_compiles(lambda source, positions: gather_rows(source * 2, positions) + 1, source, positions)


@pytest.mark.parametrize(
    ("source", "positions", "argument", "says"),
    [
        (None, torch.zeros(2, 3).long(), "source", "NoneType"),
        (torch.zeros(2), torch.zeros(2, 3).long(), "source", r"\[B, N, ...\]"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "positions", "float32"),
        (torch.zeros(2, 3), torch.zeros(3, 3).long(), "positions", r"\[2, any\]"),
        (torch.zeros(2, 3), torch.zeros(2, 3, device="meta").long(), "positions", "cpu"),
    ],
)
def test_bad_input(source, positions, argument, says):
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        gather_rows(source, positions)
    assert str(caught.value).split()[0] == argument
