"""How far a float may be from the truth, and the comparisons that use it.

The rule for every float: |op - truth| <= |PyTorch in fp32 - truth| + tolerance, with the truth in fp64. Integers are equal.
"""

import torch

# (absolute, relative). bf16 and fp16 logits have the bounds of fp32: they are widened exactly, and all after that is fp32.
# Confidences are as small as 1e-9 and count relatively; a margin is a difference, so its bound goes with the highest
# probability, which the caller gives as `scale`. Sums keep what rounds off, so they lose little more than a rounding.
TOLERANCES = {
    "confidence": (1e-12, 5e-6),
    "margin": (1e-5, 0.0),
    "entropy": (1e-5, 2e-6),
    "logsumexp": (1e-5, 1e-6),
    "step": (1e-6, 1e-6),  # of Gaussian diffusion: three products of numbers near 1
}


def assert_no_worse(name, got, truth, eager, labels=None, scale=1.0):
    """`got` fp32 is no farther from `truth` fp64 than `eager` fp32 is, plus the tolerance; NaN and infinities agree."""
    absolute, relative = TOLERANCES[name]
    got, truth, eager = got.double(), truth.double(), eager.double()
    special = ~truth.isfinite()
    same = torch.where(truth.isnan(), got.isnan(), got == truth)
    error, allowed = (
        (got - truth).abs(),
        (eager - truth).abs().nan_to_num(0.0, 0.0, 0.0) + absolute * scale + relative * truth.abs(),
    )
    wrong = torch.where(special, ~same, ~(error <= allowed))
    if wrong.any():
        rows = wrong.nonzero()[:5].tolist()
        details = [
            f"{labels[row[0]] if labels else row}: got {got[tuple(row)]}, truth {truth[tuple(row)]}, eager {eager[tuple(row)]}"
            for row in rows
        ]
        raise AssertionError(f"{name} differs in {int(wrong.sum())} of {wrong.numel()}: " + "; ".join(details))


def assert_equal(name, got, wanted, labels=None):
    """Equal element by element (NaN equals NaN), dtype and shape included."""
    assert got.dtype == wanted.dtype, f"{name}: {got.dtype}, wanted {wanted.dtype}"
    assert got.shape == wanted.shape, f"{name}: {list(got.shape)}, wanted {list(wanted.shape)}"
    wrong = got != wanted
    if got.is_floating_point():
        wrong &= ~(got.isnan() & wanted.isnan())
    if wrong.any():
        rows = wrong.nonzero()[:5].tolist()
        details = [f"{labels[r[0]] if labels else r}: got {got[tuple(r)]}, wanted {wanted[tuple(r)]}" for r in rows]
        raise AssertionError(f"{name} differs in {int(wrong.sum())} of {wrong.numel()}: " + "; ".join(details))
