"""`select_positions`, `commit_`, `revoke_`, `keyed_uniform`: what happens on [B, L] after the logits are scored."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_benches.kernels.cases import Case, Rival, Sizes, Workload, first_result
from dlm_kernels import commit_, keyed_uniform, revoke_, select_positions
from dlm_kernels.roofline import bytes_moved

OPS = ("select_positions", "commit_", "revoke_", "keyed_uniform")
MASK_ID = 126336
QUOTA, THRESHOLD, FACTOR = "8 best", "score >= 0.9, at least 1", "factor 1"


def cases(op: str, sizes: Sizes) -> list[Case]:
    batch = max(sizes.rows or [16])
    shapes = [{"batch": batch, "length": length} for length in (256, 1024)]
    if op == "select_positions":
        return [Case(op, shape, settings=rule) for shape in shapes for rule in (QUOTA, THRESHOLD, FACTOR)]
    if op == "revoke_":
        return [Case(op, shape, settings="confidence < 0.3, at most 15") for shape in shapes]
    return [Case(op, shape, "int64" if op == "commit_" else "fp32") for shape in shapes]


def build(case: Case, compile_: bool = True) -> Workload:
    batch, length = case.shape["batch"], case.shape["length"]
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(batch, length, generator=generator)
    flags = torch.rand(batch, length, generator=generator) < 0.5
    tokens = torch.randint(0, MASK_ID, (batch, length), generator=generator)
    make = {"select_positions": _select, "commit_": _commit, "revoke_": _revoke, "keyed_uniform": _uniform}
    return make[case.op](case, score, flags, tokens)


def _select(case: Case, score: Tensor, eligible: Tensor, tokens: Tensor) -> Workload:
    rules = {QUOTA: {"quota": 8}, THRESHOLD: {"threshold": 0.9}, FACTOR: {"factor": 1.0}}[case.settings]
    forms = {
        QUOTA: {
            "topk of each row, Python loop": lambda: topk_of_rows(score, eligible, 8),
            "topk + scatter": lambda: topk_scatter(score, eligible, 8),
        },
        THRESHOLD: {"compare + best of row": lambda: threshold_or_best(score, eligible, 0.9)},
        FACTOR: {"sort of each row, Python loop": lambda: factor_of_rows(score, eligible, 1.0)},
    }[case.settings]
    return Workload(
        lambda backend: select_positions(score, eligible, backend=backend, **rules),
        bytes_moved("select_positions", **case.shape),
        score,
        {name: Rival(form, first_result) for name, form in forms.items()},
    )


def topk_of_rows(score: Tensor, eligible: Tensor, quota: int) -> Tensor:
    """The loop of LLaDA, Fast-dLLM and diffusers."""
    ranked = score.masked_fill(~eligible, -torch.inf)
    chosen = torch.zeros_like(eligible)
    for row in range(len(score)):
        chosen[row, ranked[row].topk(min(quota, int(eligible[row].sum()))).indices] = True
    return chosen


def topk_scatter(score: Tensor, eligible: Tensor, quota: int) -> Tensor:
    best = score.masked_fill(~eligible, -torch.inf).topk(quota).indices
    return torch.zeros_like(eligible).scatter_(1, best, True) & eligible


def threshold_or_best(score: Tensor, eligible: Tensor, threshold: float) -> Tensor:
    best = score.masked_fill(~eligible, -torch.inf).argmax(-1, keepdim=True)
    return ((score >= threshold).scatter(1, best, True)) & eligible


def factor_of_rows(score: Tensor, eligible: Tensor, factor: float) -> Tensor:
    """Fast-dLLM's dynamic threshold, row by row; at least one."""
    chosen = torch.zeros_like(eligible)
    for row in range(len(score)):
        ordered, order = score[row].masked_fill(~eligible[row], -torch.inf).sort(descending=True)
        n = torch.arange(1, len(ordered) + 1)
        passes = (ordered >= 1 - factor / (n + 1)).nonzero()
        count = int(passes[-1]) + 1 if len(passes) else 1
        chosen[row, order[:count]] = True
    return chosen & eligible


def _commit(case: Case, score: Tensor, flags: Tensor, tokens: Tensor) -> Workload:
    selected, proposal = score < 0.1, tokens.flip(1).contiguous()

    def by_flags() -> None:
        tokens[selected] = proposal[selected]

    def by_where() -> None:
        tokens.copy_(torch.where(selected, proposal, tokens))

    return Workload(
        lambda backend: commit_(tokens, proposal, selected, backend=backend),
        bytes_moved("commit_", **case.shape, selected=int(selected.sum())),
        proposal,
        {"tokens[selected] = ...": Rival(by_flags, first_result), "torch.where": Rival(by_where, first_result)},
        state=(tokens,),
    )


def _revoke(case: Case, score: Tensor, masked: Tensor, tokens: Tensor) -> Workload:
    tokens[masked] = MASK_ID

    def by_loop() -> None:
        low = (score < 0.3) & (tokens != MASK_ID)
        ranked = score.masked_fill(~low, torch.inf)
        for row in range(len(tokens)):
            worst = ranked[row].topk(min(15, int(low[row].sum())), largest=False).indices
            tokens[row, worst] = MASK_ID

    def ours(backend: str | None) -> tuple[Tensor, ...]:
        return revoke_(tokens, score, mask_id=MASK_ID, threshold=0.3, committed=16, backend=backend)

    work = Workload(ours, bytes_moved("revoke_", **case.shape, revoked=0), tokens, state=(tokens,))
    revoked = int(work.result(lambda: ours(None))[1].sum())
    work.restore()
    work.traffic = bytes_moved("revoke_", **case.shape, revoked=revoked)
    work.rivals["topk of each row, Python loop"] = Rival(by_loop, first_result)
    return work


def _uniform(case: Case, score: Tensor, flags: Tensor, tokens: Tensor) -> Workload:
    row_ids = torch.arange(score.numel()).view(score.shape)
    return Workload(
        lambda backend: keyed_uniform(0, row_ids, 0, backend=backend),
        bytes_moved("keyed_uniform", count=score.numel()),
        row_ids,
        {"torch.rand (not keyed)": Rival(lambda: torch.rand(score.shape))},
    )
