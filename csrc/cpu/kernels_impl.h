// The chunk kernels, written once over a vector type V. Each instruction set includes this file in a source of its own, inside
// an anonymous namespace, so that no function compiled for one is linked into another.
//
// V has: Float, Int, Mask types; W lanes; load/store/set for floats; max, sub, mul, fma, ge, unordered, and the integer
// operations of Philox.

constexpr float kLowest = -87.0f;  // e^-87 is the last normal float; what is below adds nothing that fp32 can hold

// e^d for d in [kLowest, 0], relative error 2e-7 near 0 and 4e-7 at the far end: e^d = 2^n e^r with |r| <= log(2) / 2, and
// (e^r - 1 - r) / r^2 as a polynomial of degree 3, fitted for the least greatest relative error of e^r.
static inline V::Float vexp(V::Float d) {
  V::Float n = V::round(V::mul(d, V::set(1.44269504f)));
  V::Float r = V::fnma(n, V::set(0.69314718f), d);
  V::Float p = V::fma(V::set(0.0083125f), r, V::set(0.04189033f));
  p = V::fma(p, r, V::set(0.16667115f));
  p = V::fma(p, r, V::set(0.4999923f));
  p = V::fma(p, V::mul(r, r), V::add(r, V::set(1.0f)));
  return V::scale(p, n);
}

static inline float half_to_float(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  if (rest >= 0x0400u) return bits_float(sign | ((rest << 13) + 0x38000000u));
  return bits_float(sign | float_bits(float(rest) * 5.9604644775390625e-8f));  // subnormal: rest * 2^-24
}

static float k_maximum(const float* x, int64_t n) {
  int64_t i = 0;
  V::Float m0 = V::set(-INFINITY), m1 = m0, m2 = m0, m3 = m0;
  V::Mask nan = V::none();
  for (; i + 4 * V::W <= n; i += 4 * V::W) {
    V::Float a = V::load(x + i), b = V::load(x + i + V::W);
    V::Float c = V::load(x + i + 2 * V::W), d = V::load(x + i + 3 * V::W);
    nan = V::either(nan, V::either(V::unordered(a, b), V::unordered(c, d)));
    m0 = V::max(a, m0);
    m1 = V::max(b, m1);
    m2 = V::max(c, m2);
    m3 = V::max(d, m3);
  }
  float m = V::highest(V::max(V::max(m0, m1), V::max(m2, m3)));
  bool any_nan = V::any(nan);
  for (; i < n; ++i) {
    any_nan |= x[i] != x[i];
    m = x[i] > m ? x[i] : m;
  }
  return any_nan ? NAN : m;
}

static const float* k_load(const void* source, int64_t dtype, int64_t n, float* buffer, float* max) {
  if (dtype == 0) {
    const float* x = static_cast<const float*>(source);
    *max = k_maximum(x, n);
    return x;
  }
  const uint16_t* h = static_cast<const uint16_t*>(source);
  int64_t i = 0;
  V::Float m0 = V::set(-INFINITY), m1 = m0;
  V::Mask nan = V::none();
  if (dtype == 1) {
    for (; i + 2 * V::W <= n; i += 2 * V::W) {
      V::Float a = V::load_bf16(h + i), b = V::load_bf16(h + i + V::W);
      if (buffer) {
        V::store(buffer + i, a);
        V::store(buffer + i + V::W, b);
      }
      nan = V::either(nan, V::unordered(a, b));
      m0 = V::max(a, m0);
      m1 = V::max(b, m1);
    }
  } else {
    for (; i + 2 * V::W <= n; i += 2 * V::W) {
      V::Float a = V::load_f16(h + i), b = V::load_f16(h + i + V::W);
      if (buffer) {
        V::store(buffer + i, a);
        V::store(buffer + i + V::W, b);
      }
      nan = V::either(nan, V::unordered(a, b));
      m0 = V::max(a, m0);
      m1 = V::max(b, m1);
    }
  }
  float m = V::highest(V::max(m0, m1));
  bool any_nan = V::any(nan);
  for (; i < n; ++i) {
    float x = dtype == 1 ? bits_float(uint32_t(h[i]) << 16) : half_to_float(h[i]);
    if (buffer) buffer[i] = x;
    any_nan |= x != x;
    m = x > m ? x : m;
  }
  *max = any_nan ? NAN : m;
  return buffer;
}

