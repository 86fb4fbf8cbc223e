// A row of logits: which there are, and reading them eight at a time.
#pragma once

#include "common/dtypes.h"
#include "common/row_stats.h"
#include "cuda/arguments.h"
#include "cuda/block.h"

namespace dlmk {

constexpr int kGroup = 8;     // neighbours that one thread reads at once: 16 bytes of bf16
constexpr int kChunk = 4096;  // logits that a block goes through before its threads meet; a part of a row's statistics
constexpr int kScoreThreads = 256;
constexpr int kDigitBits = 4, kDigits = 1 << kDigitBits;

struct ScoreShared {
  uint32_t suppressed[kChunk / 32];              // one bit for each logit of the chunk
  uint64_t weights[kDigits][kScoreThreads];      // a column for each thread: no two threads add to the same one
  uint64_t sums[kDigits][kDigits];               // of every kDigits-th column
};

struct RowParameters {
  float temperature, top_p;
  int64_t top_k;
  DrawKey key;
  bool sampled, filtered;  // filtered: top-k or top-p change what this row's scores depend on
  float scale;             // of the statistics: 1 / temperature with sampling confidence, else 1
};

DLMK_FN RowParameters parameters_of(const ScoreArguments& a, int64_t b, int64_t l) {
  RowParameters p;
  const float temperature = row_value<float>(a.temperature, b, l);
  p.sampled = temperature > 0;
  p.temperature = p.sampled ? temperature : 1.0f;
  p.top_k = row_value<int64_t>(a.top_k, b, l);
  p.top_p = row_value<float>(a.top_p, b, l);
  p.key = {row_value<int64_t>(a.seed, b, l), row_value<int64_t>(a.row_ids, b, l), row_value<int64_t>(a.step, b, l)};
  const bool cuts = (p.top_k > 0 && p.top_k < a.V) || !(p.top_p >= 1);
  p.filtered = cuts && (p.sampled || a.sampling_confidence);
  p.scale = a.sampling_confidence ? inverse_of(p.temperature) : 1.0f;
  return p;
}

// Is this row scored at all?
DLMK_FN bool is_live(const ScoreArguments& a, int64_t b, int64_t l) {
  if (a.tokens.data && row_value<int64_t>(a.tokens, b, l) != a.mask_id) return false;
  return !a.eligible.data || row_value<bool>(a.eligible, b, l);
}

struct alignas(16) Quad {
  uint32_t words[4];
};

DLMK_FN Quad load_quad(const void* address) {
#if defined(__CUDA_ARCH__)
  const uint4 q = __ldg(static_cast<const uint4*>(address));
  return {{q.x, q.y, q.z, q.w}};
#else
  Quad q;
  memcpy(&q, address, sizeof(q));
  return q;
#endif
}

template <class Dtype>
struct LogitRow {
  using Storage = typename Dtype::Storage;

  const Storage* data;
  int V, chunks;  // at most 2^26: 32 bits index within a row
  const int64_t* suppressed;
  int suppressed_count;
  int64_t suppressed_stride;
  bool aligned;

  DLMK_METHOD LogitRow(const ScoreArguments& a, int64_t b, int64_t l)
      : data(reinterpret_cast<const Storage*>(a.logits) + b * a.stride_b + l * a.stride_l),
        V(int(a.V)),
        chunks((int(a.V) + kChunk - 1) / kChunk),
        suppressed(reinterpret_cast<const int64_t*>(a.suppress_ids)),
        suppressed_count(int(a.suppress_count)),
        suppressed_stride(a.suppress_stride),
        aligned(reinterpret_cast<uint64_t>(data) % sizeof(Quad) == 0) {}

  DLMK_METHOD int end(int chunk) const { return (chunk + 1) * kChunk < V ? (chunk + 1) * kChunk : V; }

  // The logit, whether suppressed or not.
  DLMK_METHOD float at(int v) const { return Dtype::widen(data[v]); }

  DLMK_METHOD bool is_suppressed(int v) const {
    for (int i = 0; i < suppressed_count; ++i)
      if (suppressed[i * suppressed_stride] == v) return true;
    return false;
  }

  // Logits first ... first + 7 as floats; -inf beyond the vocabulary.
  DLMK_METHOD void load(int first, float* x) const {
    if (aligned && first + kGroup <= V) {
      constexpr int per_quad = int(sizeof(Quad) / sizeof(Storage));
#pragma unroll
      for (int q = 0; q < kGroup / per_quad; ++q) {
        const Quad quad = load_quad(data + first + q * per_quad);
#pragma unroll
        for (int k = 0; k < per_quad; ++k)
          x[q * per_quad + k] = Dtype::widen(Storage(quad.words[k * 4 / per_quad] >> (sizeof(Storage) == 2 ? k % 2 * 16 : 0)));
      }
    } else {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) x[k] = first + k < V ? at(first + k) : -infinity();
    }
  }
};

// Finds which logits of the chunk are suppressed. With a barrier before and after, if any are suppressed at all.
template <class Block, class Dtype>
DLMK_BLOCK_FN void mark_suppressed(Block& block, ScoreShared& shared, const LogitRow<Dtype>& row, int chunk) {
  if (row.suppressed_count == 0) return;
  block.sync();
  for (int i = block.rank(); i < kChunk / 32; i += block.size()) shared.suppressed[i] = 0;
  block.sync();
  for (int i = block.rank(); i < row.suppressed_count; i += block.size()) {
    const int64_t at = row.suppressed[i * row.suppressed_stride] - int64_t(chunk) * kChunk;
    if (at >= 0 && at < kChunk) atomic_or(&shared.suppressed[at / 32], 1u << (at % 32));
  }
  block.sync();
}

// visit(first, x): this thread's groups of the chunk, suppressed entries -inf. After mark_suppressed.
template <class Block, class Dtype, class Visit>
DLMK_BLOCK_FN void for_groups(Block& block, const ScoreShared& shared, const LogitRow<Dtype>& row, int chunk,
                              const Visit& visit) {
  const int end = row.end(chunk);
  for (int first = chunk * kChunk + block.rank() * kGroup; first < end; first += block.size() * kGroup) {
    float x[kGroup];
    row.load(first, x);
    if (row.suppressed_count != 0) {
      const uint32_t bits = shared.suppressed[first % kChunk / 32] >> (first % 32);
#pragma unroll
      for (int k = 0; k < kGroup; ++k)
        if (bits >> k & 1) x[k] = -infinity();
    }
    visit(first, x);
  }
}

}  // namespace dlmk
