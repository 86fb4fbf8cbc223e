import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import InvalidArgumentError, rows_changed, use_backend
from kernels.operators import check_compiles, check_operator

OP = "rows_changed"
pytestmark = pytest.mark.usefixtures("poisoned_empty")


@pytest.mark.parametrize("shape", [(6, 9), (1, 1), (0, 4), (3, 0)])
def test_rows_that_differ_somewhere(backend, shape):
    before = torch.randint(-(2**62), 2**62, shape)
    after, eligible = before.clone(), torch.rand(shape) < 0.5
    after[torch.rand(shape) < 0.1] += 1
    wanted = [row_before != row_after for row_before, row_after in zip(before.tolist(), after.tolist(), strict=True)]
    assert_equal("changed", rows_changed(before, after, backend=backend), torch.tensor(wanted, dtype=torch.bool))
    wanted = [
        any(x != y and e for x, y, e in zip(*row, strict=True))
        for row in zip(before.tolist(), after.tolist(), eligible.tolist(), strict=True)
    ]
    assert_equal(
        "changed",
        rows_changed(before, after, eligible=eligible, backend=backend),
        torch.tensor(wanted, dtype=torch.bool),
    )


def test_one_token_at_any_place_counts_and_values_use_64_bits(backend):
    before = torch.zeros(8, 8, dtype=torch.int64)
    after = before + (torch.eye(8, dtype=torch.int64) << 32)
    assert rows_changed(before, after, backend=backend).all()
    assert not rows_changed(before, before.clone(), backend=backend).any()
    after = before.clone()
    after[:, 1::2] = 7
    assert not rows_changed(before[:, ::2], after[:, ::2], backend=backend).any()


def test_opcheck_and_compile(backend):
    before, after = torch.randint(0, 2, (2, 5, 3))
    with use_backend(backend):
        check_operator(
            "rows_changed",
            lambda: rows_changed(before, after),
            lambda: rows_changed(before.T, after.T, eligible=torch.rand(3, 5) < 0.5),
        )
    check_compiles(lambda a, b: rows_changed(a, b * 1) | True, before, after)


IDS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("before", "after", "eligible", "argument", "says"),
    [
        (IDS.int(), IDS, None, "before", "int32"),
        (IDS[0], IDS[0], None, "before", r"\[3\]"),
        (IDS, IDS[:, :2], None, "after", r"\[2, 3\]"),
        (IDS, IDS.to("meta"), None, "after", "cpu"),
        (IDS, IDS, IDS, "eligible", "bool"),
    ],
)
def test_bad_input(before, after, eligible, argument, says):
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        rows_changed(before, after, eligible=eligible)
    assert str(caught.value).split()[0] == argument
