"""`nearest_embedding` and `gaussian_step_`: embedding-space diffusion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlm_benches.kernels.cases import Case, Rival, Sizes, Workload, assert_agree
from dlm_benches.kernels.timing import compiled
from dlm_kernels import gaussian_step_, nearest_embedding
from dlm_kernels.roofline import bytes_moved

OPS = ("nearest_embedding", "gaussian_step_")
BERT = 30522
ALPHA_T, SIGMA_T, ALPHA_S, SIGMA_S = 0.6, 0.8, 0.8, 0.6
ETA = {"DDIM": 0.0, "ancestral": 1.0}


def cases(op: str, sizes: Sizes) -> list[Case]:
    dtypes = sizes.dtype or ["fp32"]
    if op == "nearest_embedding":
        rows, vocabulary = max(sizes.rows or [1024]), (sizes.vocabulary or [BERT])[0]
        return [Case(op, {"rows": rows, "dimension": 128, "vocabulary": vocabulary}, dtype) for dtype in dtypes]
    shape = {"batch": max(sizes.rows or [16]), "length": 256, "dimension": 768}
    return [Case(op, shape, dtype, settings=settings) for dtype in dtypes for settings in ETA]


def build(case: Case, compile_: bool = True) -> Workload:
    return _nearest(case) if case.op == "nearest_embedding" else _gaussian(case, compile_)


def _nearest(case: Case) -> Workload:
    """Vectors near rows of the table, as they are towards the end of a generation."""
    rows, dimension, vocabulary = (case.shape[name] for name in ("rows", "dimension", "vocabulary"))
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(vocabulary, dimension, generator=generator)
    nearby = table[torch.randint(vocabulary, (rows,), generator=generator)]
    x = (nearby + 0.5 * torch.randn(rows, dimension, generator=generator)).to(case.torch_dtype)
    table = table.to(case.torch_dtype)
    return Workload(
        lambda backend: nearest_embedding(x, table, backend=backend),
        bytes_moved("nearest_embedding", **case.shape, itemsize=case.itemsize),
        table,
        {
            "cdist + argmin": Rival(lambda: by_cdist(x, table), _ids_and_distance),
            "matrix product + argmin": Rival(lambda: by_product(x, table), _ids_and_distance),
        },
    )


def _ids_and_distance(ours: Any, theirs: Any) -> None:
    assert_agree(ours, theirs, rtol=1e-3, atol=1e-3)  # theirs come from differences of large squares


def by_cdist(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    distance, ids = torch.cdist(x.float(), table.float()).min(-1)
    return ids, distance


def by_product(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    x, table = x.float(), table.float()
    least, ids = (table.square().sum(-1) - 2 * x @ table.T).min(-1)
    return ids, (least + x.square().sum(-1)).clamp(min=0).sqrt()


def _gaussian(case: Case, compile_: bool) -> Workload:
    shape = tuple(case.shape.values())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(case.torch_dtype)
    denoised = torch.randn(shape, generator=generator).to(case.torch_dtype)
    eta = ETA[case.settings]
    levels = {"alpha_t": ALPHA_T, "sigma_t": SIGMA_T, "alpha_s": ALPHA_S, "sigma_s": SIGMA_S}
    work = Workload(
        lambda backend: gaussian_step_(x, denoised, **levels, eta=eta, backend=backend),
        bytes_moved("gaussian_step_", **case.shape, itemsize=case.itemsize, noisy=eta > 0),
        denoised,
        state=(x,),
    )

    def agrees(ours: Any, theirs: Any) -> None:
        tolerance = 1e-5 if case.dtype == "fp32" else 2e-2
        assert_agree(ours[:1], theirs[:1], rtol=tolerance, atol=tolerance)

    check = None if eta else agrees
    work.rivals["eager"] = Rival(lambda: x.copy_(ddim(x, denoised, eta)), check)
    best = compiled({"ddim": ddim}, (x, denoised, eta)) if compile_ else None
    if best is not None:
        form = best[1]
        work.rivals["torch.compile"] = Rival(lambda: x.copy_(form(x, denoised, eta)), check)
    return work


def ddim(x: Tensor, denoised: Tensor, eta: float) -> Tensor:
    """DDIM as schedulers write it: predicted noise, its direction, fresh noise (arXiv:2010.02502)."""
    noise = (x.float() - ALPHA_T * denoised.float()) / SIGMA_T
    spread = eta * SIGMA_S / SIGMA_T * (SIGMA_T**2 - (ALPHA_T / ALPHA_S) ** 2 * SIGMA_S**2) ** 0.5
    after = ALPHA_S * denoised.float() + (SIGMA_S**2 - spread**2) ** 0.5 * noise
    if eta:
        after = after + spread * torch.randn_like(after)
    return after.to(x.dtype)
