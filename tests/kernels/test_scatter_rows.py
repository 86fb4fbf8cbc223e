import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import InvalidArgumentError, gather_rows, scatter_rows_, use_backend
from kernels.operators import check_compiles, check_operator

OP = "scatter_rows_"
pytestmark = pytest.mark.usefixtures("poisoned_empty")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize(
    ("shape", "slots"), [((3, 7), 4), ((2, 5, 3, 2), 9), ((1, 1, 4), 1), ((2, 0, 3), 2), ((2, 3), 0)]
)
def test_rows_one_by_one_in_order(backend, shape, slots, dtype):
    """With repeated positions, the last counts; with positions outside, nothing is written."""
    target, rows = torch.rand(shape).mul(9).to(dtype), torch.rand(shape[0], slots, *shape[2:]).mul(9).to(dtype)
    positions = torch.randint(-2, shape[1] + 2, (shape[0], slots))
    wanted = target.clone()
    for b in range(shape[0]):
        for m, n in enumerate(positions[b].tolist()):
            if 0 <= n < shape[1]:
                wanted[b, n] = rows[b, m]
    assert scatter_rows_(target, positions, rows, backend=backend) is None
    assert_equal("target", target, wanted)


def test_a_cache_with_heads_first_is_written_through(backend):
    cache, rows = torch.randn(2, 4, 9, 3), torch.randn(2, 2, 4, 3)
    wanted = cache.clone()
    wanted[0, :, 8], wanted[1, :, 3] = rows[0, 0], rows[1, 1]
    scatter_rows_(cache.transpose(1, 2), torch.tensor([[8, -1], [-1, 3]]), rows, backend=backend)
    assert_equal("cache", cache, wanted)


def test_what_is_scattered_can_be_gathered(backend):
    target, rows = torch.zeros(3, 10, 4), torch.randn(3, 5, 4)
    positions = torch.stack([torch.randperm(10)[:5] for _ in range(3)])
    scatter_rows_(target, positions, rows, backend=backend)
    assert_equal("rows", gather_rows(target, positions, backend=backend), rows)
    assert (target != 0).any(-1).sum() == 15


def test_any_strides(backend):
    positions = torch.randint(-1, 8, (5, 3)).T
    for target in (
        torch.randn(4, 2, 7, 3).permute(3, 2, 0, 1),
        torch.randn(6, 14, 4, 6)[::2, ::2, 1:3, ::3],
        torch.randn(3, 7, 2, dtype=torch.complex64),
    ):
        rows = torch.randn(3, 5, 1, *target.shape[3:], dtype=target.dtype).expand(3, 5, *target.shape[2:])
        wanted = target.clone()
        for b, row in enumerate(positions.tolist()):
            for m, n in enumerate(row):
                if 0 <= n < 7:
                    wanted[b, n] = rows[b, m]
        scatter_rows_(target, positions, rows, backend=backend)
        assert_equal("target", target, wanted)


def test_rows_of_the_target_itself_are_read_before_they_are_written(backend):
    target = torch.arange(12.0).view(1, 6, 2)
    wanted = target.clone()
    wanted[:, 1:5] = target[:, :4]
    scatter_rows_(target, torch.arange(1, 5)[None], target[:, :4], backend=backend)
    assert_equal("target", target, wanted)


def test_threads_change_nothing(fast_backend, two_threads):
    """Large enough for two threads, every position written several times."""
    positions, rows = torch.randint(-1, 101, (1, 900)), torch.randn(1, 900, 256)
    got, wanted = torch.zeros(2, 1, 100, 256).unbind(0)
    scatter_rows_(got, positions, rows, backend=fast_backend)
    scatter_rows_(wanted, positions, rows, backend="reference")
    assert_equal("target", got, wanted)


def test_opcheck_and_compile(backend):
    target, positions, rows = torch.randn(2, 5, 3), torch.tensor([[4, -1], [0, 0]]), torch.randn(2, 2, 3)

    def write(target, positions, rows):
        scatter_rows_(target, positions, rows * 2)
        return target + 1

    with use_backend(backend):
        check_operator(
            "scatter_rows_",
            lambda: write(target, positions, rows),
            lambda: scatter_rows_(torch.zeros(2, 3, 5).transpose(1, 2), positions, rows),
        )
    check_compiles(write, target, positions, rows)


X, AT, ROWS = torch.zeros(2, 5, 3), torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, 3)


@pytest.mark.parametrize(
    ("target", "positions", "rows", "argument", "says"),
    [
        (X[0, 0], AT, ROWS, "target", r"\[3\]"),
        (X[:1].expand(2, 5, 3), AT, ROWS, "target", "expanded"),
        (X, AT.int(), ROWS, "positions", "int32"),
        (X, AT[:1], ROWS, "positions", r"\[2, any\]"),
        (X, AT, ROWS.half(), "rows", "float16"),
        (X, AT, ROWS[..., :2], "rows", r"\[2, 4, 3\]"),
        (X, AT, ROWS.to("meta"), "rows", "cpu"),
    ],
)
def test_bad_input(target, positions, rows, argument, says):
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        scatter_rows_(target, positions, rows)
    assert str(caught.value).split()[0] == argument
