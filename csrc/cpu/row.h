// One row of logits: its chunks, its statistics, its sampling distribution.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/dlmk.h"
#include "cpu/kernels.h"

namespace dlmk {

const ChunkKernels& kernels();

// e^-32 V is below 2e-9 of a row's sum at V = 126,464: a chunk that far below the maximum changes no digit of the statistics.
constexpr float kNegligible = 32.0f;
// The same for a sum in fp64: e^-56 2^26 is below 2^-53.
constexpr double kVanishing = 56;

struct Row {
  const char* logits;
  int64_t dtype, V;
  const std::vector<int64_t>* suppressed;  // ascending
  int64_t width() const { return dtype == DLMK_F32 ? 4 : 2; }
  int64_t chunks() const { return (V + kChunk - 1) / kChunk; }
  int64_t size(int64_t chunk) const { return std::min(kChunk, V - chunk * kChunk); }

  // The chunk as floats, suppressed entries -inf, and its maximum if asked for. `buffer` holds kChunk floats.
  const float* view(int64_t chunk, float* buffer, float* max = nullptr) const;
  // The maximum alone, for which nothing is written unless an entry of the chunk is suppressed.
  float maximum(int64_t chunk, float* buffer) const;
};

// Memory that a thread reuses from row to row.
struct Scratch {
  std::vector<float> buffer = std::vector<float>(kChunk);
  std::vector<ChunkStats> chunks;
  std::vector<int64_t> order;
  std::vector<float> values;
  // Whether the thread's last row was peaked: few chunks near its maximum. A guess about the next row, on which only the time
  // depends.
  bool peaked = false;
};

// Statistics of a row with a finite maximum, relative to it.
struct RowStats {
  float m, second;  // maximum and the highest of the other entries (-inf for V = 1)
  int64_t index;    // lowest index of m
  double s, t;      // sums of e^(x - m) and e^(x - m) (x - m)
};

struct RowResult {
  int64_t token;
  float confidence, margin, entropy, logsumexp;
};

struct RowParameters {
  float temperature, top_p;
  int64_t top_k;
  DrawKey key;
  bool sampling_confidence, top_p_first;
};

// Are the row's statistics those of another distribution than softmax(x)?
bool reshaped(const Row& row, const RowParameters& parameters);

// Fills chunks[begin, end): the maxima, and with `sums` the sums that count.
void chunk_statistics(const Row& row, int64_t begin, int64_t end, bool sums, Scratch& scratch, ChunkStats* chunks);

// Sorts indices of chunks by their maxima: what can win is found early, and what cannot comes last.
void highest_first(const ChunkStats* chunks, std::vector<int64_t>& order);

// The lowest kept logit under top-k and top-p; -inf when neither applies. filters.cpp
float lowest_kept(const Row& row, const RowStats& stats, const RowParameters& parameters, const ChunkStats* chunks,
                  Scratch& scratch);

// Everything that follows the chunk statistics; without their sums the token alone. `threads` may share the work of drawing.
RowResult finish_row(const Row& row, const RowParameters& parameters, const ChunkStats* chunks, Scratch& scratch, int threads);

}  // namespace dlmk
