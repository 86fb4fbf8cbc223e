// Row statistics in parts: what a stretch of logits contributes to its row, and how the parts come together.
//
// A part holds the maximum m with its lowest index, the second maximum m2, s = sum e^(x - m) and t = sum e^(x - m) (x - m). No
// result depends on how threads share a part: maxima are of integers, and sums are taken in integers (fixed point) over groups
// of eight neighbours, which one thread sums. Parts are merged one after the other.
#pragma once

#include "common/portable_math.h"

namespace dlmk {

constexpr uint32_t kNanBits = 0xffffffffu;     // above +inf: NaN wins, as in torch.argmax
constexpr float kFixedPoint = 268435456.0f;    // 2^28: eight terms of at most 1 fit into 32 bits
constexpr float kVanishes = -87.0f;            // e^x below adds nothing that fp32 can hold

DLMK_FN uint32_t value_bits(float x) { return x != x ? kNanBits : ordered_bits(x); }

// The float of which these are the ordered_bits; -inf for 0, which stands for "no value".
DLMK_FN float value_of_bits(uint32_t bits) {
  if (bits == kNanBits) return not_a_number();
  if (bits == 0) return -infinity();
  return bits_float((bits & 0x80000000u) ? bits & 0x7fffffffu : ~bits);
}

DLMK_FN bool is_finite(float x) { return (float_bits(x) & 0x7f800000u) != 0x7f800000u; }

// The maximum as value_bits << 32 | ~index, so that of equal ones the lowest index is the greatest; 0: no value.
struct Top {
  uint64_t best;
  uint32_t second;  // value_bits of the next one

  DLMK_METHOD void add(uint32_t bits, int64_t index) {
    const uint64_t key = uint64_t(bits) << 32 | uint32_t(~uint32_t(index));
    const uint64_t lesser = key > best ? best : key;
    best = key > best ? key : best;
    second = uint32_t(lesser >> 32) > second ? uint32_t(lesser >> 32) : second;
  }
  DLMK_METHOD float value() const { return value_of_bits(uint32_t(best >> 32)); }
  DLMK_METHOD int64_t index() const { return int64_t(uint32_t(~uint32_t(best))); }
};

struct MergeTops {
  DLMK_METHOD Top operator()(const Top& a, const Top& b) const {
    const uint32_t lesser = uint32_t((a.best > b.best ? b.best : a.best) >> 32);
    const uint32_t second = a.second > b.second ? a.second : b.second;
    return {a.best > b.best ? a.best : b.best, lesser > second ? lesser : second};
  }
};

// s and -t in fixed point.
struct FixedSums {
  uint64_t s, t;

  DLMK_METHOD void add_group(float group_s, float group_t) {
    s += uint32_t(group_s * kFixedPoint + 0.5f);
    t += uint32_t(group_t * kFixedPoint + 0.5f);
  }
};

struct AddSums {
  DLMK_METHOD FixedSums operator()(const FixedSums& a, const FixedSums& b) const { return {a.s + b.s, a.t + b.t}; }
};

// e^d and its share of -t, added to a group's sums. d = (x - m) / temperature, 0 for x = m even where m is infinite.
DLMK_FN void add_term(float x, float m, float inverse_temperature, float* group_s, float* group_t) {
  const float d = x == m ? 0.0f : (x - m) * inverse_temperature;
  if (!(d >= kVanishes)) return;
  const float e = expf(d);
  *group_s += e;
  *group_t -= e * d;
}

// 1 / temperature, kept finite so that 0 times it is 0. The statistics may round a little more than the choice of tokens.
DLMK_FN float inverse_of(float temperature) {
  const float inverse = 1.0f / temperature;
  return inverse < 3e38f ? inverse : 3e38f;
}

// A row's statistics relative to its maximum m. For m = +inf, s counts the entries of +inf, and all that follows is right.
struct RowSums {
  float m, inverse_temperature;
  double s, t;

  DLMK_METHOD void add(float part_m, float part_s, float part_t) {
    const float d = part_m == m ? 0.0f : (part_m - m) * inverse_temperature;
    if (!(d >= kVanishes)) return;
    const double scale = double(expf(d));
    s += scale * double(part_s);
    t += scale * (double(part_t) + double(d) * double(part_s));
  }
};

struct RowScores {
  int64_t token;
  float confidence, margin, entropy, logsumexp;
};

// The scores of `token`, whose logit is `logit`; `second` is the highest logit but one.
DLMK_FN RowScores scores_of(int64_t token, float logit, float second, const RowSums& row) {
  const float m = row.m, scale = row.inverse_temperature;
  if (m != m) return {token, m, m, m, m};
  if (m == -infinity()) return {0, 0.0f, 0.0f, 0.0f, m};
  const auto power = [&](float x) { return x == m ? 1.0 : exp((double(x) - double(m)) * double(scale)); };
  const double log_s = log(row.s);
  return {token, float(power(logit) / row.s), float((1.0 - power(second)) / row.s), float(log_s - row.t / row.s),
          float(double(m) * double(scale) + log_s)};
}

}  // namespace dlmk
