import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import InvalidArgumentError, gather_rows
from kernels.operators import check_compiles, check_operator

pytestmark = pytest.mark.usefixtures("poisoned_empty")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
@pytest.mark.parametrize(
    ("shape", "slots"), [((3, 7), 4), ((2, 5, 3, 2), 9), ((1, 1, 4), 1), ((2, 0, 3), 2), ((2, 3), 0)]
)
def test_rows_one_by_one(shape, slots, dtype):
    source = torch.randint(0, 2 if dtype == torch.bool else 100, shape).to(dtype)
    positions = torch.randint(-2, shape[1] + 2, (shape[0], slots))
    got = gather_rows(source, positions)
    wanted = torch.zeros(shape[0], slots, *shape[2:], dtype=dtype)
    for b in range(shape[0]):
        for m, n in enumerate(positions[b].tolist()):
            if 0 <= n < shape[1]:
                wanted[b, m] = source[b, n]
    assert_equal("rows", got, wanted)
    assert got.is_contiguous()


def test_a_cache_with_heads_first():
    cache, positions = torch.randn(2, 4, 9, 3), torch.tensor([[8, 0, -1], [3, 3, 2]])
    got = gather_rows(cache.transpose(1, 2), positions)
    assert_equal("rows", got[1, 2], cache[1, :, 2])
    assert_equal("rows", got[0, 2], torch.zeros(4, 3))
    assert got.is_contiguous()


def test_opcheck_and_compile():
    source, positions = torch.randn(2, 5, 3), torch.tensor([[4, -1], [0, 0]])
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