static inline void scalar_term(float d, float* s, float* t) {
  if (d < kLowest) return;
  float e = expf(d);
  *s += e;
  *t += e * d;
}

static void k_sums(const float* x, int64_t n, float max, const char* ahead, int64_t ahead_bytes, float* s, float* t) {
  int64_t i = 0, fetched = 0;
  V::Float m = V::set(max), lowest = V::set(kLowest), zero = V::set(0.0f);
  V::Float s0 = zero, s1 = zero, t0 = zero, t1 = zero;
  // The next chunk arrives while this one is computed: as many bytes a round as keep both in step.
  const int64_t stride = n > 0 ? (ahead_bytes * 2 * V::W + n - 1) / n : 0;
  for (; i + 2 * V::W <= n; i += 2 * V::W) {
    for (int64_t end = fetched + stride; fetched < end; fetched += 64) __builtin_prefetch(ahead + fetched);
    V::Float d0 = V::max(V::sub(V::load(x + i), m), lowest);
    V::Float d1 = V::max(V::sub(V::load(x + i + V::W), m), lowest);
    V::Float e0 = vexp(d0), e1 = vexp(d1);
    s0 = V::add(s0, e0);
    s1 = V::add(s1, e1);
    t0 = V::fma(e0, d0, t0);
    t1 = V::fma(e1, d1, t1);
  }
  *s = V::total(V::add(s0, s1));
  *t = V::total(V::add(t0, t1));
  for (; i < n; ++i) scalar_term(x[i] - max, s, t);
}

static void k_kept_sums(const float* x, int64_t n, const Sampling& row, float* s, float* t) {
  int64_t i = 0;
  V::Float m = V::set(row.m), lowest = V::set(kLowest), zero = V::set(0.0f);
  V::Float temperature = V::set(row.temperature), keep = V::set(row.keep);
  V::Float s0 = zero, t0 = zero;
  for (; i + V::W <= n; i += V::W) {
    V::Float v = V::load(x + i);
    V::Float d = V::max(V::div(V::sub(v, m), temperature), lowest);
    V::Float e = V::select(V::ge(v, keep), vexp(d), zero);
    s0 = V::add(s0, e);
    t0 = V::fma(e, d, t0);
  }
  *s = V::total(s0);
  *t = V::total(t0);
  for (; i < n; ++i)
    if (x[i] >= row.keep) scalar_term((x[i] - row.m) / row.temperature, s, t);
}

// Words up to this one may beat `best`: u <= -log(1 - u) = e^-g, so a draw of at least `gap` needs u <= e^-gap.
// The slack covers the roundings of the portable logarithm and of the sums (below 1e-5 together).
static inline uint32_t largest_word(float bound, float best) {
  double limit = exp(double(bound) - double(best)) * 1.0001 * 4294967296.0 + 2.0;
  return limit >= 4294967295.0 ? 0xffffffffu : uint32_t(limit);
}

// No logit below this one can win: (x - m) / temperature + the largest draw stays below `best`. The slack covers roundings.
static inline float lowest_contender(float best, const Sampling& row) {
  const float x = row.m + row.temperature * (best - kLargestGumbel - 0.01f);
  const float contender = x - 1e-5f * (fabsf(x) + fabsf(row.m));
  return contender >= row.keep ? contender : row.keep;  // NaN (an overflow): keep
}

static inline void consider(float x, int64_t index, uint32_t word, const Sampling& row, Best* best) {
  if (!(x >= row.keep) || x == -INFINITY) return;
  float scaled = (x - row.m) / row.temperature;
  float value = scaled + gumbel_from_word(word);
  if (value > best->value || (value == best->value && index < best->index)) *best = {value, index};
}

