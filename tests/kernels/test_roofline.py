"""The traffic model against counts by hand, and against the tensors that the operators are given and return."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dlm_kernels as dk
from dlm_kernels.library import SCHEMAS
from dlm_kernels.roofline import TRAFFIC, bytes_moved

V = 1000


def test_every_op_has_a_count():
    assert set(TRAFFIC) == set(SCHEMAS) | {"score_hidden"}


# Counted on paper: logits R V b; 8 + 4 x 4 a row of statistics; tokens, ids and keys 8, flags 1, confidences 4.
@pytest.mark.parametrize(
    ("op", "shape", "read", "written"),
    [
        ("score_tokens", {"rows": 128, "vocabulary": 126464, "itemsize": 2}, 32374784, 3072),
        ("score_tokens", {"rows": 3, "vocabulary": 10, "itemsize": 4, "sampled": True}, 144, 72),
        ("score_hidden", {"rows": 2, "dimension": 8, "vocabulary": 10, "itemsize": 2}, 192, 48),
        ("select_positions", {"batch": 2, "length": 8}, 80, 16),
        ("select_positions", {"batch": 2, "length": 8, "entropy": True}, 144, 16),
        ("commit_", {"batch": 2, "length": 8, "selected": 3}, 40, 24),
        (
            "denoise_step_",
            {"batch": 2, "length": 8, "eligible": 4, "committed": 2, "vocabulary": 10, "itemsize": 4},
            288,
            112,
        ),
        ("keyed_uniform", {"count": 5}, 40, 20),
        ("revoke_", {"batch": 2, "length": 8, "revoked": 3}, 192, 48),
        ("revoke_", {"batch": 2, "length": 8, "revoked": 3, "drawn": True, "masked_only": False}, 336, 48),
        (
            "absorbing_step_",
            {"batch": 2, "length": 8, "filled": 3, "remasked": 1, "vocabulary": 10, "itemsize": 2},
            316,
            48,
        ),
        ("uniform_step_", {"batch": 2, "length": 8, "changed": 5, "vocabulary": 10, "itemsize": 2}, 576, 56),
        (
            "score_entropy_step_",
            {"batch": 2, "length": 8, "movable": 4, "changed": 1, "vocabulary": 10, "itemsize": 2},
            240,
            24,
        ),
        ("nearest_embedding", {"rows": 4, "dimension": 8, "vocabulary": 10, "itemsize": 4}, 448, 48),
        ("gaussian_step_", {"batch": 2, "length": 3, "dimension": 5, "itemsize": 4}, 240, 120),
        (
            "gaussian_step_",
            {"batch": 2, "length": 3, "dimension": 5, "itemsize": 4, "second_order": True},
            360,
            120,
        ),
        ("rows_changed", {"batch": 2, "length": 8}, 256, 2),
        ("topk_kl", {"rows": 3, "vocabulary": 10, "k": 2, "itemsize": 2, "before": 4}, 216, 96),
        ("cosine_rows", {"rows": 3, "dimension": 5, "itemsize": 2}, 60, 12),
        ("gather_rows", {"rows": 6, "width": 5, "itemsize": 2}, 108, 60),
        ("scatter_rows_", {"rows": 6, "width": 5, "itemsize": 2}, 108, 60),
    ],
)
def test_bytes_by_hand(op, shape, read, written):
    traffic = bytes_moved(op, **shape)
    assert (traffic.read, traffic.written, traffic.bytes) == (read, written, read + written)


def test_operations_by_hand():
    scores = bytes_moved("score_tokens", rows=2, vocabulary=10, itemsize=4)
    assert scores.flops == 2 * 10 * 7
    assert bytes_moved("score_tokens", rows=2, vocabulary=10, itemsize=4, sampled=True).flops == 2 * 10 * (7 + 33)
    hidden = bytes_moved("score_hidden", rows=2, dimension=8, vocabulary=10, itemsize=2)
    assert (hidden.flops, hidden.matrix_flops) == (scores.flops, 2 * 2 * 8 * 10)
    assert bytes_moved("select_positions", batch=2, length=8).flops == 2 * 8 * 3
    assert bytes_moved("cosine_rows", rows=3, dimension=5, itemsize=2).flops == 3 * 5 * 6


class OperatorTensors(TorchDispatchMode):
    """Bytes of what the operators of this package read and write, an expanded tensor counted as what it holds.

    A number given for a whole call reaches the operator as an expanded tensor of one element: not counted. What is overwritten
    counts as written where it changed.
    """

    def __init__(self, unread):
        super().__init__()
        self.unread, self.read, self.written = unread, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "dlm_kernels":
            return func(*args, **(kwargs or {}))
        tensors = [(a, v) for a, v in zip(func._schema.arguments, args, strict=True) if isinstance(v, torch.Tensor)]
        before = [v.clone() for _, v in tensors]
        returned = func(*args)
        for (argument, value), old in zip(tensors, before, strict=True):
            held = [size for size, stride in zip(value.shape, value.stride(), strict=True) if stride]
            count = torch.Size(held).numel() if held else 1
            if count > 1 and argument.name not in self.unread:
                self.read += count * value.element_size()
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.written += int((value != old).sum()) * value.element_size()
        for tensor in returned if isinstance(returned, tuple) else () if returned is None else (returned,):
            self.written += tensor.numel() * tensor.element_size()
        return returned


B, L, D = 2, 6, 16
MASK = V - 1
CANVAS = {"batch": B, "length": L}
LOGITS = {"vocabulary": V, "itemsize": 4}


def masks():
    return torch.full((B, L), MASK)


def tokens():
    return torch.arange(B * L).view(B, L)


def kept(k):
    """Of a step before."""
    return dk.TopK(torch.zeros(B, L), torch.arange(k).repeat(B, L, 1), torch.full((B, L, k + 1), 1 / (k + 1)).log())


CALLS = {
    "score_tokens": (
        lambda x: dk.score_tokens(x, backend="reference"),
        lambda changed: {"rows": B * L, **LOGITS},
        {"row_ids"},
    ),
    "score_tokens, sampled": (
        lambda x: dk.score_tokens(x, temperature=1.0, backend="reference"),
        lambda changed: {"rows": B * L, **LOGITS, "sampled": True},
        set(),
    ),
    "select_positions": (
        lambda x: dk.select_positions(x[..., 0].clone(), tokens() >= 0, quota=2, backend="reference"),
        lambda changed: CANVAS,
        set(),
    ),
    "commit_": (
        lambda x: dk.commit_(masks(), tokens(), tokens() >= 0, backend="reference"),
        lambda changed: {**CANVAS, "selected": B * L},
        {"tokens"},
    ),
    "denoise_step_": (
        lambda x: dk.denoise_step_(masks(), x, mask_id=MASK, quota=L, suppress_ids=(), backend="reference"),
        lambda changed: {**CANVAS, "eligible": B * L, "committed": B * L, **LOGITS},
        {"row_ids"},
    ),
    "keyed_uniform": (
        lambda x: dk.keyed_uniform(0, tokens(), 0, backend="reference"),
        lambda changed: {"count": B * L},
        set(),
    ),
    "revoke_": (
        lambda x: dk.revoke_(
            tokens(), torch.rand(B, L) / 2, mask_id=MASK, threshold=0.9, committed=L + 1, backend="reference"
        ),
        lambda changed: {**CANVAS, "revoked": B * L},
        {"row_ids"},
    ),
    "absorbing_step_": (
        lambda x: dk.absorbing_step_(
            masks(), x, mask_id=MASK, alpha_t=0.0, alpha_s=1.0, suppress_ids=(), backend="reference"
        ),
        lambda changed: {**CANVAS, "filled": B * L, "remasked": 0, **LOGITS},
        set(),
    ),
    "uniform_step_": (
        lambda x: dk.uniform_step_(tokens(), x, denoiser="posterior", alpha_t=0.1, alpha_s=0.9, backend="reference"),
        lambda changed: {**CANVAS, "changed": changed, **LOGITS},
        set(),
    ),
    "score_entropy_step_": (
        lambda x: dk.score_entropy_step_(tokens(), x, graph="uniform", delta_sigma=1.0, backend="reference"),
        lambda changed: {**CANVAS, "movable": B * L, "changed": changed, **LOGITS},
        set(),
    ),
    "nearest_embedding": (
        lambda x: dk.nearest_embedding(torch.randn(B * L, D), torch.randn(V, D), backend="reference"),
        lambda changed: {"rows": B * L, "dimension": D, **LOGITS},
        set(),
    ),
    "gaussian_step_": (
        lambda x: dk.gaussian_step_(
            torch.randn(B, L, D),
            torch.randn(B, L, D),
            alpha_t=0.6,
            sigma_t=0.8,
            alpha_s=0.8,
            sigma_s=0.6,
            backend="reference",
        ),
        lambda changed: {**CANVAS, "dimension": D, "itemsize": 4},
        {"row_ids"},
    ),
    "rows_changed": (
        lambda x: dk.rows_changed(tokens(), masks(), backend="reference"),
        lambda changed: CANVAS,
        set(),
    ),
    "topk_kl": (
        lambda x: dk.topk_kl(x, 4, before=kept(8), backend="reference"),
        lambda changed: {"rows": B * L, "k": 4, "before": 8, **LOGITS},
        set(),
    ),
    "cosine_rows": (
        lambda x: dk.cosine_rows(torch.randn(B * L, D), torch.randn(B * L, D), backend="reference"),
        lambda changed: {"rows": B * L, "dimension": D, "itemsize": 4},
        set(),
    ),
    "gather_rows": (
        lambda x: dk.gather_rows(torch.randn(B, L, D), torch.arange(L).repeat(B, 1), backend="reference"),
        lambda changed: {"rows": B * L, "width": D, "itemsize": 4},
        set(),
    ),
    "scatter_rows_": (
        lambda x: dk.scatter_rows_(
            torch.zeros(B, L, D), torch.arange(L).repeat(B, 1), torch.randn(B, L, D), backend="reference"
        ),
        lambda changed: {"rows": B * L, "width": D, "itemsize": 4},
        {"target"},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_bytes_of_what_an_operator_touches(name):
    """All positions eligible and, where the op decides it alone, all changed."""
    call, shape, unread = CALLS[name]
    op = name.split(",")[0]
    x = torch.randn(B, L, V)
    with OperatorTensors(unread) as counted:
        returned = call(x)
    changed = int(returned.sum()) if op in ("uniform_step_", "score_entropy_step_") else 0
    traffic = bytes_moved(op, **shape(changed))
    assert (counted.read, counted.written) == (traffic.read, traffic.written)
