// score_hidden: top-k and top-p of rows that come in pieces. Held entries settle them where they can; where they cannot, a descent
// through the values does, eight bits a pass over the logits, whose bins add up over shards. Exact either way.
#include <numeric>

#include "cpu/hidden.h"

namespace dlmk {
namespace {

constexpr int kLevels = 4;

float value_of(uint32_t ordered) { return bits_float((ordered & 0x80000000u) ? ordered & 0x7fffffffu : ~ordered); }

}  // namespace

bool HiddenRows::all_held(int64_t r, float lowest) const {
  return held_count_[r] < a_.held_size || lowest > held_[(r + 1) * a_.held_size - 1].value;
}

int64_t HiddenRows::mass(int64_t r, const Plan& p, float x) const {
  const float y = (x - maximum(r)) / p.temperature;
  return y >= -kNoMass ? int64_t(portable_exp(y) * kMassScale) : 0;
}

// The boundaries of rows whose held entries tell them; the number of rows to be searched.
int64_t HiddenRows::filter() const {
  int64_t searching = 0;
  for (int64_t r = 0; r < a_.R; ++r) {
    todo_[r] = kSettled;
    const Plan p = plan(r);
    if (!p.filtered || !finite(r)) continue;
    Held* list = held_ + r * a_.held_size;
    std::sort(list, list + held_count_[r],
              [](const Held& a, const Held& b) { return a.value > b.value || (a.value == b.value && a.index < b.index); });
    const int64_t k = reinterpret_cast<const int64_t*>(a_.top_k)[r];
    search_[r] = {0, double(k), -INFINITY, -INFINITY, 0, 0};
    if (k <= 0 || k >= a_.V)
      boundary_of_k(r, p, -INFINITY);
    else if (k <= held_count_[r])
      boundary_of_k(r, p, list[k - 1].value);
    else if (held_count_[r] < a_.held_size)
      boundary_of_k(r, p, -INFINITY);  // fewer than k entries are above -inf
    else
      todo_[r] = kSearchK;
    searching += todo_[r] == kSearchK || todo_[r] == kSearchP;
  }
  return searching;
}

// What follows when top-k keeps the entries >= by_k.
void HiddenRows::boundary_of_k(int64_t r, const Plan& p, float by_k) const {
  const float top_p = reinterpret_cast<const float*>(a_.top_p)[r];
  Search& search = search_[r] = {0, 0, a_.top_p_first ? -INFINITY : by_k, by_k, 0, 0};
  if (top_p >= 1) return keep(r, -INFINITY);
  const Held* list = held_ + r * a_.held_size;
  if (all_held(r, search.floor) || !mass(r, p, list[a_.held_size - 1].value)) {
    int64_t total = 0;
    for (int32_t i = 0; i < held_count_[r] && list[i].value >= search.floor; ++i) total += mass(r, p, list[i].value);
    search.limit = double(top_p) * double(total);
    if (nucleus_of_held(r, p)) return;
  }
  todo_[r] = kSearchP;
}

// Ends the search if the boundary of the nucleus is among the held entries.
bool HiddenRows::nucleus_of_held(int64_t r, const Plan& p) const {
  const Held* list = held_ + r * a_.held_size;
  const double limit = search_[r].limit;
  int64_t above = 0;
  float lowest = maximum(r);
  for (int32_t i = 0; double(above) < limit;) {
    if (i == held_count_[r] || !all_held(r, list[i].value)) return false;
    lowest = list[i].value;
    for (; i < held_count_[r] && list[i].value == lowest; ++i) above += mass(r, p, lowest);
  }
  keep(r, lowest);
  return true;
}

void HiddenRows::keep(int64_t r, float by_p) const {
  keep_[r] = std::max(search_[r].by_k, by_p);
  todo_[r] = all_held(r, keep_[r]) ? kSettled : kReadAgain;
}

void HiddenRows::add_weights(int64_t r, const Row& row, float* buffer) const {
  const Plan p = plan(r);
  const Search& search = search_[r];
  const uint32_t shift = 24 - 8 * search.level, fixed = search.level ? ~0u << (32 - 8 * search.level) : 0;
  int64_t* bins = bins_ + r * kBins;
  for (int64_t c = 0; c < row.chunks(); ++c) {
    const float* x = row.view(c, buffer);
    for (int64_t i = 0; i < row.size(c); ++i) {
      const uint32_t ordered = ordered_bits(x[i]);
      if (!(x[i] >= search.floor) || (ordered & fixed) != search.prefix) continue;
      bins[(ordered >> shift) & (kBins - 1)] += todo_[r] == kSearchK ? 1 : mass(r, p, x[i]);
    }
  }
}

// One group of eight bits further; the number of rows that are still searched.
int64_t HiddenRows::descend() const {
  int64_t searching = 0;
  for (int64_t r = 0; r < a_.R; ++r) {
    if (todo_[r] != kSearchK && todo_[r] != kSearchP) continue;
    const Plan p = plan(r);
    Search& search = search_[r];
    int64_t* bins = bins_ + r * kBins;
    if (todo_[r] == kSearchP && search.level == 0) {
      const int64_t total = std::accumulate(bins, bins + kBins, int64_t(0));
      search.limit = double(reinterpret_cast<const float*>(a_.top_p)[r]) * double(total);
    }
    if (!(todo_[r] == kSearchP && search.level == 0 && nucleus_of_held(r, p))) {
      // The lowest group that begins below the limit; the highest one if none does.
      int chosen = -1;
      int64_t above = search.above;
      for (int group = kBins - 1; group >= 0; --group) {
        if (!bins[group]) continue;
        if (chosen >= 0 && !(double(above) < search.limit)) break;
        chosen = group;
        search.above = above;
        above += bins[group];
      }
      search.prefix |= uint32_t(chosen) << (24 - 8 * search.level);
      if (++search.level == kLevels) {
        const float boundary = value_of(search.prefix);
        if (todo_[r] == kSearchK)
          boundary_of_k(r, p, boundary);
        else
          keep(r, boundary);
      }
    }
    std::fill(bins, bins + kBins, 0);
    searching += todo_[r] == kSearchK || todo_[r] == kSearchP;
  }
  return searching;
}

}  // namespace dlmk
