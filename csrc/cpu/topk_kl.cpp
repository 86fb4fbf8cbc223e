// topk_kl: one pass over the logits for the sums of all chunks; then the few chunks that hold kept ids once more.
#include <utility>

#include "cpu/arguments.h"
#include "cpu/parallel.h"
#include "cpu/row.h"

namespace dlmk {
namespace {

// log of a sum of s e^m.
struct LogSum {
  double m = -INFINITY, s = 0;
  void add(double other_m, double other_s) {
    if (other_m == -INFINITY) return;
    if (other_m > m) {
      s *= std::exp(m - other_m);
      m = other_m;
    }
    s += other_s * std::exp(other_m - m);
  }
  double value() const { return m == -INFINITY ? m : m + std::log(s); }
};

class Comparer {
 public:
  explicit Comparer(const DlmkTopKArgs& args) : a_(args) { scratch_.chunks.resize(size_t((a_.V + kChunk - 1) / kChunk)); }

  void run(int64_t r) {
    const int64_t offset = (r / a_.L * a_.stride_b + r % a_.L * a_.stride_l) * (a_.dtype == DLMK_F32 ? 4 : 2);
    const Row row{reinterpret_cast<const char*>(a_.logits) + offset, a_.dtype, a_.V, &none_};
    int64_t* ids = reinterpret_cast<int64_t*>(a_.ids) + r * a_.k;
    float* log_probs = reinterpret_cast<float*>(a_.log_probs) + r * (a_.k + 1);
    if (!statistics(row)) {
      for (int64_t j = 0; j < a_.k; ++j) ids[j] = j;
      std::fill_n(log_probs, a_.k, NAN);
      log_probs[a_.k] = a_.k == a_.V ? -INFINITY : NAN;  // of none, whatever the row holds
      put_divergence(row, r, NAN);
      return;
    }
    best(row, ids);
    const double rest = others(row, ids, a_.k);
    LogSum sum;
    sum.add(rest, 1);
    for (int64_t j = 0; j < a_.k; ++j) sum.add(logit(row, ids[j]), 1);
    const double total = sum.value();
    for (int64_t j = 0; j < a_.k; ++j) log_probs[j] = float(logit(row, ids[j]) - total);
    log_probs[a_.k] = float(rest - total);
    put_divergence(row, r, total);
  }

 private:
  // Highest logit; maxima and sums of all chunks: far below it they still count among the others. Is there a distribution?
  bool statistics(const Row& row) {
    highest_ = -INFINITY;
    for (int64_t c = 0; c < row.chunks(); ++c) {
      ChunkStats& chunk = scratch_.chunks[size_t(c)];
      const float* x = row.view(c, scratch_.buffer.data(), &chunk.max);
      if (!(chunk.max < INFINITY)) return false;
      highest_ = std::max(highest_, chunk.max);
      chunk.s = chunk.t = 0;
      if (chunk.max == -INFINITY) continue;
      const int64_t ahead = c + 1 < row.chunks() ? row.size(c + 1) * row.width() : 0;
      kernels().sums(x, row.size(c), chunk.max, row.logits + (c + 1) * kChunk * row.width(), ahead, &chunk.s, &chunk.t);
    }
    return highest_ > -INFINITY;
  }

  // The k highest entries, best first; ties: lowest id.
  void best(const Row& row, int64_t* ids) {
    const ChunkStats* chunks = scratch_.chunks.data();
    const float kth = lowest_kept(row, {}, {0, 1, a_.k, {}, false, false}, chunks, scratch_);
    above_.clear();
    ties_.clear();
    for (int64_t c = 0; c < row.chunks(); ++c) {
      if (chunks[c].max < kth) continue;
      const float* x = row.view(c, scratch_.buffer.data());
      const int64_t n = row.size(c);
      for (int64_t i = 0; i < n; ++i) {
        const float wanted = int64_t(ties_.size()) < a_.k ? kth : std::nextafter(kth, INFINITY);
        i += kernels().find(x + i, n - i, wanted);
        if (i == n) break;
        if (x[i] > kth)
          above_.push_back({-x[i], c * kChunk + i});
        else
          ties_.push_back(c * kChunk + i);
      }
    }
    std::sort(above_.begin(), above_.end());
    for (const auto& entry : above_) *ids++ = entry.second;
    std::copy_n(ties_.begin(), a_.k - int64_t(above_.size()), ids);
  }

  // Relative to the highest logit, as all logarithms here: next to huge logits the log of a sum would round off.
  double logit(const Row& row, int64_t id) const {
    float value;
    return double(*kernels().load(row.logits + id * row.width(), row.dtype, 1, &value, nullptr)) - double(highest_);
  }

  // log of the sum of e^x over all but these. Subtracting them from the whole would leave nothing of a small rest.
  double others(const Row& row, const int64_t* ids, int64_t count) {
    without_.assign(ids, ids + count);
    std::sort(without_.begin(), without_.end());
    const Row rest{row.logits, row.dtype, row.V, &without_};
    LogSum sum;
    auto id = without_.begin();
    for (int64_t c = 0; c < row.chunks(); ++c) {
      ChunkStats chunk = scratch_.chunks[size_t(c)];
      const auto next = std::lower_bound(id, without_.end(), (c + 1) * kChunk);
      if (next != id) {
        const float* x = rest.view(c, scratch_.buffer.data(), &chunk.max);
        if (chunk.max > -INFINITY) kernels().sums(x, row.size(c), chunk.max, nullptr, 0, &chunk.s, &chunk.t);
      }
      id = next;
      sum.add(double(chunk.max) - double(highest_), chunk.s);
    }
    return sum.value();
  }

  // total: log of the sum of all e^x; NaN for a row without a distribution.
  void put_divergence(const Row& row, int64_t r, double total) {
    float& kl = reinterpret_cast<float*>(a_.kl)[r];
    kl = INFINITY;
    if (!a_.before_ids) return;
    const int64_t* ids = reinterpret_cast<const int64_t*>(a_.before_ids) + r * a_.before_k;
    const float* log_probs = reinterpret_cast<const float*>(a_.before_log_probs) + r * (a_.before_k + 1);
    double sum = 0;
    const auto add = [&](double p, double q) {
      if (p != -INFINITY) sum += std::exp(p) * (p - q);
    };
    for (int64_t j = 0; j < a_.before_k; ++j) add(log_probs[j], logit(row, ids[j]) - total);
    add(log_probs[a_.before_k], total == total ? others(row, ids, a_.before_k) - total : NAN);
    kl = float(sum < 0 ? 0 : sum);
  }

  const DlmkTopKArgs& a_;
  const std::vector<int64_t> none_;
  float highest_ = 0;
  Scratch scratch_;
  std::vector<std::pair<float, int64_t>> above_;  // (-logit, id)
  std::vector<int64_t> ties_, without_;
};

}  // namespace
}  // namespace dlmk

int dlmk_topk_kl(const DlmkTopKArgs* args) {
  using namespace dlmk;
  const int64_t rows = args->B * args->L, *ids = reinterpret_cast<const int64_t*>(args->before_ids);
  for (int64_t i = 0; ids && i < rows * args->before_k; ++i)
    if (ids[i] < 0 || ids[i] >= args->V) return DLMK_OUT_OF_RANGE;
  const int64_t work = rows * args->V / 16384 + 1;  // as in score_tokens
  return status_of([&] {
    parallel(int(std::min<int64_t>({args->threads, rows, work})), [&](int thread, int team) {
      Comparer comparer(*args);
      for (int64_t r = thread; r < rows; r += team) comparer.run(r);
    });
  });
}
