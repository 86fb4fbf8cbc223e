"""`score_tokens` and `score_hidden`: token and statistics of rows of logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import dlm_kernels
from dlm_benches.kernels.cases import Case, Rival, Sizes, Workload, assert_agree, make_logits
from dlm_benches.kernels.timing import compiled
from dlm_kernels import score_tokens
from dlm_kernels.library import SCHEMAS
from dlm_kernels.roofline import bytes_moved

OPS = tuple(op for op in ("score_tokens", "score_hidden") if op in SCHEMAS)
LLADA, DREAM = 126464, 151936  # vocabularies
CHECKED_ROWS = 4
COMPILE_ROWS = 32  # rows with which the forms of torch.compile are compared to find the best one

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "T=1": {"temperature": 1.0},
    "T=1, top-p 0.9": {"temperature": 1.0, "top_p": 0.9},
    "T=1, top-p 0.95": {"temperature": 1.0, "top_p": 0.95},
    "T=1, top-k 50": {"temperature": 1.0, "top_k": 50},
}


def cases(op: str, sizes: Sizes) -> list[Case]:
    """Greedy on both kinds of logits for every shape, and sampling on the largest number of rows of the first vocabulary.

    `score_hidden`: greedy and sampling for every number of rows, of the first vocabulary.
    """
    dtypes = sizes.dtype or ["fp32", "bf16"]
    if op == "score_hidden":
        shared = {"dimension": 1024, "vocabulary": (sizes.vocabulary or [LLADA])[0]}
        shapes = [{"rows": rows, **shared} for rows in sizes.rows or [1, 32, 256]]
        return [Case(op, s, d, "gaussian", settings) for d in dtypes for s in shapes for settings in ("greedy", "T=1")]
    rows, vocabularies, kinds = sizes.rows or [32, 256], sizes.vocabulary or [LLADA, DREAM], ("peaked", "gaussian")
    shapes = [(v, d, r) for v in vocabularies for d in dtypes for r in rows]
    greedy = [Case(op, _shape(r, v), d, kind, "greedy") for v, d, r in shapes for kind in kinds]
    sampled = [
        Case(op, _shape(max(rows), vocabularies[0]), d, kind, settings)
        for settings in list(SETTINGS)[1:]
        for d in dtypes
        for kind in kinds
    ]
    return greedy + sampled


def _shape(rows: int, vocabulary: int) -> dict[str, int]:
    return {"rows": rows, "vocabulary": vocabulary}


def build(case: Case, compile_: bool = True) -> Workload:
    return _hidden(case) if case.op == "score_hidden" else _tokens(case, compile_)


def _tokens(case: Case, compile_: bool) -> Workload:
    rows, vocabulary = case.shape["rows"], case.shape["vocabulary"]
    logits = make_logits((rows, vocabulary), case.torch_dtype, case.inputs)
    settings = SETTINGS[case.settings]
    greedy = case.settings == "greedy"
    work = Workload(
        lambda backend: score_tokens(logits, backend=backend, **settings),
        bytes_moved("score_tokens", **case.shape, itemsize=case.itemsize, sampled=not greedy),
        logits,
        checked=lambda backend: score_tokens(logits[:CHECKED_ROWS], backend=backend, **settings),
    )
    if not greedy:
        work.rivals["score_tokens, greedy"] = Rival(lambda: score_tokens(logits))
        work.rivals |= {
            name: Rival(lambda form=form: form(logits)) for name, form in SAMPLED_FORMS[case.settings].items()
        }
        return work
    work.rivals = {
        "eager softmax + max": Rival(lambda: softmax_max(logits), _token_and_confidence),
        "LLaDA chain, fp64": Rival(lambda: llada_chain(logits), _token_and_confidence),
    }
    best = best_compiled(vocabulary, case.torch_dtype) if compile_ else None
    if best is not None:
        name, form = best
        work.rivals["torch.compile"] = Rival(lambda: form(logits), _token_and_confidence)
        work.notes["compiled_form"] = name
    return work


def _token_and_confidence(ours: Any, theirs: Any) -> None:
    assert_agree(ours[:2], theirs[:2], rtol=1e-4)


def softmax_max(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and index of the best token through a softmax of the whole vocabulary, in fp32."""
    confidence, token = logits.float().softmax(-1).max(-1)
    return token, confidence


