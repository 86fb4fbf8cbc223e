// What a chunk of logits contributes to its row: written by the launch that reads the logits, merged by the next one. The chunks
// are the same whatever the number of blocks that share a row, so nothing depends on that number.
#pragma once

#include "cuda/logits.h"

namespace dlmk {

// The entry that wins the chunk's draw. Its noised value was computed relative to the chunk's maximum, while the row's winner is
// decided relative to the row's, rounded after that subtraction. An entry that can win is within 26 temperatures of both maxima
// (the Gumbel values lie in [-2.9, 22.9]), so the two values differ by a constant and at most 5e-6 of roundings: a lead of
// kClose settles the chunk, and otherwise the chunk is drawn again when the row's maximum is known.
constexpr float kClose = 3e-5f;
constexpr int32_t kNoDraw = -2147483647 - 1;

struct Draw {
  float logit, noise;
  int32_t index;  // kNoDraw: none; ~index: the lead is too small
};

struct Parts {
  int64_t rows;
  uint64_t* best;  // this and the next six [chunks, rows]
  float *second, *s, *t, *draw_logit, *draw_noise;
  int32_t* draw_index;
  uint32_t* kept;  // [rows]: value_bits of the lowest logit that may be drawn

  DLMK_METHOD explicit Parts(const ScoreArguments& a) : rows(a.B * a.L) {
    const int64_t n = rows * ((a.V + kChunk - 1) / kChunk);
    best = reinterpret_cast<uint64_t*>(a.parts);
    second = reinterpret_cast<float*>(best + n);
    s = second + n;
    t = s + n;
    draw_logit = t + n;
    draw_noise = draw_logit + n;
    draw_index = reinterpret_cast<int32_t*>(draw_noise + n);
    kept = reinterpret_cast<uint32_t*>(draw_index + n);
  }

  DLMK_METHOD void put(int chunk, int64_t row, const Top& top, const FixedSums& sums, const Draw& draw) const {
    const int64_t at = chunk * rows + row;
    best[at] = top.best;
    second[at] = value_of_bits(top.second);
    s[at] = float(sums.s) / kFixedPoint;
    t[at] = -(float(sums.t) / kFixedPoint);
    draw_logit[at] = draw.logit;
    draw_noise[at] = draw.noise;
    draw_index[at] = draw.index;
  }
};

// Whether an entry whose logit may be as high as `highest` can still reach `value`.
DLMK_FN bool can_reach(float highest, float m, float temperature, float value) {
  return (highest - m) / temperature + kLargestGumbel >= value;
}

// Words of a draw of at least `gap`: u <= -log(1 - u) = e^-gap. The slack covers the roundings.
DLMK_FN uint32_t largest_word_for(float gap) {
  const float limit = expf(-gap) * 4299000000.0f + 4.0f;  // 2^32 * 1.001
  return limit >= 4294967040.0f ? 0xffffffffu : uint32_t(limit);
}

// A row's draw with the maximum known: the very arithmetic of dlm_kernels/reference/score_tokens.py.
struct RowDraw {
  float m, temperature;
  float value;
  int64_t index;  // -1: none yet
  float logit;

  DLMK_METHOD void consider(float x, float noise, int64_t v) {
    const float noised = (x - m) / temperature + noise;
    if (index < 0 || noised > value || (noised == value && v < index)) {
      value = noised;
      index = v;
      logit = x;
    }
  }
};

template <class Dtype>
DLMK_FN void draw_chunk_again(const ScoreArguments& a, int64_t b, int64_t l, int chunk, const DrawKey& key, uint32_t kept,
                              RowDraw& draw) {
  const LogitRow<Dtype> row(a, b, l);
  for (int v = chunk * kChunk; v < row.end(chunk); ++v) {
    const float x = row.at(v);
    if (x == -infinity() || value_bits(x) < kept || !can_reach(x, draw.m, draw.temperature, draw.value)) continue;
    if (!row.is_suppressed(v)) draw.consider(x, keyed_gumbel(key, v), v);
  }
}

// Everything that follows the parts of a row.
DLMK_FN RowScores merge_parts(const ScoreArguments& a, int64_t b, int64_t l) {
  const Parts parts(a);
  const int64_t n = parts.rows * ((a.V + kChunk - 1) / kChunk), row = b * a.L + l;
  const RowParameters p = parameters_of(a, b, l);
  Top top = {0, 0};
  for (int64_t at = row; at < n; at += parts.rows) top.best = parts.best[at] > top.best ? parts.best[at] : top.best;
  const float m = top.value();
  RowSums sums = {m, p.scale, 0, 0};
  RowDraw draw = {m, p.temperature, 0, -1, m};
  if (is_finite(m) || m == infinity()) {
    float second = -infinity();
    for (int64_t at = row; at < n; at += parts.rows) {
      const float part_m = value_of_bits(uint32_t(parts.best[at] >> 32));
      const float next = parts.best[at] == top.best ? parts.second[at] : part_m;
      second = next > second ? next : second;
      sums.add(part_m, parts.s[at], parts.t[at]);
      const int32_t index = parts.draw_index[at];
      if (index != kNoDraw) draw.consider(parts.draw_logit[at], parts.draw_noise[at], index < 0 ? ~index : index);
    }
    if (!p.sampled || m == infinity()) return scores_of(top.index(), m, second, sums);
    for (int chunk = 0; chunk * parts.rows < n; ++chunk) {
      const int64_t at = chunk * parts.rows + row;
      if (parts.draw_index[at] >= 0 || parts.draw_index[at] == kNoDraw) continue;
      if (!can_reach(value_of_bits(uint32_t(parts.best[at] >> 32)), m, p.temperature, draw.value)) continue;
      const uint32_t kept = parts.kept[row];
      if (a.dtype == 0) draw_chunk_again<Fp32>(a, b, l, chunk, p.key, kept, draw);
      if (a.dtype == 1) draw_chunk_again<Bf16>(a, b, l, chunk, p.key, kept, draw);
      if (a.dtype == 2) draw_chunk_again<Fp16>(a, b, l, chunk, p.key, kept, draw);
    }
    return scores_of(draw.index, draw.logit, second, sums);
  }
  return scores_of(top.index(), m, m, sums);
}

}  // namespace dlmk
