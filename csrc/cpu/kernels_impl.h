// The chunk kernels, written once over a vector type V. Each instruction set includes this file in a source of its own, inside
// an anonymous namespace, so that no function compiled for one is linked into another.
//
// V has: Float, Int, Mask types; W lanes; load/store/set for floats; max, sub, mul, fma, ge, unordered, and the integer
// operations of Philox. An Int holds 32-bit numbers in the low halves of 64-bit lanes (the high halves are arbitrary), so that a
// product needs no shuffle; the even and the odd blocks of a group are two Ints, and `join` gives their W words in order.

constexpr float kLowest = -87.0f;  // near the last normal float; what is below adds nothing that fp32 can hold

// e^d for d in [kLowest, 0] within 2e-7: 2^n e^r with |r| <= log(2) / 2, and e^r as 1 + r q(r), fitted for the least greatest
// relative error (9e-8). For sums; what decides tokens is portable_exp. Adding 1.5 * 2^23 rounds to an integer, which is then in
// the low bits.
static inline V::Float vexp(V::Float d) {
  const V::Float integer = V::set(12582912.0f);
  const V::Float biased = V::fma(d, V::set(1.44269504f), integer), n = V::sub(biased, integer);
  const V::Float r = V::fnma(n, V::set(0.69314718f), d);
  V::Float p = V::fma(V::set(8.290272206e-3f), r, V::set(4.189816117e-2f));
  p = V::fma(p, r, V::set(0.1666763872f));
  p = V::fma(p, r, V::set(0.4999914765f));
  p = V::fma(p, r, V::set(0.999999702f));
  p = V::fma(p, r, V::set(1.0f));
  return V::shift_exponent(p, biased);
}

// To the nearest, ties to even.
static inline uint16_t float_to_bf16(float x) {
  const uint32_t bits = float_bits(x), rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return uint16_t(x != x ? 0x7fc0u : rounded >> 16);
}

