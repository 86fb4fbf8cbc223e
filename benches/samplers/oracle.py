"""Denoisers without a network: exact posteriors of known distributions, so that what is left of an error is the sampler's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from rich.table import Table
from torch import Tensor

from dlm_samplers import (
    AncestralUnmask,
    EntropyBound,
    EventDriven,
    Factor,
    FixedQuota,
    LLaDASampler,
    ModelSpec,
    Policy,
    Threshold,
)


class MarkovOracle:
    """log p(x_i | tokens that stand) of a stationary Markov chain over V states; the mask is token V.

    transition: fp64 [V, V], rows sum to 1, all entries positive, so that no canvas is impossible.
    """

    def __init__(self, transition: Tensor) -> None:
        self.transition = transition.double()
        self.vocabulary = self.mask = len(transition)
        power = torch.linalg.matrix_power(self.transition, 4096)
        self.stationary = power[0] / power[0].sum()

    @property
    def pairs(self) -> Tensor:
        """fp64 [V, V]: probabilities of two neighbours."""
        return self.stationary[:, None] * self.transition

    def __call__(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [B, L, V + 1] of tokens [B, L], by the forward-backward algorithm."""
        states = torch.arange(self.vocabulary)
        allowed = ((tokens[..., None] == states) | (tokens[..., None] == self.mask)).double()  # [B, L, V]
        before, after = [self.stationary.expand(len(tokens), -1)], [torch.ones(len(tokens), self.vocabulary).double()]
        for i in range(tokens.shape[1] - 1):
            here = before[-1] * allowed[:, i]
            before.append(here / here.sum(-1, keepdim=True) @ self.transition)
            there = (after[-1] * allowed[:, -1 - i]) @ self.transition.T
            after.append(there / there.sum(-1, keepdim=True))
        posterior = torch.stack(before, 1) * allowed * torch.stack(after[::-1], 1)
        logits = (posterior / posterior.sum(-1, keepdim=True)).log()
        return torch.nn.functional.pad(logits, (0, 1), value=-torch.inf).float()

    def chains(self, rows: int, length: int, generator: torch.Generator) -> Tensor:
        """int64 [rows, length]: chains of the distribution itself."""
        x = [torch.multinomial(self.stationary, rows, replacement=True, generator=generator)]
        for _ in range(length - 1):
            x.append(torch.multinomial(self.transition[x[-1]], 1, generator=generator)[:, 0])
        return torch.stack(x, 1)


