import math

import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import InvalidArgumentError, nearest_embedding
from dlm_kernels.reference import nearest_embedding as reference
from kernels.operators import check_compiles, check_operator

pytestmark = pytest.mark.usefixtures("poisoned_empty")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def by_definition(x, table):
    """All distances at once, differences squared in fp64; argmin takes the lowest id."""
    squared = (x.double()[..., None, :] - table.double()).square().sum(-1)
    return squared.argmin(-1), squared.amin(-1).sqrt().float()


@pytest.fixture(params=[None, 64])
def piece(request, monkeypatch):
    """The whole table at once, and a few rows at a time."""
    if request.param:
        monkeypatch.setattr(reference, "ELEMENTS_AT_ONCE", request.param)
        monkeypatch.setattr(reference, "VECTORS_AT_ONCE", 5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "vocabulary"), [((7, 16), 100), ((2, 3, 1), 9), ((1, 33), 1), ((4,), 13), ((0, 4), 3)]
)
def test_nearest_by_definition(piece, shape, vocabulary, dtype):
    x, table = torch.randn(shape).to(dtype), torch.randn(vocabulary, shape[-1]).to(dtype)
    ids, distance = nearest_embedding(x, table)
    wanted = by_definition(x, table)
    assert_equal("ids", ids, wanted[0])
    assert_equal("distance", distance, wanted[1])


def test_ties_take_the_lowest_id(piece):
    """Equal rows, mirrored rows, and a table of nothing else, as the padding of real ones."""
    table = torch.randn(40, 24)
    table[[9, 17, 33]] = table[4].clone()
    x = table[[4, 9, 17, 33, 5]] + torch.tensor([0.01, 0.0, -0.01, 0.0, 0.0])[:, None]
    assert_equal("ids", nearest_embedding(x, table).ids, torch.tensor([4, 4, 4, 4, 5]))
    mirrored = torch.tensor([[5.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    assert_equal("ids", nearest_embedding(torch.zeros(1, 2), mirrored).ids, torch.tensor([1]))
    assert_equal("ids", nearest_embedding(torch.randn(6, 24), table[4:5].expand(50, 24)).ids, torch.zeros(6).long())


def test_close_calls_far_from_the_origin(piece):
    """|x|^2 - 2 x.e + |e|^2 in fp32 would lose these distances altogether."""
    table = 1000 + torch.randn(200, 8) * 1e-2
    x = table[torch.randint(200, (50,))] + torch.randn(50, 8) * 1e-3
    ids, distance = nearest_embedding(x, table)
    wanted = by_definition(x, table)
    assert_equal("ids", ids, wanted[0])
    assert_equal("distance", distance, wanted[1])


def test_ties_where_a_product_in_fp64_rounds(piece):
    """Twelve large dimensions that all rows share swamp the small ones that decide, and many rows are equally near."""
    large = (2**23 + torch.randint(0, 2**23, (12,))).float()
    table = torch.cat((large.expand(300, 12), torch.randint(-3, 4, (300, 4)) / 2), dim=-1)
    x = torch.cat((large.expand(40, 12), torch.randint(-3, 4, (40, 4)) / 2), dim=-1)
    ids, distance = nearest_embedding(x, table)
    wanted = by_definition(x, table)
    assert_equal("ids", ids, wanted[0])
    assert_equal("distance", distance, wanted[1])


def test_nan_and_infinities():
    table = torch.tensor([[math.nan, 0.0], [math.inf, 0.0], [5.0, 5.0], [1.0, 1.0]])
    x = torch.tensor([[0.0, 0.0], [math.nan, 0.0]])
    result = nearest_embedding(x, table)
    assert_equal("ids", result.ids, torch.tensor([3, 0]))
    assert_equal("distance", result.distance, torch.tensor([2**0.5, math.nan]))
    nowhere = nearest_embedding(x[:1], table[:2])
    assert (nowhere.ids.item(), nowhere.distance.item()) == (0, math.inf)


def test_the_distance_matrix_is_never_formed(monkeypatch):
    """No tensor of a tenth of [N, V] elements is made."""
    monkeypatch.setattr(reference, "ELEMENTS_AT_ONCE", 2000)
    monkeypatch.setattr(reference, "VECTORS_AT_ONCE", 50)
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            nonlocal largest
            result = operator(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    x, table = torch.randn(100, 4), torch.randn(1000, 4)
    with Sizes():
        reference.nearest_embedding(x, table)
    assert 0 < largest <= 4000


def test_views_and_gradients():
    x, table = torch.randn(6, 10)[:, ::2].requires_grad_(), torch.randn(5, 30).T
    ids, distance = nearest_embedding(x, table)
    assert_equal("ids", ids, by_definition(x, table)[0])
    assert not distance.requires_grad


def test_opcheck_and_compile():
    x, table = torch.randn(2, 3, 8), torch.randn(20, 8)
    check_operator(
        "nearest_embedding", lambda: nearest_embedding(x, table), lambda: nearest_embedding(x[0, 0].half(), table)
    )
    check_compiles(lambda x, table: tuple(nearest_embedding(x * 2, table)), x, table)


@pytest.mark.parametrize(
    ("x", "table", "argument", "says"),
    [
        (None, torch.zeros(3, 2), "x", "NoneType"),
        (torch.zeros(2).double(), torch.zeros(3, 2), "x", "float64"),
        (torch.zeros(()), torch.zeros(3, 2), "x", r"\[\]"),
        (torch.zeros(4, 3), torch.zeros(3, 2), "x", r"\[\.\.\., 2\]"),
        (torch.zeros(2), torch.zeros(3, 2).long(), "table", "int64"),
        (torch.zeros(2), torch.zeros(2), "table", r"\[V, D\]"),
        (torch.zeros(2), torch.zeros(0, 2), "table", "V >= 1"),
        (torch.zeros(2), torch.zeros(3, 2, device="meta"), "table", "cpu"),
    ],
)
def test_bad_input(x, table, argument, says):
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        nearest_embedding(x, table)
    assert str(caught.value).split()[0] == argument
