"""Which token each row of logits proposes, and how sure it is: a row at a time, in a scratch row of fp32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlm_kernels.numba import portable_math
from dlm_kernels.numba.portable_math import exponential_from_uniform, keyed_words, log, uniform_from_word
from dlm_kernels.numba.row_stats import (
    CHUNK,
    NEGATIVE_INFINITY,
    ONE,
    ZERO,
    extremes,
    index_of_maximum,
    merged_sums,
    number_of_key,
    reshaped_sums,
    second_highest,
    summarise,
)
from dlm_kernels.numba.runtime import bits_float, flat, float_bits, jit, over_rows

f32, u32, u64, i64 = np.float32, np.uint32, np.uint64, np.int64

FP32, BF16, FP16 = 0, 1, 2
FORMATS = {
    torch.float32: (FP32, torch.int32, np.uint32),
    torch.bfloat16: (BF16, torch.int16, np.uint16),
    torch.float16: (FP16, torch.int16, np.uint16),
}

MASS_SCALE = f32(2.0**36)
LARGEST_GUMBEL = f32(22.9)  # that of the smallest uniform number, 2^-33, is 22.874
SIGN = u32(0x80000000)
ALL_BITS = u32(0xFFFFFFFF)


@jit
def widen(bits, start, kind, x):
    """Row of fp32, bf16 or fp16 bits to fp32."""
    row = bits[start : start + x.size]
    if kind == FP32:
        for v in range(row.size):
            x[v] = bits_float(u32(row[v]))
    elif kind == BF16:
        for v in range(row.size):
            x[v] = bits_float(u32(u32(row[v]) << u32(16)))
    else:
        for v in range(row.size):
            half = u32(row[v])
            size = u32(half & u32(0x7FFF))
            if size >= u32(0x7C00):  # infinity or NaN
                wide = bits_float(u32(u32(0x7F800000) | (size & u32(0x3FF)) << u32(13)))
            elif size >= u32(0x400):
                wide = bits_float(u32((size << u32(13)) + u32(0x38000000)))  # exponent bias 15 to 127
            else:
                wide = f32(size) * f32(2.0**-24)
            x[v] = -wide if half & u32(0x8000) else wide


@jit
def sort_key(value):
    """uint32 that orders like the float. Adding 0 turns -0 into 0, so that equal values have equal keys."""
    bits = float_bits(value + ZERO)
    return u32(bits ^ ALL_BITS) if bits & SIGN else u32(bits | SIGN)


@jit
def smallest_key(x, weight, limit, least):
    """The least key, not below `least`, whose strictly greater values (from `least` up) have less than `limit` weight.

    A radix descent, eight bits a round: in a round, groups of keys from the top down; the last group that begins below the
    limit has the answer. At least one value, the maximum, is at or above it.
    """
    prefix, above = u32(0), i64(0)
    count, mass = np.empty(256, np.int64), np.empty(256, np.int64)
    for round_ in range(4):
        shift = u32(24 - 8 * round_)
        fixed = u32(0) if round_ == 0 else u32(ALL_BITS << u32(32 - 8 * round_))
        count[:] = 0
        mass[:] = 0
        for v in range(x.size):
            key = sort_key(x[v])
            if key >= least and (key & fixed) == prefix:
                group = i64((key >> shift) & u32(255))
                count[group] += 1
                mass[group] += weight[v]
        chosen, chosen_above = i64(-1), above
        for candidate in range(255, -1, -1):
            if count[candidate] > 0:
                if chosen >= 0 and not np.float64(above) < limit:
                    break
                chosen, chosen_above = i64(candidate), above
                above += mass[candidate]
        above = chosen_above
        prefix = u32(prefix | (u32(chosen) << shift))
    return prefix


@jit
def cut_of_filters(x, m, t, top_k, top_p, top_p_first):
    """The least key that top-k and top-p leave; both keep every value from some value up."""
    in_top_k, in_top_p = u32(0), u32(0)
    if 0 < top_k < x.size:
        # The k-th largest: fewer than k values are strictly greater.
        in_top_k = smallest_key(x, np.ones(x.size, np.int64), np.float64(top_k), u32(0))
    if not top_p >= ONE:
        weight = np.empty(x.size, np.int64)
        least = u32(0) if top_p_first else in_top_k
        total = i64(0)
        for v in range(x.size):
            weight[v] = i64(portable_math.exp((x[v] - m) / t) * MASS_SCALE)
            if sort_key(x[v]) >= least:
                total += weight[v]
        in_top_p = smallest_key(x, weight, np.float64(top_p) * np.float64(total), least)
    return max(in_top_k, in_top_p)


@jit
def number_of_sort_key(key):
    return bits_float(u32(key ^ SIGN) if key & SIGN else u32(key ^ ALL_BITS))


@jit
def gumbels(words, noise):
    """Of random words. Two loops: LLVM inlines only what is small, and makes no vector code of what it does not inline."""
    for i in range(noise.size):
        noise[i] = exponential_from_uniform(uniform_from_word(words[i]))
    for i in range(noise.size):
        noise[i] = -log(noise[i])


@jit
def keyed_noise(seed, row_id, step, first, words, noise):
    """Gumbel noise of the entries 4 `first` and on, entry 4 i + j of these in [j, i]. words: room for the random bits."""
    of_0, of_1, of_2, of_3 = words[0], words[1], words[2], words[3]
    for i in range(of_0.size):
        word = keyed_words(seed, row_id, step, first + u64(i), u64(0))
        of_0[i], of_1[i], of_2[i], of_3[i] = u32(word[0]), u32(word[1]), u32(word[2]), u32(word[3])
    gumbels(words.reshape(-1), noise.reshape(-1))


@jit
def best_of_chunk(x, m, t, least, noise, noised):
    """(highest, its lowest index) of (x - m) / t + noise over the entries >= least of a chunk."""
    for j in range(4):
        of_lane = noise[j]
        for i in range((x.size - j + 3) // 4):
            value = (x[4 * i + j] - m) / t + of_lane[i]
            noised[4 * i + j] = value if x[4 * i + j] >= least else NEGATIVE_INFINITY
    highest = number_of_key(extremes(noised[: x.size].view(np.int32))[0])
    index = 0
    while noised[index] < highest:
        index += 1
    return highest, index


@jit
def draw(x, m, first, t, least, maxima, seed, row_id, step):
    """argmax of (x - m) / t + Gumbel noise over the entries >= least, lowest index on ties.

    Begins at the chunk of the maximum: then chunks that cannot win even with the largest noise need no random numbers.
    """
    words, noise = np.empty((4, CHUNK // 4), np.uint32), np.empty((4, CHUNK // 4), np.float32)
    noised = np.empty(CHUNK, np.float32)
    best, token = NEGATIVE_INFINITY, i64(-1)
    for turn in range(-1, maxima.size):
        c = first // CHUNK if turn < 0 else turn
        if turn >= 0 and (turn == first // CHUNK or (maxima[c] - m) / t + LARGEST_GUMBEL < best):
            continue
        keyed_noise(seed, row_id, step, u64(c * (CHUNK // 4)), words, noise)
        value, index = best_of_chunk(x[c * CHUNK : min((c + 1) * CHUNK, x.size)], m, t, least, noise, noised)
        index += c * CHUNK
        if token < 0 or value > best or (value == best and index < token):
            best, token = value, i64(index)
    return token


@jit
def score_row(
    x, temperature, top_k, top_p, seed, row_id, step, sampling_confidence, top_p_first, maxima, sums, weighted_sums
):
    reshaped = sampling_confidence and (temperature > ZERO or 0 < top_k < x.size or not top_p >= ONE)
    m, nan = summarise(x, not reshaped, maxima, sums, weighted_sums)
    if nan:
        for v in range(x.size):
            if x[v] != x[v]:
                return i64(v), math.nan, math.nan, math.nan, math.nan
    first = index_of_maximum(x, m, maxima)
    if m == math.inf:
        infinite = 0
        for v in range(x.size):
            infinite += x[v] == math.inf
        return first, 1.0 / infinite, 1.0 if infinite == 1 else 0.0, math.log(infinite), math.inf
    if m == NEGATIVE_INFINITY:
        return i64(0), 0.0, 0.0, 0.0, -math.inf

    t = temperature if temperature > ZERO else ONE
    least = NEGATIVE_INFINITY
    if temperature > ZERO or sampling_confidence:
        cut = cut_of_filters(x, m, t, top_k, top_p, top_p_first)
        least = NEGATIVE_INFINITY if cut == 0 else number_of_sort_key(cut)
    token = first
    if temperature > ZERO:
        token = draw(x, m, first, t, least, maxima, seed, row_id, step)
    second = second_highest(x, first, maxima)
    if reshaped:
        total, weighted = reshaped_sums(x, m, t, least, maxima)
        second = second if second >= least else NEGATIVE_INFINITY
    else:
        t = ONE
        total, weighted = merged_sums(m, maxima, sums, weighted_sums)
    log_total = math.log(total)
    confidence = math.exp((np.float64(x[token]) - np.float64(m)) / np.float64(t)) / total
    margin = (1.0 - math.exp((np.float64(second) - np.float64(m)) / np.float64(t))) / total
    return token, confidence, margin, log_total - weighted / total, np.float64(m) / np.float64(t) + log_total


@jit
def score_rows(
    begin, end, live, bits, starts, kind, vocabulary, temperature, top_k, top_p, seed, row_ids, step,
    suppress_ids, sampling_confidence, top_p_first, token, floats,
):  # fmt: skip
    x = np.empty(vocabulary, np.float32)
    chunks = (vocabulary + CHUNK - 1) // CHUNK
    maxima, sums, weighted_sums = np.empty(chunks, np.float32), np.empty(chunks), np.empty(chunks)
    for i in range(begin, end):
        r = live[i]
        if kind == FP32 and suppress_ids.size == 0:
            x = bits[starts[i] : starts[i] + vocabulary].view(np.float32)
        else:
            widen(bits, starts[i], kind, x)
            for j in range(suppress_ids.size):
                x[suppress_ids[j]] = NEGATIVE_INFINITY
        token[r], floats[0, r], floats[1, r], floats[2, r], floats[3, r] = score_row(
            x, temperature[r], top_k[r], top_p[r], seed[r], row_ids[r], step[r], sampling_confidence, top_p_first, maxima,
            sums, weighted_sums,
        )  # fmt: skip


def row_bits(logits: Tensor, live: Any) -> tuple[Any, Any, int]:
    """What `widen` reads: the memory of logits [B, L, V], where the rows `live` [n], of B L, start in it, and the format."""
    kind, same_size, unsigned = FORMATS[logits.dtype]
    rows, length, vocabulary = logits.shape
    strides = logits.stride()
    starts = live // length * strides[0] + live % length * strides[1]
    span = (rows - 1) * strides[0] + (length - 1) * strides[1] + vocabulary
    return logits.detach().view(same_size).as_strided((span,), (1,)).numpy().view(unsigned), starts, kind


def token_ids(ids: Tensor | None) -> Any:
    """A numpy array [S]; empty for None."""
    return np.empty(0, np.int64) if ids is None else flat(ids)


def score_tokens(
    logits: Tensor,
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
) -> tuple[Tensor, ...]:
    """See the reference."""
    rows, length, vocabulary = logits.shape
    token = torch.zeros((rows, length), dtype=torch.int64)
    floats = torch.zeros((4, rows, length), dtype=torch.float32)
    floats[3] = -math.inf
    live = np.arange(rows * length) if eligible is None else flat(eligible).nonzero()[0]
    if live.size:
        over_rows(
            score_rows, live.size, live.size * vocabulary, live, *row_bits(logits, live), vocabulary,
            flat(temperature), flat(top_k), flat(top_p), flat(seed), flat(row_ids), flat(step), token_ids(suppress_ids),
            sampling_confidence, top_p_first, token.view(-1).numpy(), floats.view(4, -1).numpy(),
        )  # fmt: skip
    # Copies, because outputs of an operator must not share memory.
    return token, *(value.clone() for value in floats.unbind())
