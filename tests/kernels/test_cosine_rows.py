import math

import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import InvalidArgumentError, cosine_rows, use_backend
from kernels.operators import check_compiles, check_operator

OP = "cosine_rows"
pytestmark = pytest.mark.usefixtures("poisoned_empty")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 4, 64), (5, 1), (7,), (0, 3), (2, 0)])
def test_cosine_by_definition(backend, shape, dtype):
    a = torch.randn(shape).to(dtype)
    b = (a.float() + torch.randn(shape) * 0.1).to(dtype)
    wanted = (
        torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1, eps=0) if shape[-1] else torch.zeros(2)
    )
    got = cosine_rows(a, b, backend=backend)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted.float(), atol=2e-7, rtol=0)


def test_equal_opposite_and_empty_vectors_of_any_size(backend):
    """Squares of these overflow or vanish in fp32; rounding must not carry a cosine beyond 1."""
    a = torch.randn(200, 33) * torch.logspace(-30, 30, 200)[:, None]
    torch.testing.assert_close(cosine_rows(a, a * 2, backend=backend), torch.ones(200), atol=1e-7, rtol=0)
    assert cosine_rows(a, a, backend=backend).max() <= 1
    assert cosine_rows(a, -a, backend=backend).min() >= -1
    assert_equal("cosine", cosine_rows(a, torch.zeros_like(a), backend=backend), torch.zeros(200))


def test_rows_with_nan_or_infinities_are_nan(backend):
    a = torch.ones(3, 2)
    b = torch.tensor([[math.nan, 1.0], [math.inf, 1.0], [1.0, 1.0]])
    assert cosine_rows(a, b, backend=backend).isnan().tolist() == [True, True, False]


def test_views(backend):
    a, b = torch.randn(2, 6, 8).unbind(0)
    whole = cosine_rows(a.T.contiguous(), b.T.contiguous(), backend=backend)
    assert_equal("cosine", cosine_rows(a.T, b.T, backend=backend), whole)
    assert_equal("cosine", cosine_rows(a.T[::3], b.T[::3], backend=backend), whole[::3])


def test_threads_neighbours_and_strides_change_nothing(fast_backend, two_threads):
    """Long vectors of both kinds of width, in rows of a larger tensor."""
    a, b = torch.randn(2, 40, 2, 5000).transpose(1, 2), torch.randn(2, 2, 40, 5000).bfloat16()
    whole = cosine_rows(a, b, backend=fast_backend)
    torch.testing.assert_close(whole, cosine_rows(a, b, backend="reference"), atol=1e-7, rtol=0)
    torch.set_num_threads(1)
    assert_equal("cosine", whole, cosine_rows(a, b, backend=fast_backend))
    assert_equal("cosine", whole[1, 1, 39], cosine_rows(a[1, 1, 39], b[1, 1, 39], backend=fast_backend))


def test_opcheck_and_compile(backend):
    a, b = torch.randn(2, 3, 4, 5).unbind(0)
    with use_backend(backend):
        check_operator("cosine_rows", lambda: cosine_rows(a, b.half()), lambda: cosine_rows(a[0, 0], b[0, 0]))
    check_compiles(lambda a, b: cosine_rows(a * 2, b) + 1, a, b)


@pytest.mark.parametrize(
    ("a", "b", "argument", "says"),
    [
        (None, torch.zeros(2), "a", "NoneType"),
        (torch.zeros(()), torch.zeros(()), "a", r"\[\.\.\., D\]"),
        (torch.zeros(2).double(), torch.zeros(2), "a", "float64"),
        (torch.zeros(3, 2), torch.zeros(2), "b", r"\[3, 2\]"),
        (torch.zeros(2), torch.zeros(2).long(), "b", "int64"),
        (torch.zeros(2), torch.zeros(2, device="meta"), "b", "cpu"),
    ],
)
def test_bad_input(a, b, argument, says):
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        cosine_rows(a, b)
    assert str(caught.value).split()[0] == argument
