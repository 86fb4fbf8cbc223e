// nearest_embedding: bounds of all distances in fp32 from a matrix product, distances in fp64 of the few rows they leave.
//
// With a center c subtracted and rounded, x' = x - c and e' = e - c, and u = 2^-24:
//   h = |e'|^2 / 2 - x' e' is half of (|x - e|^2 - |x'|^2) within E (|x'|^2 + |e'|^2), E = (2 D + 16) u.
// Rounding x' and e' accounts for 2.01 u, |e'|^2 / 2 for u, and the D steps of the sum, no partial result of which is above
// |x'|^2 / 2 + |e'|^2, for less than (D + 1) u (1 + u)^(2 D). So no row with h - E |e'|^2 above
//   ((1 + E) B - (1 - 2 E) |x'|^2) / 2
// is nearer than a distance whose square is B. The center keeps rows that are close together and far from 0 apart.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/arguments.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace dlmk {

const ChunkKernels& kernels();

namespace {

constexpr double kLargestSquare = 1e37;  // beyond it fp32 sums might overflow: nothing is known, each distance is computed
constexpr int64_t kMostDimensions = int64_t(1) << 20;  // for which (1 + u)^(2 D) is small
constexpr int64_t kBlock = int64_t(1) << 18;           // numbers of x that stay in the second-level cache
constexpr int64_t kCenterRows = 31;

struct Matrix {
  const char* data;
  int64_t dtype, rows, D, stride;
  // Row i as floats; `buffer` holds D.
  const float* row(int64_t i, float* buffer) const {
    return kernels().load(data + i * stride * (dtype == DLMK_F32 ? 4 : 2), dtype, D, buffer, nullptr);
  }
};

struct Nearest {
  double squared = INFINITY;
  int64_t id = 0;
  void consider(double other, int64_t other_id) {
    if (other < squared || (other == squared && other_id < id)) *this = {other, other_id};
  }
};

// Always in this order, so that equal rows are equally far.
double squared_distance(const float* x, const float* e, int64_t D) {
  constexpr int lanes = 8;
  double sums[lanes] = {}, total = 0;
  const auto add = [&](int j, double difference) { sums[j] += difference * difference; };
  int64_t d = 0;
  for (; d + lanes <= D; d += lanes)
    for (int j = 0; j < lanes; ++j) add(j, double(x[d + j]) - double(e[d + j]));
  for (int j = 0; d < D; ++d, ++j) add(j, double(x[d]) - double(e[d]));
  for (double sum : sums) total += sum;
  return total;
}

class Search {
 public:
  explicit Search(const DlmkNearestArgs& a)
      : a_(a),
        D_(a.D),
        x_{reinterpret_cast<const char*>(a.x), a.x_dtype, a.N, a.D, a.x_stride},
        table_{reinterpret_cast<const char*>(a.table), a.table_dtype, a.V, a.D, a.table_stride},
        panels_((a.V + kTileColumns - 1) / kTileColumns),
        error_(double(2 * a.D + 16) / (1 << 24)),
        largest_(a.D <= kMostDimensions ? kLargestSquare : -1) {
    find_center();
  }

  void run() {
    const int64_t rows = std::max(8 * kTileRows, kBlock / D_);
    for (int64_t first = 0; first < a_.N; first += rows) search(first, std::min(rows, a_.N - first));
  }

 private:
  // What a thread finds for each vector of a block, and its memory.
  struct Worker {
    std::vector<Nearest> nearest;
    std::vector<float> limits, panel, x, e;
    Worker(int64_t rows, int64_t D)
        : nearest(size_t(rows)), panel(size_t((D + 1) * kTileColumns)), x(size_t(D)), e(size_t(D)) {}
  };

  // The median of a few rows, dimension by dimension: no outlier moves it.
  void find_center() {
    const int64_t count = std::min(kCenterRows, table_.rows);
    std::vector<float> rows(size_t(count * D_)), values;
    for (int64_t i = 0; i < count; ++i) {
      const float* row = table_.row(i * table_.rows / count, rows.data() + i * D_);
      if (row != rows.data() + i * D_) std::copy(row, row + D_, rows.data() + i * D_);
    }
    center_.resize(size_t(D_));
    for (int64_t d = 0; d < D_; ++d) {
      values.clear();
      for (int64_t i = 0; i < count; ++i)
        if (std::isfinite(rows[size_t(i * D_ + d)])) values.push_back(rows[size_t(i * D_ + d)]);
      if (values.empty()) continue;
      const auto middle = values.begin() + int64_t(values.size() / 2);
      std::nth_element(values.begin(), middle, values.end());
      center_[size_t(d)] = *middle;
    }
  }

  // out[d * stride] = row - center; its square. NaN or infinite where the row has NaN or infinities.
  double centered(const float* row, float* out, int64_t stride) const {
    double square = 0;
    bool finite = true;
    for (int64_t d = 0; d < D_; ++d) {
      const float value = row[d] - center_[size_t(d)];
      out[d * stride] = value;
      square += double(value) * double(value);
      finite &= std::isfinite(row[d]);
    }
    if (finite && square <= largest_) return square;
    for (int64_t d = 0; d < D_; ++d) out[d * stride] = 0;
    return finite ? INFINITY : NAN;
  }

