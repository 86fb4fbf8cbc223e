// top-k and top-p as one number: both keep "everything from some logit up", whole groups of equal logits included.
#include <functional>
#include <utility>

#include "cpu/row.h"

namespace dlmk {
namespace {

constexpr double kMassScale = 68719476736.0;  // 2^36: 2^26 tokens of mass up to 2^36 still sum within int64
constexpr float kNoMass = 26.0f;              // e^-26 2^36 < 1: such a token has mass 0
constexpr int kBinShift = 20, kBins = 1 << (32 - kBinShift);

// scratch.values: the row's entries >= lowest.
void collect(const Row& row, const ChunkStats* chunks, float lowest, Scratch& scratch) {
  std::vector<float>& values = scratch.values;
  values.clear();
  for (int64_t c = 0; c < row.chunks(); ++c) {
    if (chunks[c].max < lowest) continue;
    float max;
    const float* x = row.view(c, scratch.buffer.data(), &max);
    const size_t before = values.size();
    values.resize(before + size_t(row.size(c)));
    values.resize(before + size_t(kernels().collect(x, row.size(c), lowest, values.data() + before)));
  }
}

float kth_largest(const Row& row, int64_t k, const ChunkStats* chunks, Scratch& scratch) {
  float lowest = -INFINITY;
  if (k <= row.chunks()) {  // k chunk maxima are k entries, so the k-th largest entry is not below the k-th largest of them
    std::vector<float>& maxima = scratch.values;
    maxima.clear();
    for (int64_t c = 0; c < row.chunks(); ++c) maxima.push_back(chunks[c].max);
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
  collect(row, chunks, std::max(floor, m - kNoMass * temperature), scratch);
  const std::vector<float>& values = scratch.values;
  std::vector<int64_t>& masses = scratch.masses;
  masses.resize(values.size());
  std::vector<int64_t> bins(kBins, 0);
  int64_t total = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const float scaled = (values[i] - m) / temperature;
    masses[i] = int64_t(double(portable_exp(scaled)) * kMassScale);
    bins[ordered_bits(values[i]) >> kBinShift] += masses[i];
    total += masses[i];
  }
  const double limit = double(p) * double(total);
  int64_t above = 0;
  int bin = kBins - 1;
  while (bin > 0 && double(above + bins[size_t(bin)]) < limit) above += bins[size_t(bin--)];
  std::vector<std::pair<float, int64_t>> inside;  // the bin in which the boundary lies
  for (size_t i = 0; i < values.size(); ++i)
    if (int(ordered_bits(values[i]) >> kBinShift) == bin) inside.emplace_back(values[i], masses[i]);
  std::sort(inside.begin(), inside.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  float lowest = m;
  for (size_t i = 0; i < inside.size() && double(above) < limit;) {
    lowest = inside[i].first;
    for (; i < inside.size() && inside[i].first == lowest; ++i) above += inside[i].second;
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
