"""`rows_changed`, `topk_kl`, `cosine_rows`, `gather_rows`, `scatter_rows_`: what caches and skipped steps need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlm_benches.kernels.cases import Case, Rival, Sizes, Workload, assert_agree, first_result, make_logits
from dlm_benches.kernels.timing import compiled
from dlm_kernels import cosine_rows, gather_rows, rows_changed, scatter_rows_, topk_kl
from dlm_kernels.roofline import bytes_moved

OPS = ("rows_changed", "topk_kl", "cosine_rows", "gather_rows", "scatter_rows_")
LLADA, LLADA_WIDTH = 126464, 4096
K = 8


def cases(op: str, sizes: Sizes) -> list[Case]:
    if op == "rows_changed":
        return [Case(op, {"batch": max(sizes.rows or [64]), "length": 1024}, "int64")]
    if op == "topk_kl":
        rows, vocabulary = max(sizes.rows or [128]), (sizes.vocabulary or [LLADA])[0]
        shape = {"rows": rows, "vocabulary": vocabulary, "k": min(K, vocabulary)}
        return [Case(op, shape, dtype, "mixed") for dtype in sizes.dtype or ["fp32", "bf16"]]
    if op == "cosine_rows":
        shape = {"rows": max(sizes.rows or [4096]), "dimension": LLADA_WIDTH}
        return [Case(op, shape, dtype) for dtype in sizes.dtype or ["fp32", "bf16"]]
    shape = {"batch": max(sizes.rows or [16]), "length": 1024, "positions": 32, "width": 1024}
    return [Case(op, shape, dtype) for dtype in sizes.dtype or ["bf16"]]


def build(case: Case, compile_: bool = True) -> Workload:
    if case.op == "cosine_rows":
        return _cosine(case, compile_)
    make = {"rows_changed": _changed, "topk_kl": _kl, "gather_rows": _gather, "scatter_rows_": _scatter}
    return make[case.op](case)


def _changed(case: Case) -> Workload:
    shape = (case.shape["batch"], case.shape["length"])
    before = torch.randint(0, LLADA, shape, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[::2, -1] += 1
    return Workload(
        lambda backend: rows_changed(before, after, backend=backend),
        bytes_moved("rows_changed", **case.shape),
        after,
        {"(before != after).any(-1)": Rival(lambda: (before != after).any(-1), first_result)},
    )


def _kl(case: Case) -> Workload:
    rows, vocabulary, k = (case.shape[name] for name in ("rows", "vocabulary", "k"))
    logits = make_logits((rows, vocabulary), case.torch_dtype, case.inputs)
    earlier = (logits.float() + 0.1 * torch.randn(rows, vocabulary)).to(case.torch_dtype)
    before = topk_kl(earlier, k)
    log_probs = earlier.float().log_softmax(-1)  # what the full divergence keeps of the step before
    return Workload(
        lambda backend: topk_kl(logits, k, before=before, backend=backend),
        bytes_moved("topk_kl", **case.shape, itemsize=case.itemsize, before=k),
        logits,
        {"full KL on kept log-probabilities": Rival(lambda: full_kl(logits, log_probs))},  # another, larger number
    )


def full_kl(logits: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """KL(before || now) over the vocabulary, as KLASS computes it, and what the next step needs."""
    now = logits.float().log_softmax(-1)
    return (before.exp() * (before - now)).sum(-1), now


def _cosine(case: Case, compile_: bool) -> Workload:
    generator = torch.Generator().manual_seed(0)
    shape = (case.shape["rows"], case.shape["dimension"])
    a = torch.randn(shape, generator=generator).to(case.torch_dtype)
    b = (a.float() + 0.3 * torch.randn(shape, generator=generator)).to(case.torch_dtype)

    def agrees(ours: Any, theirs: Any) -> None:
        tolerance = 1e-5 if case.dtype == "fp32" else 2e-2
        assert_agree(ours, theirs, rtol=tolerance, atol=tolerance)

    work = Workload(
        lambda backend: cosine_rows(a, b, backend=backend),
        bytes_moved("cosine_rows", **case.shape, itemsize=case.itemsize),
        a,
        {"F.cosine_similarity": Rival(lambda: torch.nn.functional.cosine_similarity(a, b, dim=-1), agrees)},
    )
    best = compiled({"fp32 sums": cosine_in_fp32}, (a, b)) if compile_ else None
    if best is not None:
        form = best[1]
        work.rivals["torch.compile"] = Rival(lambda: form(a, b), agrees)
    return work


def cosine_in_fp32(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.float(), b.float()
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def _cache(case: Case) -> tuple[Tensor, Tensor, Tensor, dict[str, int]]:
    """A cache [B, N, width], positions [B, M] without repetition, their rows, and the shape that `bytes_moved` wants."""
    batch, length, count, width = (case.shape[name] for name in ("batch", "length", "positions", "width"))
    generator = torch.Generator().manual_seed(0)
    cache = torch.randn(batch, length, width, generator=generator).to(case.torch_dtype)
    positions = torch.rand(batch, length, generator=generator).argsort(-1)[:, :count].contiguous()
    rows = torch.randn(batch, count, width, generator=generator).to(case.torch_dtype)
    return cache, positions, rows, {"rows": batch * count, "width": width, "itemsize": case.itemsize}


def _gather(case: Case) -> Workload:
    cache, positions, rows, shape = _cache(case)
    row = torch.arange(len(cache))[:, None]
    index = positions[..., None].expand(*positions.shape, cache.shape[-1])
    return Workload(
        lambda backend: gather_rows(cache, positions, backend=backend),
        bytes_moved("gather_rows", **shape),
        rows,
        {
            "cache[rows, positions]": Rival(lambda: cache[row, positions], first_result),
            "torch.gather": Rival(lambda: cache.gather(1, index), first_result),
        },
    )


def _scatter(case: Case) -> Workload:
    cache, positions, rows, shape = _cache(case)
    row = torch.arange(len(cache))[:, None]
    index = positions[..., None].expand(*positions.shape, cache.shape[-1])

    def by_index() -> None:
        cache[row, positions] = rows

    return Workload(
        lambda backend: scatter_rows_(cache, positions, rows, backend=backend),
        bytes_moved("scatter_rows_", **shape),
        rows,
        {
            "cache[rows, positions] = ...": Rival(by_index, first_result),
            "Tensor.scatter_": Rival(lambda: cache.scatter_(1, index, rows), first_result),
        },
        state=(cache,),
    )
