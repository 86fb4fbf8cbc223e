// score_hidden: the first pass over the pieces of a vocabulary.
#include "cpu/hidden.h"

namespace dlmk {
namespace {

// A row this long is worth sharing among threads that have no row of their own.
constexpr int64_t kShared = 16 * kChunk;

bool higher(const Held& a, const Held& b) { return a.value > b.value || (a.value == b.value && a.index < b.index); }

}  // namespace

void HiddenRows::read(const DlmkPiece& piece) const {
  const int sharing = a_.R < a_.threads && piece.n >= kShared ? int(a_.threads) : 1;
  over_rows(a_, piece, sharing, [&](int64_t r, const Row& row, PieceScratch& scratch) {
    const Plan p = plan(r);
    const int64_t n = row.chunks();
    scratch.chunks.resize(size_t(n));
    parallel(sharing, [&](int thread, int team) {
      survey(r, p, row, n * thread / team, n * (thread + 1) / team, thread, scratch);
    });
    take(r, p, row, piece.first, scratch);
    if (!finite(r) || !(p.filtered || p.sampled)) return;
    // The highest chunks first: what they leave for the others is little.
    highest_first(scratch.chunks.data(), scratch.order);
    if (p.filtered)
      hold(r, row, piece.first, scratch);
    else
      contend(r, p, row, piece.first, sharing, scratch);
  });
}

// The maxima of chunks [begin, end), and the sums of those that may count.
void HiddenRows::survey(int64_t r, const Plan& p, const Row& row, int64_t begin, int64_t end, int thread,
                        PieceScratch& scratch) const {
  double highest = part_[r].m;
  for (int64_t c = begin; c < end; ++c) {
    ChunkStats& chunk = scratch.chunks[size_t(c)];
    const float* x = row.view(c, scratch.view(thread), &chunk.max);
    chunk.s = chunk.t = 0;
    if (!std::isfinite(chunk.max)) continue;
    highest = std::max(highest, double(chunk.max));
    if ((p.reshaped && p.filtered) || !((double(chunk.max) - highest) / p.scale >= -kNegligible)) continue;
    if (p.scale == 1) {
      const bool last = c + 1 == row.chunks();
      const char* ahead = last ? scratch.next : row.logits + (c + 1) * kChunk * row.width();
      const int64_t bytes = ahead ? row.size(last ? 0 : c + 1) * row.width() : 0;
      kernels().sums(x, row.size(c), chunk.max, ahead, bytes, &chunk.s, &chunk.t);
    } else {
      kernels().kept_sums(x, row.size(c), {chunk.max, p.scale, -INFINITY, {}}, &chunk.s, &chunk.t);
    }
  }
}

// Chunks into the row's part, in their order, up to a NaN.
void HiddenRows::take(int64_t r, const Plan& p, const Row& row, int64_t first, PieceScratch& scratch) const {
  Part& part = part_[r];
  scratch.order.clear();
  for (int64_t c = 0; c < row.chunks() && part.m == part.m; ++c) {
    const auto [max, s, t] = scratch.chunks[size_t(c)];
    if (max == -INFINITY) continue;
    scratch.order.push_back(c);
    const int64_t n = row.size(c);
    Part here{max, double(first + c * kChunk), -INFINITY, s, t};
    // The index and second of a finite chunk that is not above the maximum are not looked at.
    const float* x = !(max <= part.m) || max == INFINITY ? row.view(c, scratch.view()) : nullptr;
    if (max != max) {
      here.index += double(std::find_if(x, x + n, [](float v) { return v != v; }) - x);
    } else if (max == INFINITY) {
      here.index += double(std::find(x, x + n, max) - x);
      here.s = double(std::count(x, x + n, max));
    } else if (x) {
      const int64_t i = kernels().find(x, n, max);
      here.index += double(i);
      here.second = kernels().maximum_without(x, n, i);
    }
    absorb(part, here, p.scale);
  }
}

// Adds what may win of a piece to the contenders.
void HiddenRows::contend(int64_t r, const Plan& p, const Row& row, int64_t first, int sharing, PieceScratch& scratch) const {
  Contenders& all = contenders_[r];
  const Sampling sampling = {maximum(r), p.temperature, -INFINITY, p.key};
  const auto value = [&](const Contender& c) { return (c.x - sampling.m) / p.temperature + c.noise; };
  const auto floor_of = [&](const Contenders& some, float floor) {
    for (int32_t i = 0; i < some.count; ++i) floor = std::max(floor, value(some.list[i]) - kSlack);
    return floor;
  };
  for (Contenders& of_thread : scratch.contenders) of_thread.count = 0;
  if (all.count < 0) return;
  const float of_maximum = noise(p.key, int64_t(part_[r].index));  // a good start: little is above it
  const float before = floor_of(all, of_maximum - kSlack);
  parallel(sharing, [&](int thread, int team) {
    Contenders& own = thread ? scratch.contenders[size_t(thread)] : all;
    for (size_t i = size_t(thread); i < scratch.order.size() && own.count >= 0; i += size_t(team)) {
      const int64_t c = scratch.order[i];
      const float max = scratch.chunks[size_t(c)].max, floor = floor_of(own, before);
      if ((max - sampling.m) / p.temperature + kLargestGumbel < floor) break;  // nor does a lower chunk
      const Aligned x = aligned(row.view(c, scratch.view(thread)), row.size(c), first + c * kChunk, scratch.copy(thread));
      kernels().contend(x.x, x.n, x.first, max, sampling, floor, &own);
    }
  });
  for (int thread = 1; thread < sharing; ++thread) {
    const Contenders& own = scratch.contenders[size_t(thread)];
    const float floor = floor_of(own, floor_of(all, before));
    std::vector<Contender> both(all.list, all.list + std::max(all.count, 0));
    both.insert(both.end(), own.list, own.list + std::max(own.count, 0));
    both.erase(std::remove_if(both.begin(), both.end(), [&](const Contender& c) { return value(c) < floor; }), both.end());
    const bool room = all.count >= 0 && own.count >= 0 && both.size() <= size_t(kContenders);
    all.count = room ? int32_t(both.size()) : -1;
    if (room) std::copy(both.begin(), both.end(), all.list);
  }
}

// The highest entries of a piece and of those held before. Within the piece the lists are cut down only now and then.
void HiddenRows::hold(int64_t r, const Row& row, int64_t first, PieceScratch& scratch) const {
  constexpr int64_t kGroup = 64;
  const size_t room = size_t(a_.held_size);
  std::vector<Held>& all = scratch.held;
  all.assign(held_ + r * a_.held_size, held_ + r * a_.held_size + held_count_[r]);
  float bound = all.size() == room ? all.back().value : -INFINITY;
  for (int64_t c : scratch.order) {
    if (!(scratch.chunks[size_t(c)].max > bound)) break;
    const float* x = row.view(c, scratch.view());
    for (int64_t i = 0, end; i < row.size(c); i = end) {
      end = std::min(i + kGroup, row.size(c));
      if (!(kernels().maximum(x + i, end - i) > bound)) continue;
      for (int64_t j = i; j < end; ++j)
        if (x[j] > bound) all.push_back({x[j], int32_t(first + c * kChunk + j)});
    }
    if (all.size() >= 2 * room) {
      cut(all);
      bound = all.back().value;
    }
  }
  put_held(r, all);
}

// The highest of `all`; if they fill the room for held entries, the lowest of them is the last.
void HiddenRows::cut(std::vector<Held>& all) const {
  if (int64_t(all.size()) < a_.held_size) return;
  std::nth_element(all.begin(), all.begin() + (a_.held_size - 1), all.end(), higher);
  all.resize(size_t(a_.held_size));
}

void HiddenRows::put_held(int64_t r, std::vector<Held>& all) const {
  cut(all);
  std::copy(all.begin(), all.end(), held_ + r * a_.held_size);
  held_count_[r] = int32_t(all.size());
}

}  // namespace dlmk
