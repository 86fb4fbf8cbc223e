// Products of vectors, written once over a vector type V as kernels_impl.h is, which includes this file.

// Half squared distances of kTileRows vectors x (stride D) and the kTileColumns table rows of a panel [1 + D, kTileColumns], up to
// |x|^2 / 2: its first line less the products. All sums of a group stay in registers; the columns are the lanes.
static uint32_t k_tile(const float* panel, const float* x, int64_t D, const float* limits, float* bounds) {
  constexpr int group = V::W == 16 ? 12 : 6;
  static_assert(kTileRows % group == 0 && kTileColumns % (2 * V::W) == 0, "whole groups");
  uint32_t hits = 0;
  for (int64_t column = 0; column < kTileColumns; column += 2 * V::W) {
    for (int first = 0; first < kTileRows; first += group) {
      const float *rows = x + first * D, *line = panel + column;
      V::Float sums[group][2];
#pragma GCC unroll 12
      for (int r = 0; r < group; ++r) {
        sums[r][0] = V::load(line);
        sums[r][1] = V::load(line + V::W);
      }
      for (int64_t d = 0; d < D; ++d) {
        line += kTileColumns;
        const V::Float e0 = V::load(line), e1 = V::load(line + V::W);
#pragma GCC unroll 12
        for (int r = 0; r < group; ++r) {
          const V::Float value = V::set(rows[r * D + d]);
          sums[r][0] = V::fnma(value, e0, sums[r][0]);
          sums[r][1] = V::fnma(value, e1, sums[r][1]);
        }
      }
      for (int r = 0; r < group; ++r) {
        const V::Float limit = V::set(limits[first + r]);
        if (V::bits(V::ge(limit, sums[r][0])) | V::bits(V::ge(limit, sums[r][1]))) hits |= 1u << (first + r);
        V::store(bounds + (first + r) * kTileColumns + column, sums[r][0]);
        V::store(bounds + (first + r) * kTileColumns + column + V::W, sums[r][1]);
      }
    }
  }
  return hits;
}

// Products of fp32 numbers are exact in fp64, and the sixteen sums are the same with every instruction set: so is the result.
static void k_products(const float* a, const float* b, int64_t n, double* aa, double* bb, double* ab) {
  constexpr int lanes = 16;
  double sums[3][lanes] = {};
  const auto add = [&](int j, double x, double y) {
    sums[0][j] += x * x;
    sums[1][j] += y * y;
    sums[2][j] += x * y;
  };
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int j = 0; j < lanes; ++j) add(j, double(a[i + j]), double(b[i + j]));
  for (int j = 0; i < n; ++i, ++j) add(j, double(a[i]), double(b[i]));
  double* totals[3] = {aa, bb, ab};
  for (int k = 0; k < 3; ++k) {
    *totals[k] = 0;
    for (int j = 0; j < lanes; ++j) *totals[k] += sums[k][j];
  }
}