class PermutationOracle:
    """log p(x_i | tokens that stand) of a uniformly random permutation of n items; the mask is token n.

    Where the tokens that stand repeat each other, the items not yet used are still equally likely.
    """

    def __init__(self, n: int) -> None:
        self.n = self.mask = n

    def __call__(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        used = (tokens[..., None] == torch.arange(self.n)).any(1, keepdim=True)  # [B, 1, n]
        logits = torch.zeros(*tokens.shape, self.n).masked_fill(used, -torch.inf)
        complete = used.all(-1, keepdim=True)  # nothing left to say, but a row of -inf is no distribution
        return torch.nn.functional.pad(logits.masked_fill(complete, 0.0), (0, 1), value=-torch.inf)


def is_permutation(tokens: Tensor) -> Tensor:
    """bool [B] for int64 [B, n]."""
    return (tokens.sort(-1).values == torch.arange(tokens.shape[1])).all(-1)


def valid_by_quota(n: int, k: int) -> float:
    """P(all items differ) when every step draws k positions independently, each uniform over the items left.

    Of r items left, k draws differ with probability r! / ((r - k)! r^k).
    """
    p, r = 1.0, n
    while r > 0:
        now = min(k, r)
        p *= math.perm(r, now) / r**now
        r -= now
    return p


def valid_by_shares(n: int, shares: Sequence[float]) -> float:
    """The same when each position left flips with probability shares[k] in step k, by recursion over the items left."""
    left = {n: 1.0}
    for share in shares:
        following = dict.fromkeys(range(n + 1), 0.0)
        for r, weight in left.items():
            for now in range(r + 1):
                flips = math.comb(r, now) * share**now * (1 - share) ** (r - now)
                following[r - now] += weight * flips * (math.perm(r, now) / r**now if now else 1.0)
        left = following
    return left[0]


def noisy_cycle(states: int, stay_on_course: float = 0.7) -> Tensor:
    """A chain that mostly goes on to the next state: fp64 [V, V], strongly dependent neighbours, uniform marginals."""
    rest = (1 - stay_on_course) / (states - 1)
    return torch.full((states, states), rest).double() + (stay_on_course - rest) * torch.eye(states).double().roll(1, 1)


@dataclass(frozen=True)
class PairError:
    """How far the pairs of neighbours in chains are from the true ones."""

    total_variation: float
    kl: float  # of the chains' from the true pairs, nats
    standard_error: float
    """Of the total variation: over chains, of the share of the pairs that are too frequent."""


def pair_error(chains: Tensor, pairs: Tensor) -> PairError:
    """Pair statistics of chains [B, L] against probabilities [V, V]."""
    v = len(pairs)
    code = chains[:, :-1] * v + chains[:, 1:]
    counts = torch.nn.functional.one_hot(code, v * v).double().mean(1)  # [B, V * V]
    found, true = counts.mean(0), pairs.flatten()
    # Total variation is the excess on the pairs that are too frequent.
    excess = counts[:, found > true].sum(-1)
    kl = torch.where(found > 0, found * (found / true).log(), 0.0).sum()
    return PairError(
        float((found - true).abs().sum() / 2), float(kl), float(excess.std() / math.sqrt(max(len(chains), 2)))
    )


def table_of(errors: list[dict[str, Any]]) -> Table:
    """What `transition_errors` returns, as it is printed."""
    table = Table(
        title="Oracle denoiser of a Markov chain, temperature 1: how far neighbours' pairs are from the true ones",
        title_justify="left",
    )
    for column in ("", "sampler", "steps", "forwards a row", "total variation", "KL, nats"):
        table.add_column(
            column, justify="right" if column in ("forwards a row", "total variation", "KL, nats") else "left"
        )
    for row in errors:
        table.add_row(
            row["family"],
            row["policy"],
            "" if row["steps"] is None else str(row["steps"]),
            "" if row["nfe"] is None else f"{row['nfe']:.1f}",
            f"{row['total_variation']:.3f} ± {row['standard_error']:.3f}",
            f"{row['kl']:.4f}",
        )
    return table


def plot(errors: list[dict[str, Any]], path: Path | BinaryIO) -> None:
    """PNG: total variation over forwards, a line per family, the error of exact chains as the floor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5))
    for family in dict.fromkeys(row["family"] for row in errors[1:]):
        rows = sorted((row for row in errors if row["family"] == family), key=lambda row: row["nfe"])
        axis.errorbar(
            [row["nfe"] for row in rows],
            [row["total_variation"] for row in rows],
            yerr=[1.96 * row["standard_error"] for row in rows],
            marker="o",
            markersize=3,
            linewidth=1,
            label=family,
        )
    axis.axhline(errors[0]["total_variation"], color="black", linestyle=":", linewidth=1, label=errors[0]["family"])
    axis.set(xscale="log", yscale="log", xlabel="forwards a row", ylabel="total variation of neighbours' pairs")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, format="png", dpi=130)
    plt.close(figure)


def sampler_grid(length: int) -> list[tuple[str, Policy, int | None]]:
    """(family, policy, steps): the samplers of the error curve, each from few forwards to many."""
    grid: list[tuple[str, Policy, int | None]] = []
    for steps in (1, 2, 4, 8, 16, 32, 64):
        if steps <= length:
            k = length // steps
            grid.append(("random order", FixedQuota("random", tokens_per_step=k), None))
            grid.append(("confidence", FixedQuota("confidence", tokens_per_step=k), None))
            grid.append(("least entropy", FixedQuota("entropy", tokens_per_step=k), None))
        grid.append(("event-driven", EventDriven(steps), None))
        grid.append(("ancestral", AncestralUnmask(), steps))
    grid += [("threshold", Threshold(tau), None) for tau in (0.3, 0.5, 0.7, 0.9, 0.99)]
    grid += [("factor", Factor(f), None) for f in (4.0, 2.0, 1.0, 0.5, 0.25)]
    grid += [("entropy bound", EntropyBound(gamma), None) for gamma in (8.0, 2.0, 0.5, 0.1, 0.0)]
    return grid


def transition_errors(
    rows: int = 1000, length: int = 32, states: int = 5, stay_on_course: float = 0.7, seed: int = 0
) -> list[dict[str, Any]]:
    """Error against forwards for every sampler, at temperature 1, on a Markov chain whose posteriors are known.

    A dict a sampler: family, policy, steps, nfe (mean), total_variation, kl and standard_error (see `PairError`). The first,
    "the chain itself", is what an exact sampler shows with as many chains. Confidence of the token just drawn is no exact
    order, even one by one: it prefers likely tokens, as a lower temperature does.
    """
    oracle = MarkovOracle(noisy_cycle(states, stay_on_course))
    table: list[dict[str, Any]] = []

    def add(family: str, policy: str, steps: int | None, nfe: float | None, chains: Tensor) -> None:
        error = pair_error(chains, oracle.pairs)
        table.append({"family": family, "policy": policy, "steps": steps, "nfe": nfe, **vars(error)})

    add("the chain itself", "", None, None, oracle.chains(rows, length, torch.Generator().manual_seed(seed)))
    for family, policy, steps in sampler_grid(length):
        sampler = LLaDASampler(oracle, policy=policy, spec=ModelSpec(mask_id=oracle.mask))
        out = sampler.generate(
            torch.zeros(rows, 0, dtype=torch.int64),
            max_new_tokens=length,
            block_length=None,
            steps=steps,
            temperature=1.0,
            seed=seed,
        )
        add(family, str(policy), steps, float(out.nfe.double().mean()), out.sequences)
    return table
