"""Registers the ops with torch.library: schemas, implementations and shapes for tracing.

The public functions check and normalise their arguments; the operators here take them as every backend does:
per-row parameters as tensors of the rows' shape (expanded, so mostly stride 0), no defaults, no broadcasting.
`Library.define` and `impl` rather than `custom_op`: a third of the cost per call. The backend is resolved when the operator
runs, not when it is traced, so a compiled function still follows `use_backend`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import dispatch
from dlm_kernels.errors import KernelCompilationError
from dlm_kernels.results import empty_stats

NAMESPACE = "dlm_kernels"

SCORING = (
    "Tensor temperature, Tensor top_k, Tensor top_p, Tensor seed, Tensor row_ids, Tensor step, "
    "Tensor? suppress_ids, Tensor? eligible, bool sampling_confidence, bool top_p_first"
)
KEYS = "Tensor seed, Tensor row_ids, Tensor step"
RULES = "Tensor? quota, Tensor? threshold, Tensor? factor, Tensor? entropy_bound"
STEP = f"Tensor(a!) tokens, Tensor logits, int mask_id, {SCORING}, str score, {RULES}, Tensor at_least, bool strict"

SCHEMAS = {
    "score_tokens": f"(Tensor logits, {SCORING}, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "score_hidden": (
        f"(Tensor hidden, Tensor weight, Tensor? bias, {SCORING}, bool round_logits, bool batch_invariant, str backend) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "select_positions": (
        f"(Tensor score, Tensor eligible, {RULES}, Tensor? entropy, Tensor at_least, bool strict, str backend) -> Tensor"
    ),
    "commit_": "(Tensor(a!) tokens, Tensor proposal, Tensor selected, str backend) -> ()",
    "denoise_step_": f"({STEP}, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    "keyed_uniform": "(Tensor seed, Tensor row_ids, Tensor step, int stream, str backend) -> Tensor",
    "revoke_": (
        "(Tensor(a!) tokens, Tensor confidence, int mask_id, Tensor? eligible, Tensor? threshold, Tensor? quota, "
        f"Tensor? probability, Tensor? committed, {KEYS}, str backend) -> (Tensor, Tensor)"
    ),
    "absorbing_step_": (
        "(Tensor(a!) tokens, Tensor logits, int mask_id, Tensor alpha_t, Tensor alpha_s, Tensor sigma, "
        f"{SCORING}, str backend) -> Tensor"
    ),
    "uniform_step_": (
        "(Tensor(a!) tokens, Tensor logits, Tensor alpha_t, Tensor alpha_s, bool leave_one_out, "
        f"{SCORING}, str backend) -> Tensor"
    ),
    "score_entropy_step_": (
        "(Tensor(a!) tokens, Tensor log_score, int mask_id, Tensor delta_sigma, str method, bool denoise, "
        f"Tensor? eligible, {KEYS}, str backend) -> Tensor"
    ),
    "nearest_embedding": "(Tensor x, Tensor table, str backend) -> (Tensor, Tensor)",
    "gaussian_step_": (
        "(Tensor(a!) x, Tensor denoised, Tensor alpha_t, Tensor sigma_t, Tensor alpha_s, Tensor sigma_s, Tensor eta, "
        "Tensor? denoised_before, Tensor? alpha_before, Tensor? sigma_before, Tensor? eligible, bool noisy, "
        f"{KEYS}, str backend) -> ()"
    ),
    "rows_changed": "(Tensor before, Tensor after, Tensor? eligible, str backend) -> Tensor",
    "topk_kl": (
        "(Tensor logits, int k, Tensor? before_ids, Tensor? before_log_probs, str backend) -> (Tensor, Tensor, Tensor)"
    ),
    "cosine_rows": "(Tensor a, Tensor b, str backend) -> Tensor",
    "gather_rows": "(Tensor source, Tensor positions, str backend) -> Tensor",
    "scatter_rows_": "(Tensor(a!) target, Tensor positions, Tensor rows, str backend) -> ()",
}

# Ops once more, writing into memory of the caller's.
OUT_FORMS = {
    "denoise_step_out_": (
        f"({STEP}, Tensor(b!) committed, Tensor(c!) remaining, Tensor(d!) confidence, Tensor(e!) selected, "
        "Tensor(f!)[] scratch, str backend) -> ()"
    ),
}


def _implementation(op: str) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        *rest, backend = arguments
        while True:
            name = dispatch.resolve(op, backend, rest[0].device)
            try:
                return dispatch.kernel(op, name)(*rest)
            except KernelCompilationError as error:
                if dispatch.requested(backend) != dispatch.AUTO:
                    raise
                dispatch.give_up(op, name, error)  # and take the next one, which is announced

    return call


def _fake_score_tokens(logits: Tensor, *_: Any) -> tuple[Tensor, ...]:
    shape = logits.shape[:-1]
    floats = [logits.new_empty(shape, dtype=torch.float32) for _ in range(4)]
    return (logits.new_empty(shape, dtype=torch.int64), *floats)


def _fake_select_positions(score: Tensor, *_: Any) -> Tensor:
    return score.new_empty(score.shape, dtype=torch.bool)


def _fake_nothing(*_: Any) -> None:
    return None


def _fake_denoise_step_(tokens: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(empty_stats(tokens))


def _fake_keyed_uniform(seed: Tensor, *_: Any) -> Tensor:
    return seed.new_empty(seed.shape, dtype=torch.float32)


def _fake_revoke_(tokens: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return tokens.new_empty(tokens.shape[:1], dtype=torch.int32), _flags(tokens)


def _flags(tokens: Tensor, *_: Any) -> Tensor:
    return tokens.new_empty(tokens.shape, dtype=torch.bool)


def _fake_nearest_embedding(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[:-1], dtype=torch.int64), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _fake_rows_changed(before: Tensor, *_: Any) -> Tensor:
    return before.new_empty(before.shape[:1], dtype=torch.bool)


def _fake_topk_kl(logits: Tensor, k: int, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = logits.shape[:-1]
    return (
        logits.new_empty(shape, dtype=torch.float32),
        logits.new_empty((*shape, k), dtype=torch.int64),
        logits.new_empty((*shape, k + 1), dtype=torch.float32),
    )


def _fake_cosine_rows(a: Tensor, *_: Any) -> Tensor:
    return a.new_empty(a.shape[:-1], dtype=torch.float32)


def _fake_gather_rows(source: Tensor, positions: Tensor, *_: Any) -> Tensor:
    return source.new_empty((*positions.shape, *source.shape[2:]))


FAKES: dict[str, Callable[..., Any]] = {
    "score_tokens": _fake_score_tokens,
    "score_hidden": _fake_score_tokens,
    "select_positions": _fake_select_positions,
    "commit_": _fake_nothing,
    "denoise_step_": _fake_denoise_step_,
    "denoise_step_out_": _fake_nothing,
    "keyed_uniform": _fake_keyed_uniform,
    "revoke_": _fake_revoke_,
    "absorbing_step_": _flags,
    "uniform_step_": _flags,
    "score_entropy_step_": _flags,
    "nearest_embedding": _fake_nearest_embedding,
    "gaussian_step_": _fake_nothing,
    "rows_changed": _fake_rows_changed,
    "topk_kl": _fake_topk_kl,
    "cosine_rows": _fake_cosine_rows,
    "gather_rows": _fake_gather_rows,
    "scatter_rows_": _fake_nothing,
}

_library = torch.library.Library(NAMESPACE, "DEF")
for _op, _schema in (SCHEMAS | OUT_FORMS).items():
    _library.define(_op + _schema)
    _library.impl(_op, _implementation(_op), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{_op}", FAKES[_op], lib=_library)
