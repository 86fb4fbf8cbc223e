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

// The lowest value v whose strictly greater entries (among those >= floor) have less than p of the mass.
float nucleus(const Row& row, float m, float temperature, float p, float floor, const ChunkStats* chunks, Scratch& scratch) {
  const auto scaled = [&](float x) { return (x - m) / temperature; };
  const auto has_mass = [&](float x) { return x >= floor && scaled(x) >= -kNoMass; };
  const Sampling kept = {m, temperature, floor, {}};
  std::vector<int64_t> bins(kMassBins + 1, 0);
  for (int64_t c = 0; c < row.chunks(); ++c)
    if (has_mass(chunks[c].max)) kernels().masses(row.view(c, scratch.buffer.data()), row.size(c), kept, bins.data());
  const int64_t total = std::accumulate(bins.begin(), bins.end(), int64_t(0));
  const double limit = double(p) * double(total);

  // The boundary lies in the bin with which the limit is reached.
  int64_t above = 0;
  int bin = 0;
  while (bin < kMassBins && double(above + bins[size_t(bin)]) < limit) above += bins[size_t(bin++)];
  std::vector<float>& inside = scratch.values;
  size_t found = 0;
  for (int64_t c = 0; c < row.chunks(); ++c) {
    if (!has_mass(chunks[c].max) || scaled(chunks[c].max) * (-kMassBins / kNoMass) >= float(bin + 1)) continue;
    if (inside.size() < found + kChunk) inside.resize(2 * found + kChunk);
    const float* x = row.view(c, scratch.buffer.data());
    found += size_t(kernels().collect_bin(x, row.size(c), kept, bin, inside.data() + found));
  }
  inside.resize(found);
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
