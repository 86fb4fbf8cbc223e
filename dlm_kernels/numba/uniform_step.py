"""The posterior step of uniform-state diffusion: rows are read where a route may lead away."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dlm_kernels.numba.keyed_uniform import keyed_uniform
from dlm_kernels.numba.runtime import flat, jit, over_rows
from dlm_kernels.numba.score_tokens import (
    NEGATIVE_INFINITY,
    ZERO,
    cut_of_filters,
    row_bits,
    score_tokens,
    sort_key,
    token_ids,
    widen,
)
from dlm_kernels.reference.philox import ROUTE_STREAM, STATE_STREAM, keyed_integer
from dlm_kernels.reference.uniform_step import routes

f64, i64 = np.float64, np.int64


@jit
def sampling_probability(x, token, temperature, top_k, top_p, top_p_first):
    """Probability, fp64, with which `score_row` draws this token; NaN where the row has no distribution."""
    m, first, nan = x[0], i64(0), i64(-1)
    for v in range(x.size):
        if x[v] > m:
            m, first = x[v], i64(v)
        if x[v] != x[v] and nan < 0:
            nan = i64(v)
    if not temperature > ZERO:
        return 1.0 if token == (first if nan < 0 else nan) else 0.0
    if nan >= 0 or not math.isfinite(m):
        return math.nan
    cut = cut_of_filters(x, m, temperature, top_k, top_p, top_p_first)
    total, wanted = 0.0, 0.0
    for v in range(x.size):
        if sort_key(x[v]) >= cut:
            e = math.exp((f64(x[v]) - f64(m)) / f64(temperature))
            total += e
            if v == token:
                wanted = e
    return wanted / total


@jit
def sampling_probabilities(
    begin, end, live, bits, starts, kind, vocabulary, tokens, temperature, top_k, top_p, suppress_ids, top_p_first, out,
):  # fmt: skip
    x = np.empty(vocabulary, np.float32)
    for i in range(begin, end):
        r = live[i]
        widen(bits, starts[i], kind, x)
        for j in range(suppress_ids.size):
            x[suppress_ids[j]] = NEGATIVE_INFINITY
        out[r] = sampling_probability(x, tokens[r], temperature[r], top_k[r], top_p[r], top_p_first)


def uniform_step_(
    tokens: Tensor,
    logits: Tensor,
    alpha_t: Tensor,
    alpha_s: Tensor,
    leave_one_out: bool,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    suppress_ids: Tensor | None,
    eligible: Tensor | None,
    sampling_confidence: bool,
    top_p_first: bool,
) -> Tensor:
    """See the reference."""
    vocabulary = logits.shape[-1]
    u = keyed_uniform(seed, row_ids, step, ROUTE_STREAM)
    # More agreement only makes staying likelier: what stays without any stays.
    agreement = torch.zeros(tokens.shape, dtype=torch.float64)
    noise, clean = routes(u, alpha_t, alpha_s, vocabulary, agreement)
    moves = noise | clean if eligible is None else (noise | clean) & eligible
    scoring = (logits, temperature, top_k, top_p, seed, row_ids, step, suppress_ids)
    if leave_one_out:
        live = flat(moves).nonzero()[0]
        if live.size:
            over_rows(
                sampling_probabilities, live.size, live.size * vocabulary, live, *row_bits(logits, live), vocabulary,
                flat(tokens), flat(temperature), flat(top_k), flat(top_p), token_ids(suppress_ids), top_p_first,
                agreement.view(-1).numpy(),
            )  # fmt: skip
        noise, clean = routes(u, alpha_t, alpha_s, vocabulary, agreement)
        token = score_tokens(*scoring, moves & clean, sampling_confidence, top_p_first)[0]
    else:
        token = score_tokens(*scoring, moves, sampling_confidence, top_p_first)[0]
        noise, clean = routes(u, alpha_t, alpha_s, vocabulary, (token == tokens).double())
    state = keyed_integer(seed, row_ids, step, vocabulary, STATE_STREAM)
    after = torch.where(moves & noise, state, torch.where(moves & clean, token, tokens))
    changed = after != tokens
    tokens.copy_(after)
    return changed
