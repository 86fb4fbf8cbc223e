import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import InvalidArgumentError, nearest_embedding, use_backend
from dlm_kernels.reference import nearest_embedding as reference
from kernels.operators import check_compiles, check_operator

OP = "nearest_embedding"
pytestmark = pytest.mark.usefixtures("poisoned_empty")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def by_definition(x, table):
    """All distances at once, differences squared in fp64; argmin takes the lowest id."""
    squared = (x.double()[..., None, :] - table.double()).square().sum(-1)
    return squared.argmin(-1), squared.amin(-1).sqrt().float()


@pytest.fixture(params=[None, 64])
def piece(request, backend, monkeypatch):
    """The whole table at once, and a few rows at a time, of which the reference alone can be told."""
    if request.param:
        if backend != "reference":
            pytest.skip("its pieces are fixed")
        monkeypatch.setattr(reference, "ELEMENTS_AT_ONCE", request.param)
        monkeypatch.setattr(reference, "VECTORS_AT_ONCE", 5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "vocabulary"), [((7, 16), 100), ((2, 3, 1), 9), ((1, 33), 1), ((4,), 13), ((0, 4), 3)]
)
def test_nearest_by_definition(backend, piece, shape, vocabulary, dtype):
    x, table = torch.randn(shape).to(dtype), torch.randn(vocabulary, shape[-1]).to(dtype)
    ids, distance = nearest_embedding(x, table, backend=backend)
    wanted = by_definition(x, table)
    assert_equal("ids", ids, wanted[0])
    assert_equal("distance", distance, wanted[1])