static void k_draw(const float* x, int64_t n, int64_t first, float max, const Sampling& row, Best* best) {
  const float bound = (max - row.m) / row.temperature;
  uint32_t limit = largest_word(bound, best->value);
  float lowest = lowest_contender(best->value, row);
  const uint32_t key0 = uint32_t(row.key.seed), key1 = uint32_t(row.key.seed >> 32);
  const int64_t group = 4 * V::W;
  int64_t i = 0;
  for (; i + group <= n; i += group) {
    const V::Float tallest = V::max(V::max(V::load(x + i), V::load(x + i + V::W)),
                                    V::max(V::load(x + i + 2 * V::W), V::load(x + i + 3 * V::W)));
    if (!V::bits(V::ge(tallest, V::set(lowest)))) continue;
    V::Int c0 = V::add_int(V::set_int((kGumbelStream << 24) | uint32_t((first + i) >> 2)), V::lanes());
    V::Int c1 = V::set_int(uint32_t(row.key.row_id)), c2 = V::set_int(uint32_t(row.key.step));
    V::Int c3 = V::set_int(uint32_t(row.key.row_id >> 32));
    uint32_t k0 = key0, k1 = key1;
    for (int round = 0; round < kPhiloxRounds; ++round) {
      V::Int high0, low0, high1, low1;
      V::multiply(c0, kPhiloxM0, &high0, &low0);
      V::multiply(c2, kPhiloxM1, &high1, &low1);
      c0 = V::exclusive(V::exclusive(high1, c1), V::set_int(k0));
      c1 = low1;
      c2 = V::exclusive(V::exclusive(high0, c3), V::set_int(k1));
      c3 = low0;
      k0 += kPhiloxW0;
      k1 += kPhiloxW1;
    }
    const V::Int words[4] = {c0, c1, c2, c3};
    uint32_t lanes = 0;
    for (int k = 0; k < 4; ++k) lanes |= V::at_most(words[k], limit);
    if (!lanes) continue;
    uint32_t stored[4][V::W];
    for (int k = 0; k < 4; ++k) V::store_int(stored[k], words[k]);
    const float before = best->value;
    for (; lanes; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      for (int k = 0; k < 4; ++k)
        if (stored[k][lane] <= limit && x[i + 4 * lane + k] >= lowest)
          consider(x[i + 4 * lane + k], first + i + 4 * lane + k, stored[k][lane], row, best);
    }
    if (best->value > before) {
      limit = largest_word(bound, best->value);
      lowest = lowest_contender(best->value, row);
    }
  }
  for (; i < n; i += 4) {
    Words words = keyed_words(row.key, kGumbelStream, uint32_t((first + i) >> 2));
    for (int64_t k = 0; k < 4 && i + k < n; ++k) consider(x[i + k], first + i + k, words.w[k], row, best);
  }
}

static int64_t k_collect(const float* x, int64_t n, float lowest, float* out) {
  int64_t i = 0, found = 0;
  V::Float bound = V::set(lowest);
  for (; i + V::W <= n; i += V::W)
    for (uint32_t lanes = V::bits(V::ge(V::load(x + i), bound)); lanes; lanes &= lanes - 1)
      out[found++] = x[i + __builtin_ctz(lanes)];
  for (; i < n; ++i)
    if (x[i] >= lowest) out[found++] = x[i];
  return found;
}

static int64_t k_find(const float* x, int64_t n, float value) {
  int64_t i = 0;
  V::Float wanted = V::set(value);
  for (; i + V::W <= n; i += V::W) {
    // Where value is a maximum, "at least" is "equal".
    uint32_t lanes = V::bits(V::ge(V::load(x + i), wanted));
    if (lanes) return i + __builtin_ctz(lanes);
  }
  for (; i < n; ++i)
    if (x[i] >= value) return i;
  return n;
}

static constexpr ChunkKernels table(const char* name) {
  return {name, k_load, k_maximum, k_sums, k_kept_sums, k_draw, k_collect, k_find};
}
