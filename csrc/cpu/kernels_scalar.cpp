// One lane at a time: every processor, and the oracle of the vector variants.
#include <cmath>

#include "cpu/kernels.h"

namespace dlmk {
namespace {

struct V {
  using Float = float;
  using Int = uint64_t;
  using Mask = bool;
  using Wide = double;
  static constexpr int W = 1;
  static Float load(const float* p) { return *p; }
  static Float load_bf16(const uint16_t* p) { return bits_float(uint32_t(*p) << 16); }
  static Float load_f16(const uint16_t* p);
  static void store(float* p, Float x) { *p = x; }
  static Float set(float x) { return x; }
  static Float add(Float a, Float b) { return a + b; }
  static Float sub(Float a, Float b) { return a - b; }
  static Float mul(Float a, Float b) { return a * b; }
  static Float div(Float a, Float b) { return a / b; }
  static Float fma(Float a, Float b, Float c) { return a * b + c; }
  static Float fnma(Float a, Float b, Float c) { return c - a * b; }
  static Float max(Float a, Float b) { return a > b ? a : b; }
  static Float shift_exponent(Float a, Float biased) { return bits_float(float_bits(a) + (float_bits(biased) << 23)); }
  static Float select(Mask m, Float a, Float b) { return m ? a : b; }
  static double exact_total(Float x) { return double(x); }
  static Wide wide() { return 0; }
  static void widen(Float x, Wide* sum) { *sum += double(x); }
  static double total(Wide sum) { return sum; }
  static float highest(Float x) { return x; }
  static Mask none() { return false; }
  static Mask ge(Float a, Float b) { return a >= b; }
  static Mask unordered(Float a, Float b) { return a != a || b != b; }
  static Mask either(Mask a, Mask b) { return a || b; }
  static bool any(Mask m) { return m; }
  static uint32_t bits(Mask m) { return m; }
  static Float floor(Float x) { return std::floor(x); }
  static Float power_of_two(Float n) { return bits_float(uint32_t(int32_t(n) + 127) << 23); }
  static void truncate(Float x, int32_t* p) { *p = int32_t(x); }
  static Int set_int(uint32_t x) { return x; }
  static Int even(uint32_t x) { return x; }
  static Int odd(uint32_t) { return 0; }
  static Int exclusive(Int a, Int b) { return a ^ b; }
  static Int multiply(Int a, Int b) { return uint64_t(uint32_t(a)) * uint32_t(b); }
  static Int high(Int a) { return a >> 32; }
  static Int join(Int even, Int) { return even; }
  static uint32_t at_most(Int a, uint32_t b) { return uint32_t(a) <= b; }
  static void store_int(uint32_t* p, Int a) { *p = uint32_t(a); }
};

#include "cpu/kernels_impl.h"

V::Float V::load_f16(const uint16_t* p) { return half_to_float(*p); }

}  // namespace

const ChunkKernels kScalarKernels = table("scalar", normals_scalar);

}  // namespace dlmk