  // The centered vectors of a block, filled up to whole tiles with ones that nothing is near to.
  void load_block(int64_t first, int64_t count) {
    const int64_t padded = (count + kTileRows - 1) / kTileRows * kTileRows;
    block_.assign(size_t(padded * D_), 0.0f);
    squares_.assign(size_t(padded), NAN);
    std::vector<float> buffer(size_t(D_), 0.0f);
    for (int64_t r = 0; r < count; ++r)
      squares_[size_t(r)] = centered(x_.row(first + r, buffer.data()), block_.data() + r * D_, 1);
  }

  // Lower bounds of h for x' = 0 on the first line, the centered rows below it, one a column. NaN: nobody's nearest.
  void load_panel(int64_t first, Worker& worker) const {
    float* panel = worker.panel.data();
    for (int64_t j = 0; j < kTileColumns; ++j) {
      float* column = panel + kTileColumns + j;
      double square = NAN;
      if (first + j < table_.rows)
        square = centered(table_.row(first + j, worker.e.data()), column, kTileColumns);
      else
        for (int64_t d = 0; d < D_; ++d) column[d * kTileColumns] = 0;
      panel[j] = square == INFINITY ? -INFINITY : float((0.5 - error_) * square);
    }
  }

  // The highest lower bound of a row that may be nearer than `squared`, for the vector r. NaN: none is near.
  float limit(int64_t r, double squared) const {
    const double square = squares_[size_t(r)];
    if (square == INFINITY) return INFINITY;
    const double subnormal = double(D_) * 0x1p-124;  // what products and sums below the normal numbers lose
    return float(((1 + error_) * squared - (1 - 2 * error_) * square) / 2 + subnormal);
  }

  // Distances of those of a panel's rows whose bounds reach the vector's limit, nearest bound first: mostly it is the only one.
  void settle(int64_t row, int64_t r, int64_t first, float* bounds, Worker& worker) const {
    Nearest& nearest = worker.nearest[size_t(r)];
    float& limit_now = worker.limits[size_t(r)];
    const float* x = x_.row(row, worker.x.data());
    for (;;) {
      int64_t next = -1;
      for (int64_t j = 0; j < kTileColumns; ++j)
        if (bounds[j] <= limit_now && (next < 0 || bounds[j] < bounds[next])) next = j;
      if (next < 0) return;
      bounds[next] = NAN;  // done
      nearest.consider(squared_distance(x, table_.row(first + next, worker.e.data()), D_), first + next);
      limit_now = limit(r, nearest.squared);
    }
  }

  void search(int64_t first, int64_t count) {
    load_block(first, count);
    const int64_t padded = int64_t(squares_.size()), work = count * table_.rows / 4096 * D_ / 64 + 1;
    const int threads = int(std::min<int64_t>({a_.threads, panels_, work}));
    std::vector<Nearest> nearest(size_t(count) * size_t(threads));
    parallel(threads, [&](int thread, int team) {
      Worker worker(padded, D_);
      for (int64_t r = 0; r < padded; ++r) worker.limits.push_back(limit(r, INFINITY));
      float bounds[kTileRows * kTileColumns];
      for (int64_t p = thread; p < panels_; p += team) {
        load_panel(p * kTileColumns, worker);
        for (int64_t r = 0; r < padded; r += kTileRows) {
          uint32_t hits = kernels().tile(worker.panel.data(), block_.data() + r * D_, D_, worker.limits.data() + r, bounds);
          for (; hits; hits &= hits - 1) {
            const int64_t i = __builtin_ctz(hits);
            settle(first + r + i, r + i, p * kTileColumns, bounds + i * kTileColumns, worker);
          }
        }
      }
      std::copy_n(worker.nearest.begin(), count, nearest.begin() + thread * count);
    });
    for (int64_t r = 0; r < count; ++r) {
      Nearest best;
      for (int thread = 0; thread < threads; ++thread) {
        const Nearest& found = nearest[size_t(thread * count + r)];
        if (found.squared < INFINITY) best.consider(found.squared, found.id);
      }
      put(first + r, best);
    }
  }

  void put(int64_t row, const Nearest& best) const {
    std::vector<float> buffer(size_t(D_), 0.0f);
    const float* x = x_.row(row, buffer.data());
    const bool nan = std::any_of(x, x + D_, [](float value) { return value != value; });
    reinterpret_cast<int64_t*>(a_.ids)[row] = nan ? 0 : best.id;
    reinterpret_cast<float*>(a_.distance)[row] = nan ? NAN : float(std::sqrt(best.squared));
  }

  const DlmkNearestArgs& a_;
  const int64_t D_;
  const Matrix x_, table_;
  const int64_t panels_;
  const double error_, largest_;
  std::vector<float> center_, block_;
  std::vector<double> squares_;
};

}  // namespace
}  // namespace dlmk

int dlmk_nearest_embedding(const DlmkNearestArgs* args) {
  return dlmk::status_of([&] { dlmk::Search(*args).run(); });
}