def llada_chain(logits: Tensor) -> tuple[Tensor, Tensor]:
    """What LLaDA's sampler does a step at temperature 0, with the fp64 softmax that its successors use."""
    token = logits.argmax(-1)
    probabilities = logits.to(torch.float64).softmax(-1)
    return token, probabilities.gather(-1, token[..., None])[..., 0]


def by_logsumexp(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Two reductions and no softmax."""
    x = logits.float()
    highest, token = x.max(-1)
    return token, (highest - x.logsumexp(-1)).exp()


def by_sum_of_exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    x = logits.float()
    highest = x.amax(-1, keepdim=True)
    return x.argmax(-1), 1 / (x - highest).exp().sum(-1)


FORMS: dict[str, Callable[..., Any]] = {
    "softmax + max": softmax_max,
    "max + logsumexp": by_logsumexp,
    "amax + argmax + sum of exp": by_sum_of_exponentials,
}


@lru_cache
def best_compiled(vocabulary: int, dtype: torch.dtype) -> tuple[str, Callable[..., Any]] | None:
    """The form that torch.compile makes the most of, found on fewer rows."""
    return compiled(FORMS, (make_logits((COMPILE_ROWS, vocabulary), dtype, "gaussian"),), dynamic=True)


def multinomial(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    token = probabilities.multinomial(1)
    return token[:, 0], probabilities.gather(-1, token)[:, 0]


def sampled(logits: Tensor) -> tuple[Tensor, Tensor]:
    return multinomial(logits.float().softmax(-1))


def top_p_by_sort(logits: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Nucleus filter as transformers and Dream write it: sort, cumulative sum, scatter back; then a draw."""
    ordered, order = logits.float().sort(-1, descending=True)
    beyond = ordered.softmax(-1).cumsum(-1) > top_p
    beyond[:, 1:] = beyond[:, :-1].clone()
    beyond[:, 0] = False
    removed = torch.zeros_like(beyond).scatter_(-1, order, beyond)
    return multinomial(logits.float().masked_fill(removed, -torch.inf).softmax(-1))


def top_k_by_topk(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    kth = logits.topk(top_k).values[:, -1:]
    return multinomial(logits.float().masked_fill(logits < kth, -torch.inf).softmax(-1))


SAMPLED_FORMS: dict[str, dict[str, Callable[..., Any]]] = {
    "T=1": {"eager softmax + multinomial": sampled},
    "T=1, top-p 0.9": {"eager top-p by sort": lambda logits: top_p_by_sort(logits, 0.9)},
    "T=1, top-p 0.95": {"eager top-p by sort": lambda logits: top_p_by_sort(logits, 0.95)},
    "T=1, top-k 50": {"eager top-k by topk": lambda logits: top_k_by_topk(logits, 50)},
}


def _hidden(case: Case) -> Workload:
    rows, dimension, vocabulary = (case.shape[name] for name in ("rows", "dimension", "vocabulary"))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, dimension, generator=generator).to(case.torch_dtype)
    weight = (torch.randn(vocabulary, dimension, generator=generator) * 4 / dimension**0.5).to(case.torch_dtype)
    settings = SETTINGS[case.settings]
    work = Workload(
        lambda backend: dlm_kernels.score_hidden(hidden, weight, backend=backend, **settings),
        bytes_moved("score_hidden", **case.shape, itemsize=case.itemsize, sampled=case.settings != "greedy"),
        weight,
        {"head, then score_tokens": Rival(lambda: score_tokens(hidden @ weight.T, **settings))},
        checked=lambda backend: dlm_kernels.score_hidden(hidden[:CHECKED_ROWS], weight, backend=backend, **settings),
    )
    if case.settings == "greedy":
        work.rivals |= {
            "head, then eager softmax + max": Rival(lambda: softmax_max(hidden @ weight.T)),
            "head, then LLaDA chain, fp64": Rival(lambda: llada_chain(hidden @ weight.T)),
        }
    else:
        work.rivals["head, then eager softmax + multinomial"] = Rival(lambda: sampled(hidden @ weight.T))
    return work
