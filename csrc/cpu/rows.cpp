// Rows of caches and features: gather_rows, scatter_rows_, cosine_rows.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/arguments.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace dlmk {

const ChunkKernels& kernels();

namespace {

// A thread is worth waking for some hundred kilobytes.
constexpr int64_t kBytesPerThread = 1 << 17;

class Mover {
 public:
  explicit Mover(const DlmkMoveArgs& args) : a_(args) {
    pieces_.push_back({0, 0});
    const auto list = [](int64_t address) { return reinterpret_cast<const int64_t*>(address); };
    for (int64_t d = 0; d < a_.dimensions; ++d) {
      std::vector<Piece> inner;
      for (const Piece& piece : pieces_)
        for (int64_t i = 0; i < list(a_.sizes)[d]; ++i)
          inner.push_back({piece.from + i * list(a_.from_strides)[d], piece.to + i * list(a_.to_strides)[d]});
      pieces_.swap(inner);
    }
  }

  void gather() const {
    parallel(threads(), [&](int thread, int team) {
      for (int64_t i = thread; i < a_.B * a_.M; i += team) {
        const int64_t b = i / a_.M, m = i % a_.M, row = at<int64_t>(a_.positions, b, m);
        if (inside(row))
          copy(b, row, m);
        else
          for (const Piece& piece : pieces_) std::memset(to(b, m) + piece.to, 0, size_t(a_.run));
      }
    });
  }

  // A row of the target belongs to one thread, which writes it in the order of m.
  void scatter() const {
    parallel(threads(), [&](int thread, int team) {
      for (int64_t b = 0; b < a_.B; ++b)
        for (int64_t m = 0; m < a_.M; ++m) {
          const int64_t row = at<int64_t>(a_.positions, b, m);
          if (inside(row) && (b + row) % team == thread) copy(b, m, row);
        }
    });
  }

 private:
  struct Piece {
    int64_t from, to;  // offsets in bytes
  };

  bool inside(int64_t row) const { return row >= 0 && row < a_.N; }
  char* to(int64_t b, int64_t row) const { return reinterpret_cast<char*>(a_.to) + b * a_.to_b + row * a_.to_row; }

  void copy(int64_t b, int64_t from_row, int64_t to_row) const {
    const char* source = reinterpret_cast<const char*>(a_.from) + b * a_.from_b + from_row * a_.from_row;
    char* target = to(b, to_row);
    for (const Piece& piece : pieces_) std::memcpy(target + piece.to, source + piece.from, size_t(a_.run));
  }

  int threads() const {
    const int64_t bytes = a_.B * a_.M * int64_t(pieces_.size()) * a_.run;
    return int(std::min(a_.threads, bytes / kBytesPerThread + 1));
  }

  const DlmkMoveArgs& a_;
  std::vector<Piece> pieces_;
};

float cosine(const char* a, int64_t a_dtype, const char* b, int64_t b_dtype, int64_t D, float* buffer) {
  double aa = 0, bb = 0, ab = 0;
  for (int64_t i = 0; i < D; i += kChunk) {
    const int64_t n = std::min(kChunk, D - i);
    const float* x = kernels().load(a + i * (a_dtype == DLMK_F32 ? 4 : 2), a_dtype, n, buffer, nullptr);
    const float* y = kernels().load(b + i * (b_dtype == DLMK_F32 ? 4 : 2), b_dtype, n, buffer + kChunk, nullptr);
    double parts[3];
    kernels().products(x, y, n, &parts[0], &parts[1], &parts[2]);
    aa += parts[0];
    bb += parts[1];
    ab += parts[2];
  }
  const double norms = std::sqrt(aa) * std::sqrt(bb);
  return norms == 0 ? 0.0f : float(ab / norms);
}

}  // namespace
}  // namespace dlmk

int dlmk_gather_rows(const DlmkMoveArgs* args) {
  return dlmk::status_of([&] { dlmk::Mover(*args).gather(); });
}

int dlmk_scatter_rows(const DlmkMoveArgs* args) {
  return dlmk::status_of([&] { dlmk::Mover(*args).scatter(); });
}

int dlmk_cosine_rows(const DlmkCosineArgs* args) {
  using namespace dlmk;
  const DlmkCosineArgs& p = *args;
  const int64_t work = p.B * p.L * p.D * 4 / kBytesPerThread + 1;
  return status_of([&] {
    parallel(int(std::min(p.threads, work)), [&](int thread, int team) {
      std::vector<float> buffer(2 * kChunk);
      for (int64_t r = thread; r < p.B * p.L; r += team) {
        const auto address = [&](int64_t data, int64_t dtype, int64_t stride_b, int64_t stride_l) {
          const int64_t offset = r / p.L * stride_b + r % p.L * stride_l;
          return reinterpret_cast<const char*>(data) + offset * (dtype == DLMK_F32 ? 4 : 2);
        };
        reinterpret_cast<float*>(p.cosine)[r] =
            cosine(address(p.a, p.a_dtype, p.a_stride_b, p.a_stride_l), p.a_dtype,
                   address(p.b, p.b_dtype, p.b_stride_b, p.b_stride_l), p.b_dtype, p.D, buffer.data());
      }
    });
  });
}
