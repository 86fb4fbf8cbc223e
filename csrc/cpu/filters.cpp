// top-k and top-p as one number: both keep "everything from some logit up", whole groups of equal logits included.
#include <functional>
#include <numeric>

#include "cpu/row.h"

namespace dlmk {
namespace {

constexpr int64_t kGroup = 64;  // entries whose maximum stands for them

// scratch.values: the row's entries >= lowest.
void collect(const Row& row, const ChunkStats* chunks, float lowest, Scratch& scratch) {
  std::vector<float>& values = scratch.values;
  size_t found = 0;
  for (int64_t c = 0; c < row.chunks(); ++c) {
    if (chunks[c].max < lowest) continue;
    if (values.size() < found + kChunk) values.resize(2 * found + kChunk);
    found += size_t(kernels().collect(row.view(c, scratch.buffer.data()), row.size(c), lowest, values.data() + found));
  }
  values.resize(found);
}

float kth_largest(const Row& row, int64_t k, const ChunkStats* chunks, Scratch& scratch) {
  // k maxima of disjoint groups are k entries, so the k-th largest entry is not below the k-th largest of them.
  std::vector<float>& maxima = scratch.values;
  maxima.clear();
  if (k <= row.chunks()) {
    for (int64_t c = 0; c < row.chunks(); ++c) maxima.push_back(chunks[c].max);
  } else if (k <= row.V / kGroup) {
    for (int64_t c = 0; c < row.chunks(); ++c) {
      const float* x = row.view(c, scratch.buffer.data());
      for (int64_t i = 0; i < row.size(c); i += kGroup)
        maxima.push_back(kernels().maximum(x + i, std::min(kGroup, row.size(c) - i)));
    }
  }
  float lowest = -INFINITY;
  if (!maxima.empty()) {
    std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<float>());
    lowest = maxima[size_t(k - 1)];
  }
  collect(row, chunks, lowest, scratch);
  std::vector<float>& values = scratch.values;
  std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<float>());
  return values[size_t(k - 1)];
}

// Bins between which p of the mass is reached, guessed from some entries of each chunk; all bins where these are too few.
struct Bins {
  int first = 0, last = kMassBins;
};

constexpr int64_t kSampled = 64;         // of a chunk
constexpr size_t kSampledChunks = 16;    // fewer are split without a guess
constexpr double kSamplingError = 0.03;  // of the mass: about five standard deviations at V = 126,464 and Gaussian logits

Bins guess(const Row& row, const Sampling& kept, double p, const std::vector<int64_t>& chunks, Scratch& scratch) {
  Bins guessed;
  if (chunks.size() < kSampledChunks) return guessed;
  std::vector<int64_t> bins(kMassBins + 1, 0);
  for (int64_t c : chunks)
    kernels().masses(row.view(c, scratch.buffer.data()), std::min(kSampled, row.size(c)), kept, bins.data());
  const double total = double(std::accumulate(bins.begin(), bins.end(), int64_t(0)));
  double above = 0;
  for (int bin = 0; bin <= kMassBins; ++bin) {
    above += double(bins[size_t(bin)]);
    if (above < (p - kSamplingError) * total) guessed.first = bin + 1;
    if (above > (p + kSamplingError) * total) {
      guessed.last = bin;
      break;
    }
  }
  return guessed;
}

// The lowest value v whose strictly greater entries (among those >= floor) have less than p of the mass.
float nucleus(const Row& row, float m, float temperature, float p, float floor, const ChunkStats* chunks, Scratch& scratch) {
  const auto scaled = [&](float x) { return (x - m) / temperature; };
  const Sampling kept = {m, temperature, floor, {}};
  std::vector<int64_t>& massive = scratch.order;
  massive.clear();
  for (int64_t c = 0; c < row.chunks(); ++c)
    if (chunks[c].max >= floor && scaled(chunks[c].max) >= -kNoMass) massive.push_back(c);

  // The boundary lies in the bin with which the limit is reached.
  std::vector<float>& near = scratch.values;
  std::vector<int64_t> bins(kMassBins + 1);
  int64_t above;
  double limit;
  int bin;
  for (Bins split = guess(row, kept, double(p), massive, scratch);; split = {}) {
    int64_t total = above = 0;
    size_t found = 0;
    for (int64_t c : massive) {
      if (near.size() < found + kChunk) near.resize(2 * found + kChunk);
      const float* x = row.view(c, scratch.buffer.data());
      found += size_t(kernels().split(x, row.size(c), kept, split.first, split.last, &total, &above, near.data() + found));
    }
    limit = double(p) * double(total);
    std::fill(bins.begin(), bins.end(), 0);
    kernels().masses(near.data(), int64_t(found), kept, bins.data());
    bin = split.first;
    const bool begins_above = split.first == 0 || double(above) < limit;
    while (bin < split.last && double(above + bins[size_t(bin)]) < limit) above += bins[size_t(bin++)];
    const bool reached = split.last == kMassBins || double(above + bins[size_t(bin)]) >= limit;
    near.resize(found);
    if (begins_above && reached) break;
  }
  std::vector<float> inside(near.size());
  inside.resize(size_t(kernels().collect_bin(near.data(), int64_t(near.size()), kept, bin, inside.data())));
  std::sort(inside.begin(), inside.end(), std::greater<float>());
  float lowest = m;
  for (size_t i = 0; i < inside.size() && double(above) < limit;) {
    lowest = inside[i];
    const int64_t mass = int64_t(portable_exp(scaled(lowest)) * kMassScale);
    for (; i < inside.size() && inside[i] == lowest; ++i) above += mass;
  }
  return std::min(lowest, m);
}

}  // namespace

float lowest_kept(const Row& row, const RowStats& stats, const RowParameters& parameters, const ChunkStats* chunks,
                  Scratch& scratch) {
  const float temperature = parameters.temperature > 0 ? parameters.temperature : 1.0f;
  float by_k = -INFINITY, by_p = -INFINITY;
  if (parameters.top_k > 0 && parameters.top_k < row.V) by_k = kth_largest(row, parameters.top_k, chunks, scratch);
  if (!(parameters.top_p >= 1)) {
    const float floor = parameters.top_p_first ? -INFINITY : by_k;
    by_p = nucleus(row, stats.m, temperature, parameters.top_p, floor, chunks, scratch);
  }
  return std::max(by_k, by_p);
}

}  // namespace dlmk