static inline uint16_t float_to_half(float x) {
  const uint32_t bits = float_bits(x), size = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  const uint32_t normal = (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13;  // exponent bias 127 to 15
  const uint32_t subnormal = float_bits(bits_float(size) + 0.5f) - 0x3f000000u;        // 0.5 has a last place of 2^-24
  const uint32_t large = size > 0x7f800000u ? 0x7e00u : 0x7c00u;                       // NaN, infinity
  return uint16_t(sign | (size >= 0x47800000u ? large : size < 0x38800000u ? subnormal : normal));
}

static void k_store(const float* x, int64_t n, int64_t dtype, void* target) {
  uint16_t* h = static_cast<uint16_t*>(target);
  if (dtype == 0)
    memcpy(target, x, size_t(n) * sizeof(float));
  else if (dtype == 1)
    for (int64_t i = 0; i < n; ++i) h[i] = float_to_bf16(x[i]);
  else
    for (int64_t i = 0; i < n; ++i) h[i] = float_to_half(x[i]);
}

static float k_maximum(const float* x, int64_t n) {
  if (n < V::W) {
    float m = -INFINITY;
    bool any_nan = false;
    for (int64_t i = 0; i < n; ++i) {
      any_nan |= x[i] != x[i];
      m = x[i] > m ? x[i] : m;
    }
    return any_nan ? NAN : m;
  }
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
  for (; i < n; i += V::W) {  // the last vector may take some entries a second time
    V::Float a = V::load(x + (i + V::W <= n ? i : n - V::W));
    nan = V::either(nan, V::unordered(a, a));
    m0 = V::max(a, m0);
  }
  return V::any(nan) ? NAN : V::highest(V::max(V::max(m0, m1), V::max(m2, m3)));
}

// Maximum of the entries other than `skipped`; no entry is NaN.
static float k_maximum_without(const float* x, int64_t n, int64_t skipped) {
  if (n < V::W) {
    float m = -INFINITY;
    for (int64_t i = 0; i < n; ++i) m = x[i] > m && i != skipped ? x[i] : m;
    return m;
  }
  V::Float m = V::set(-INFINITY);
  for (int64_t i = 0; i < n; i += V::W) {
    const int64_t at = i + V::W <= n ? i : n - V::W;
    V::Float a = V::load(x + at);
    if (skipped >= at && skipped < at + V::W) {
      float lanes[V::W];
      V::store(lanes, a);
      lanes[skipped - at] = -INFINITY;
      a = V::load(lanes);
    }
    m = V::max(a, m);
  }
  return V::highest(m);
}

static inline V::Float load_half(const uint16_t* h, int64_t dtype) {
  return dtype == 1 ? V::load_bf16(h) : V::load_f16(h);
}

template <int64_t dtype>
static float load_halves(const uint16_t* h, int64_t n, float* buffer) {
  if (n < V::W) {
    float few[V::W], *out = buffer ? buffer : few;
    for (int64_t i = 0; i < n; ++i) out[i] = dtype == 1 ? bf16_to_float(h[i]) : half_to_float(h[i]);
    return k_maximum(out, n);
  }
  int64_t i = 0;
  V::Float m0 = V::set(-INFINITY), m1 = m0;
  V::Mask nan = V::none();
  for (; i + 2 * V::W <= n; i += 2 * V::W) {
    V::Float a = load_half(h + i, dtype), b = load_half(h + i + V::W, dtype);
    if (buffer) {
      V::store(buffer + i, a);
      V::store(buffer + i + V::W, b);
    }
    nan = V::either(nan, V::unordered(a, b));
    m0 = V::max(a, m0);
    m1 = V::max(b, m1);
  }
  for (; i < n; i += V::W) {
    const int64_t at = i + V::W <= n ? i : n - V::W;
    V::Float a = load_half(h + at, dtype);
    if (buffer) V::store(buffer + at, a);
    nan = V::either(nan, V::unordered(a, a));
    m0 = V::max(a, m0);
  }
  return V::any(nan) ? NAN : V::highest(V::max(m0, m1));
}

static const float* k_load(const void* source, int64_t dtype, int64_t n, float* buffer, float* max) {
  if (dtype == 0) {
    const float* x = static_cast<const float*>(source);
    if (max) *max = k_maximum(x, n);
    return x;
  }
  const uint16_t* h = static_cast<const uint16_t*>(source);
  const float m = dtype == 1 ? load_halves<1>(h, n, buffer) : load_halves<2>(h, n, buffer);
  if (max) *max = m;
  return buffer;
}

// In fp32 a lane that holds the winner's 1 rounds off most of what is small beside it. Partial sums are therefore short, so many
// vectors each, and what rounds off where they are added up is kept (fast two-sum).
constexpr int kShort = 8;

// Runs term(x, j), which adds vector x to partial sum j (0 or 1), over n entries, the last ones padded with -inf; flush() takes
// the partial sums every kShort vectors of each.
template <class Term, class Flush, class Ahead>
static inline void accumulate(const float* x, int64_t n, Term term, Flush flush, Ahead ahead) {
  const int64_t pair = 2 * V::W;
  int64_t i = 0;
  while (i + pair <= n) {
    const int64_t end = i + pair * kShort <= n ? i + pair * kShort : n - n % pair;
    for (; i < end; i += pair) {
      ahead();
      term(V::load(x + i), 0);
      term(V::load(x + i + V::W), 1);
    }
    flush();
  }
  if (i < n) {
    float rest[2 * V::W];
    for (int64_t j = 0; j < pair; ++j) rest[j] = i + j < n ? x[i + j] : -INFINITY;
    term(V::load(rest), 0);
    term(V::load(rest + V::W), 1);
    flush();
  }
}

// s and t of terms that exponent(x) gives; `keep(e, x)` may clear e.
template <class Exponent, class Keep, class Ahead>
static inline void sums(const float* x, int64_t n, Exponent exponent, Keep keep, Ahead ahead, float* s, float* t) {
  const V::Float zero = V::set(0.0f);
  V::Float s0 = zero, s1 = zero, t0 = zero, t1 = zero;
  V::Float s_total = zero, s_lost = zero, t_total = zero;
  accumulate(
      x, n,
      [&](V::Float v, int j) {
        const V::Float d = V::max(exponent(v), V::set(kLowest)), e = keep(vexp(d), v);
        V::Float &s_j = j ? s1 : s0, &t_j = j ? t1 : t0;
        s_j = V::add(s_j, e);
        t_j = V::fma(e, d, t_j);
      },
      [&] {
        const V::Float part = V::add(s0, s1), sum = V::add(s_total, part);
        s_lost = V::add(s_lost, V::sub(part, V::sub(sum, s_total)));
        s_total = sum;
        t_total = V::add(t_total, V::add(t0, t1));
        s0 = s1 = t0 = t1 = zero;
      },
      ahead);
  *s = float(V::exact_total(s_total) + V::exact_total(s_lost));
  *t = float(V::exact_total(t_total));
}

static void k_sums(const float* x, int64_t n, float max, const char* ahead, int64_t ahead_bytes, float* s, float* t) {
  const V::Float m = V::set(max);
  // The next chunk arrives while this one is computed: as many bytes a round as keep both in step.
  const int64_t stride = ahead_bytes > 0 ? (ahead_bytes * 2 * V::W + n - 1) / n : 0;
  int64_t fetched = 0, wanted = 0;
  sums(
      x, n, [&](V::Float v) { return V::sub(v, m); }, [](V::Float e, V::Float) { return e; },
      [&] {
        for (wanted += stride; fetched < wanted; fetched += 64) __builtin_prefetch(ahead + fetched);
      },
      s, t);
}

static void k_kept_sums(const float* x, int64_t n, const Sampling& row, float* s, float* t) {
  const V::Float m = V::set(row.m), least = V::set(row.keep), zero = V::set(0.0f);
  const float inverse = 1.0f / row.temperature;  // a rounding more than a quotient; finite, so that 0 * inverse is 0
  const V::Float scale = V::set(inverse < 3e38f ? inverse : 3e38f);
  sums(
      x, n, [&](V::Float v) { return V::mul(V::sub(v, m), scale); },
      [&](V::Float e, V::Float v) { return V::select(V::ge(v, least), e, zero); }, [] {}, s, t);
}

// e^d in fp64 for d in [kLowestExact, 700], within 4e-16 of it. Neither a branch nor a call, so that loops of it become vectors.
constexpr double kLowestExact = -708;  // adds nothing to what is not itself as small

static inline double exact_exp(double d) {
  const double integer = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, which is then in the low bits
  const double biased = d * 1.4426950408889634 + integer, n = biased - integer;
  const double r = (d - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;  // ln 2 in two parts
  double p = 1.0 / 6227020800;  // the Taylor series up to r^13; |r| <= log(2) / 2
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  uint64_t bits, shift;
  memcpy(&bits, &p, 8);
  memcpy(&shift, &biased, 8);
  bits += shift << 52;
  memcpy(&p, &bits, 8);
  return p;
}

static double k_exact_sum(const float* x, int64_t n, const Sampling& row) {
  constexpr int64_t kBatch = 256, kLanes = 8;
  const double m = row.m, inverse = 1.0 / double(row.temperature);
  double lanes[kLanes] = {}, total = 0;
  for (int64_t i = 0; i < n; i += kBatch) {
    const int64_t size = n - i < kBatch ? n - i : kBatch;
    float kept[kBatch];
    double e[kBatch];
    for (int64_t j = 0; j < size; ++j) kept[j] = x[i + j] >= row.keep ? x[i + j] : -INFINITY;
    for (int64_t j = 0; j < size; ++j) e[j] = (double(kept[j]) - m) * inverse;
    for (int64_t j = 0; j < size; ++j) e[j] = e[j] < kLowestExact ? kLowestExact : e[j];
    for (int64_t j = 0; j < size; ++j) e[j] = exact_exp(e[j]);
    for (int64_t j = size; j % kLanes; ++j) e[j] = 0;
    for (int64_t j = 0; j < size; j += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += e[j + lane];
  }
  for (double lane : lanes) total += lane;
  return total;
}

// portable_exp, the same bits, for x <= 0.
static inline V::Float portable_exp_lanes(V::Float x) {
  const V::Float given = x, n = V::floor(V::add(V::mul(V::set(1.44269504f), x), V::set(0.5f)));
  x = V::sub(x, V::mul(n, V::set(0.693359375f)));
  x = V::sub(x, V::mul(n, V::set(-2.12194440e-4f)));
  V::Float p = V::set(1.9875691500e-4f);
  p = V::add(V::mul(p, x), V::set(1.3981999507e-3f));
  p = V::add(V::mul(p, x), V::set(8.3334519073e-3f));
  p = V::add(V::mul(p, x), V::set(4.1665795894e-2f));
  p = V::add(V::mul(p, x), V::set(1.6666665459e-1f));
  p = V::add(V::mul(p, x), V::set(5.0000001201e-1f));
  V::Float y = V::mul(p, V::mul(x, x));
  y = V::add(V::add(y, x), V::set(1.0f));
  return V::select(V::ge(given, V::set(kLowest)), V::mul(y, V::power_of_two(n)), V::set(0.0f));
}

// Bins of y = (x - m) / temperature from 0 down to -kNoMass, as floats; body(lanes that have mass, vector x, y, bins, offset).
template <class Body>
static inline void over_bins(const float* x, int64_t n, const Sampling& row, Body body) {
  const V::Float m = V::set(row.m), temperature = V::set(row.temperature), keep = V::set(row.keep);
  for (int64_t i = 0; i < n; i += V::W) {
    float rest[V::W];
    if (i + V::W > n)
      for (int64_t j = 0; j < V::W; ++j) rest[j] = i + j < n ? x[i + j] : -INFINITY;
    const V::Float v = V::load(i + V::W > n ? rest : x + i), y = V::div(V::sub(v, m), temperature);
    const uint32_t lanes = V::bits(V::ge(y, V::set(-kNoMass))) & V::bits(V::ge(v, keep));
    if (lanes) body(lanes, v, y, V::floor(V::mul(y, V::set(-kMassBins / kNoMass))));
  }
}

static void k_masses(const float* x, int64_t n, const Sampling& row, int64_t* bins) {
  over_bins(x, n, row, [&](uint32_t lanes, V::Float, V::Float y, V::Float bin) {
    float mass[V::W];
    int32_t at[V::W];
    V::store(mass, V::mul(portable_exp_lanes(y), V::set(kMassScale)));
    V::truncate(bin, at);
    for (; lanes; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      bins[at[lane]] += int64_t(mass[lane]);
    }
  });
}

static int64_t k_split(const float* x, int64_t n, const Sampling& row, int first, int last, int64_t* total, int64_t* above,
                       float* out) {
  int64_t found = 0;
  V::Wide all = V::wide(), upper = V::wide();
  const V::Float zero = V::set(0.0f), keep = V::set(row.keep), begin = V::set(float(first)), end = V::set(float(last));
  over_bins(x, n, row, [&](uint32_t lanes, V::Float v, V::Float y, V::Float bin) {
    const V::Float whole = V::floor(V::mul(portable_exp_lanes(y), V::set(kMassScale)));  // 0 below -kNoMass
    const V::Float mass = V::select(V::ge(v, keep), whole, zero);
    const V::Mask inside = V::ge(bin, begin);
    V::widen(mass, &all);
    V::widen(V::select(inside, zero, mass), &upper);
    lanes &= V::bits(inside) & V::bits(V::ge(end, bin));
    if (!lanes) return;
    float values[V::W];
    V::store(values, v);
    for (; lanes; lanes &= lanes - 1) out[found++] = values[__builtin_ctz(lanes)];
  });
  *total += int64_t(V::total(all));  // a chunk's masses are below 2^53: exact
  *above += int64_t(V::total(upper));
  return found;
}

static int64_t k_collect_bin(const float* x, int64_t n, const Sampling& row, int bin, float* out) {
  int64_t found = 0;
  const V::Float wanted = V::set(float(bin));
  over_bins(x, n, row, [&](uint32_t lanes, V::Float v, V::Float, V::Float at) {
    lanes &= V::bits(V::ge(at, wanted)) & V::bits(V::ge(wanted, at));
    float values[V::W];
    if (lanes) V::store(values, v);
    for (; lanes; lanes &= lanes - 1) out[found++] = values[__builtin_ctz(lanes)];
  });
  return found;
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
    uint32_t lanes = V::bits(V::ge(V::load(x + i), wanted));
    if (lanes) return i + __builtin_ctz(lanes);
  }
  for (; i < n; ++i)
    if (x[i] >= value) return i;
  return n;
}

#include "cpu/kernels_draw.h"
#include "cpu/vectors_impl.h"

static constexpr ChunkKernels table(const char* name, void (*normals)(const DrawKey&, int64_t, int64_t, float*)) {
  return {name,      k_load,  k_maximum,     k_maximum_without, k_sums,    k_kept_sums,  k_exact_sum,
          k_masses,  k_split, k_collect_bin, k_draw,            k_contend, k_draw_state, k_collect,
          k_find,    k_tile,  k_products,    k_store,           normals};
}
