// The loops over a chunk of logits: one table of functions per instruction set.
#pragma once

#include <cstdint>

#include "common/dtypes.h"
#include "common/posterior.h"

namespace dlmk {

// A chunk of fp32 logits stays in the first-level cache between the passes over it.
constexpr int64_t kChunk = 2048;

constexpr float kNoMass = 26.0f;  // a token this far below the maximum has none: e^-26 kMassScale < 1
constexpr int kMassBins = 2048;   // bins of y in [-kNoMass, 0]; bin kMassBins is its end point alone

// Vectors and table rows whose distances are bounded at once.
constexpr int64_t kTileRows = 12, kTileColumns = 32;

// What one chunk adds to the statistics of its row: sums relative to the chunk's own maximum, so that they depend on nothing
// but the chunk.
struct ChunkStats {
  float max;  // NaN if the chunk holds one
  float s;    // sum of e^(x - max)
  float t;    // sum of e^(x - max) (x - max)
};

// The best noised entry so far: highest value, then lowest index.
struct Best {
  float value;
  int64_t index;  // -1: none
};

// Noised entries of a row whose maximum is still to come. (x - m) / temperature is rounded, so that the winner is known only when
// m is: until then everything within kSlack of the best stays.
struct Contender {
  float x, noise;
  int32_t index;
};
constexpr int kContenders = 8;
struct Contenders {
  int32_t count;  // -1: more than there is room for, which takes eight noised values within kSlack; the row is read again
  Contender list[kContenders];
};

// Noised values are compared while their roundings may still change: three of at most 2^-24 x 26 each, twice, with room.
constexpr float kSlack = 1e-4f;

// A row's sampling distribution: softmax((x - m) / temperature) over x >= keep.
struct Sampling {
  float m, temperature, keep;
  DrawKey key;
};

// A position that moves by score entropy: the weights of its other states, whose log scores are x.
struct StateDraw {
  ScoreWeights weights;
  float log_slope;  // the weight is at most e^(x + log_slope)
  DrawKey key;
};

struct ChunkKernels {
  const char* name;
  // fp32 view of n logits at `source` (dtype as in dlmk.h): the source itself, or `buffer` after conversion; and their maximum.
  // Without a buffer converted values are not kept: the maximum alone is of use. Without `max` none is looked for.
  const float* (*load)(const void* source, int64_t dtype, int64_t n, float* buffer, float* max);
  // Maximum of n floats, NaN if there is one.
  float (*maximum)(const float* x, int64_t n);
  // Maximum of the entries other than x[skipped]; -inf if there is none.
  float (*maximum_without)(const float* x, int64_t n, int64_t skipped);
  // s and t of ChunkStats; fetches `ahead` into the cache on the way.
  void (*sums)(const float* x, int64_t n, float max, const char* ahead, int64_t ahead_bytes, float* s, float* t);
  // s and t over y = (x - m) / temperature of the entries >= keep.
  void (*kept_sums)(const float* x, int64_t n, const Sampling& row, float* s, float* t);
  // Sum of e^y in fp64 over y = (x - m) / temperature of the entries >= keep; y at most 700.
  double (*exact_sum)(const float* x, int64_t n, const Sampling& row);
  // Adds the mass of every entry >= keep to the bin of its y = (x - m) / temperature: floor(-y kMassBins / kNoMass).
  void (*masses)(const float* x, int64_t n, const Sampling& row, int64_t* bins);
  // Splits the entries at bins [first, last]: adds the mass of all and of those in lower bins (*above: the more likely ones), and
  // copies those inside; their number.
  int64_t (*split)(const float* x, int64_t n, const Sampling& row, int first, int last, int64_t* total, int64_t* above,
                   float* out);
  // Copies the entries that `masses` counts in one bin; their number.
  int64_t (*collect_bin)(const float* x, int64_t n, const Sampling& row, int bin, float* out);
  // Draws for n entries, the first of which is vocabulary entry `first` (a multiple of 4); `max` bounds them.
  void (*draw)(const float* x, int64_t n, int64_t first, float max, const Sampling& row, Best* best);
  // The same while row.m may still rise: all that may win, those of before included. Nothing below `floor` does.
  void (*contend)(const float* x, int64_t n, int64_t first, float max, const Sampling& row, float floor, Contenders* all);
  // As `draw`, over the logarithms of weights. No entry is NaN, no weight infinite.
  void (*draw_state)(const float* x, int64_t n, int64_t first, float max, const StateDraw& row, Best* best);
  // Copies the entries >= lowest, in order; their number.
  int64_t (*collect)(const float* x, int64_t n, float lowest, float* out);
  // Index of the first entry >= `value`; n if none.
  int64_t (*find)(const float* x, int64_t n, float value);
  // bounds [kTileRows, kTileColumns] = panel[0] - x panel[1:], for x [kTileRows, D] and panel [1 + D, kTileColumns]. Bit r of the
  // result: row r has a bound <= limits[r].
  uint32_t (*tile)(const float* panel, const float* x, int64_t D, const float* limits, float* bounds);
  // a a, b b and a b of two vectors, in fp64.
  void (*products)(const float* a, const float* b, int64_t n, double* aa, double* bb, double* ab);
  // n floats at `target` in a dtype of dlmk.h.
  void (*store)(const float* x, int64_t n, int64_t dtype, void* target);
  // Standard normal numbers of indices first (a multiple of 4) ... first + n - 1.
  void (*normals)(const DrawKey& key, int64_t first, int64_t n, float* out);
};

void normals_scalar(const DrawKey& key, int64_t first, int64_t n, float* out);

extern const ChunkKernels kScalarKernels;
#if defined(__x86_64__)
void normals_avx2(const DrawKey& key, int64_t first, int64_t n, float* out);
void normals_avx512(const DrawKey& key, int64_t first, int64_t n, float* out);

extern const ChunkKernels kAvx2Kernels, kAvx512Kernels;
#endif

}  // namespace dlmk