def test_ties_take_the_lowest_id(backend, piece):
    """Equal rows, mirrored rows, and a table of nothing else, as the padding of real ones."""
    table = torch.randn(40, 24)
    table[[9, 17, 33]] = table[4].clone()
    x = table[[4, 9, 17, 33, 5]] + torch.tensor([0.01, 0.0, -0.01, 0.0, 0.0])[:, None]
    assert_equal("ids", nearest_embedding(x, table, backend=backend).ids, torch.tensor([4, 4, 4, 4, 5]))
    mirrored = torch.tensor([[5.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    assert_equal("ids", nearest_embedding(torch.zeros(1, 2), mirrored, backend=backend).ids, torch.tensor([1]))
    assert_equal(
        "ids",
        nearest_embedding(torch.randn(6, 24), table[4:5].expand(50, 24), backend=backend).ids,
        torch.zeros(6).long(),
    )


def test_close_calls_far_from_the_origin(backend, piece):
    """|x|^2 - 2 x.e + |e|^2 in fp32 would lose these distances altogether."""
    table = 1000 + torch.randn(200, 8) * 1e-2
    x = table[torch.randint(200, (50,))] + torch.randn(50, 8) * 1e-3
    ids, distance = nearest_embedding(x, table, backend=backend)
    wanted = by_definition(x, table)
    assert_equal("ids", ids, wanted[0])
    assert_equal("distance", distance, wanted[1])


def test_ties_where_a_product_in_fp64_rounds(backend, piece):
    """Twelve large dimensions that all rows share swamp the small ones that decide, and many rows are equally near."""
    large = (2**23 + torch.randint(0, 2**23, (12,))).float()
    table = torch.cat((large.expand(300, 12), torch.randint(-3, 4, (300, 4)) / 2), dim=-1)
    x = torch.cat((large.expand(40, 12), torch.randint(-3, 4, (40, 4)) / 2), dim=-1)
    ids, distance = nearest_embedding(x, table, backend=backend)
    wanted = by_definition(x, table)
    assert_equal("ids", ids, wanted[0])
    assert_equal("distance", distance, wanted[1])


def test_nan_and_infinities(backend):
    table = torch.tensor([[math.nan, 0.0], [math.inf, 0.0], [5.0, 5.0], [1.0, 1.0]])
    x = torch.tensor([[0.0, 0.0], [math.nan, 0.0]])
    result = nearest_embedding(x, table, backend=backend)
    assert_equal("ids", result.ids, torch.tensor([3, 0]))
    assert_equal("distance", result.distance, torch.tensor([2**0.5, math.nan]))
    assert_equal(
        "ids", nearest_embedding(torch.tensor([[math.inf, 0.0]]), table, backend=backend).ids, torch.tensor([0])
    )
    nowhere = nearest_embedding(x[:1], table[:2], backend=backend)
    assert (nowhere.ids.item(), nowhere.distance.item()) == (0, math.inf)


@pytest.mark.parametrize(
    ("count", "vocabulary", "dimension"), [(9, 7, 3), (30, 1000, 65), (13, 30522, 16), (2, 151936, 2)]
)
def test_same_as_the_reference(fast_backend, count, vocabulary, dimension):
    x, table = torch.randn(count, dimension), torch.randn(vocabulary, dimension)
    x[: count // 2] = table[torch.randint(vocabulary, (count // 2,))]
    for a, b in ((x, table), (x.half(), table.bfloat16()), (x, (table * 2).round())):
        assert_nearest(fast_backend, a, b)


def assert_nearest(backend, x, table):
    got, wanted = (nearest_embedding(x, table, backend=name) for name in (backend, "reference"))
    assert_equal("ids", got.ids, wanted.ids)
    torch.testing.assert_close(got.distance, wanted.distance, rtol=1.2e-7, atol=0, equal_nan=True)


def test_vectors_and_tables_of_any_size(fast_backend):
    """Squares that overflow or vanish in fp32, and both in one table; far outliers; subnormal differences."""
    x, table = torch.randn(20, 6), torch.randn(90, 6)
    mixed = torch.logspace(-38, 38, 90)[:, None]
    for scale in (1e-42, 1e-25, 1e-18, 1e12, 1e18, 1e25, 1e37):
        assert_nearest(fast_backend, x * scale, table * scale)
        assert_nearest(fast_backend, x * scale, table * mixed)
        assert_nearest(fast_backend, (x * mixed[::5][:18].repeat(2, 1)[:20]).flip(0), table * scale)
    largest = torch.finfo(torch.float32).max
    ends = torch.tensor([[largest, -largest], [-largest, largest], [largest, largest], [0.0, 0.0]])
    assert_nearest(fast_backend, ends, ends.flip(0))


def test_every_row_nearer_than_the_one_before(fast_backend):
    direction = torch.randn(1, 5)
    table = direction * torch.linspace(9, 1, 700)[:, None]
    assert_nearest(fast_backend, torch.cat((direction, -direction, direction * 4)), table)


def test_threads_neighbours_and_blocks_change_nothing(fast_backend, two_threads):
    """More vectors of so many dimensions than are searched for at once."""
    table = torch.randn(50, 3000)
    x = table[torch.randint(50, (210,))] + torch.randn(210, 3000)
    whole = nearest_embedding(x, table, backend=fast_backend)
    torch.set_num_threads(1)
    single = nearest_embedding(x, table, backend=fast_backend)
    alone = nearest_embedding(x[150], table, backend=fast_backend)
    assert_equal("ids", whole.ids, by_definition(x[:, None], table)[0][:, 0])
    for field in whole._fields:
        assert_equal(field, getattr(whole, field), getattr(single, field))
        assert_equal(field, getattr(whole, field)[150], getattr(alone, field))


def test_memory_below_a_tenth_of_the_distance_matrix(fast_backend):
    """In a process that may not map that much more: the matrix would take 1.6 GB."""
    resource = pytest.importorskip("resource")
    if not Path("/proc/self/status").exists() or not hasattr(resource, "RLIMIT_AS"):
        pytest.skip("needs to know and to limit a process's memory")
    program = f"""
import resource, torch
from pathlib import Path
from dlm_kernels import nearest_embedding
torch.set_num_threads(2)
x, table = torch.randn(4000, 2), torch.randn(100_000, 2)
nearest_embedding(x[:300], table[:4000], backend="{fast_backend}")
size = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
limit = int(size.split()[1]) * 1024 + 4000 * 100_000 * 4 // 10
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
assert nearest_embedding(x, table, backend="{fast_backend}").ids.shape == (4000,)
try:
    torch.cdist(x, table)
except RuntimeError:
    print("the matrix does not fit")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "the matrix does not fit", done.stderr


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


def test_views_and_gradients(backend):
    x, table = torch.randn(6, 10)[:, ::2].requires_grad_(), torch.randn(5, 30).T
    ids, distance = nearest_embedding(x, table, backend=backend)
    assert_equal("ids", ids, by_definition(x, table)[0])
    assert not distance.requires_grad


def test_opcheck_and_compile(backend):
    x, table = torch.randn(2, 3, 8), torch.randn(20, 8)
    with use_backend(backend):
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
