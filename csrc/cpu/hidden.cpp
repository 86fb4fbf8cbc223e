// score_hidden: the first pass over the pieces of a vocabulary, the merge of parts, the last pass and the results.
#include "cpu/hidden.h"

#include "cpu/arguments.h"
#include "cpu/parallel.h"

namespace dlmk {
namespace {

// Noised values are compared while their roundings may still change: three of at most 2^-24 x 26 each, twice, with room.
constexpr float kSlack = 1e-4f;

template <class T>
const T* in(int64_t address) {
  return reinterpret_cast<const T*>(address);
}

template <class T>
T* out(int64_t address) {
  return reinterpret_cast<T*>(address);
}

// `b` into `a`. Symmetric in the indices, so that shards may come in any order.
void absorb(Part& a, const Part& b, double scale) {
  const bool a_nan = a.m != a.m, b_nan = b.m != b.m;
  if (a_nan || b_nan) {
    if (!a_nan || (b_nan && b.index < a.index)) a = b;
    return;
  }
  if (b.index < 0) return;
  if (a.index < 0) {
    a = b;
    return;
  }
  const bool swap = b.m > a.m || (b.m == a.m && b.index < a.index);
  const Part high = swap ? b : a, low = swap ? a : b;
  a = high;
  a.second = std::max(high.second, low.m);
  if (high.m == INFINITY) {
    if (low.m == INFINITY) a.s += low.s;
    return;
  }
  const double d = (low.m - high.m) / scale;
  if (d < -kNegligible) return;
  const double e = d == 0 ? 1 : std::exp(d);
  a.s += e * low.s;
  a.t += e * (low.t + d * low.s);
}

bool higher(const Held& a, const Held& b) { return a.value > b.value || (a.value == b.value && a.index < b.index); }

float noise(const DrawKey& key, int64_t index) {
  return gumbel_from_word(keyed_words(key, kGumbelStream, uint32_t(index >> 2)).w[index & 3]);
}

// Draws for entries that may begin anywhere: the kernels take whole blocks of four. `buffer` holds kChunk + 4 floats.
void draw_from(const float* x, int64_t n, int64_t first, float max, const Sampling& sampling, float* buffer, Best* best) {
  const int64_t before = first & 3;
  if (before) {
    std::fill(buffer, buffer + before, -INFINITY);
    std::copy(x, x + n, buffer + before);
    x = buffer;
  }
  kernels().draw(x, n + before, first - before, max, sampling, best);
}

}  // namespace

struct PieceScratch {
  std::vector<float> view = std::vector<float>(kChunk), copy = std::vector<float>(2 * (kChunk + 4));
  std::vector<float> maxima;
  std::vector<int64_t> order;
  std::vector<Held> held;
};

namespace {

// Rows of a piece over threads: body(r, its logits, scratch).
template <class Body>
void over_rows(const DlmkHiddenArgs& a, const DlmkPiece& piece, Body body) {
  // In the piece's own indices.
  std::vector<int64_t> suppressed;
  for (const int64_t *id = in<int64_t>(a.suppress_ids), *end = id + a.suppress_count; id != end; ++id)
    if (*id >= piece.first && *id < piece.first + piece.n) suppressed.push_back(*id - piece.first);
  const int64_t work = a.R * piece.n / 16384 + 1;
  parallel(int(std::min<int64_t>({a.threads, a.R, work})), [&](int thread, int team) {
    PieceScratch scratch;
    for (int64_t r = a.R * thread / team; r < a.R * (thread + 1) / team; ++r) {
      Row row{nullptr, piece.dtype, piece.n, &suppressed};
      row.logits = in<char>(piece.logits) + r * piece.stride * row.width();
      body(r, row, scratch);
    }
  });
}

}  // namespace

HiddenRows::HiddenRows(const DlmkHiddenArgs& args)
    : a_(args),
      part_(out<Part>(args.parts)),
      held_(out<Held>(args.held)),
      held_count_(out<int32_t>(args.held_count)),
      todo_(out<int32_t>(args.todo)),
      contenders_(out<Contenders>(args.contenders)),
      keep_(out<float>(args.keep)),
      search_(out<Search>(args.search)),
      bins_(out<int64_t>(args.bins)),
      winner_(out<Winner>(args.winners)) {
  static_assert(sizeof(Part) == 40 && sizeof(Held) == 8 && sizeof(Contenders) == 100 && sizeof(Search) == 32 &&
                    sizeof(Winner) == 40,
                "the caller allocates these");
}

HiddenRows::Plan HiddenRows::plan(int64_t r) const {
  const float t = in<float>(a_.temperature)[r];
  const int64_t k = in<int64_t>(a_.top_k)[r];
  Plan p;
  p.sampled = t > 0;
  p.temperature = p.sampled ? t : 1;
  const bool filters = (k > 0 && k < a_.V) || !(in<float>(a_.top_p)[r] >= 1);
  p.filtered = filters && (p.sampled || a_.sampling_confidence);
  p.reshaped = a_.sampling_confidence && (filters || p.temperature != 1);
  p.scale = p.reshaped ? p.temperature : 1;
  p.key = {in<int64_t>(a_.seed)[r], in<int64_t>(a_.row_ids)[r], in<int64_t>(a_.step)[r]};
  return p;
}

void HiddenRows::read(const DlmkPiece& piece) const {
  over_rows(a_, piece, [&](int64_t r, const Row& row, PieceScratch& scratch) {
    const Plan p = plan(r);
    Part& part = part_[r];
    scratch.order.clear();
    scratch.maxima.resize(size_t(row.chunks()));
    for (int64_t c = 0; c < row.chunks() && part.m == part.m; ++c) {
      float &max = scratch.maxima[size_t(c)], s = 0, t = 0;
      const float* x = row.view(c, scratch.view.data(), &max);
      const int64_t n = row.size(c), first = piece.first + c * kChunk;
      if (max == -INFINITY) continue;
      scratch.order.push_back(c);
      Part here{max, double(first), -INFINITY, 0, 0};
      if (max != max) {
        here.index += double(std::find_if(x, x + n, [](float v) { return v != v; }) - x);
      } else if (max == INFINITY) {
        here.index += double(std::find(x, x + n, max) - x);
        here.s = double(std::count(x, x + n, max));
      } else {
        if (!(max <= part.m)) {  // the index and second of a chunk below the maximum are not looked at
          const int64_t i = kernels().find(x, n, max);
          here.index += double(i);
          here.second = kernels().maximum_without(x, n, i);
        }
        if (!(p.reshaped && p.filtered) && (double(max) - part.m) / p.scale >= -kNegligible) {
          if (p.scale == 1)
            kernels().sums(x, n, max, nullptr, 0, &s, &t);
          else
            kernels().kept_sums(x, n, {max, p.scale, -INFINITY, {}}, &s, &t);
          here.s = s;
          here.t = t;
        }
      }
      absorb(part, here, p.scale);
    }
    if (!finite(r) || !(p.filtered || p.sampled)) return;
    // The highest chunks first: what they leave for the others is little.
    const auto higher_chunk = [&](int64_t a, int64_t b) { return scratch.maxima[size_t(a)] > scratch.maxima[size_t(b)]; };
    std::stable_sort(scratch.order.begin(), scratch.order.end(), higher_chunk);
    if (p.filtered) {
      hold(r, row, piece.first, scratch);
    } else {
      for (int64_t c : scratch.order) {
        const float* x = row.view(c, scratch.view.data());
        if (!contend(r, p, x, row.size(c), piece.first + c * kChunk, scratch.maxima[size_t(c)], scratch.copy.data())) break;
      }
    }
  });
}

// Adds what may win of one chunk to the contenders; false if nothing of it, or of a lower chunk, may.
bool HiddenRows::contend(int64_t r, const Plan& p, const float* x, int64_t n, int64_t first, float max, float* buffer) const {
  Contenders& all = contenders_[r];
  if (all.count < 0) return false;
  const float m = maximum(r);
  const auto value = [&](const Contender& c) { return (c.x - m) / p.temperature + c.noise; };
  float floor = -INFINITY;
  for (int i = 0; i < all.count; ++i) floor = std::max(floor, value(all.list[i]) - kSlack);
  const Sampling sampling = {m, p.temperature, -INFINITY, p.key};
  float* copy = nullptr;
  if ((max - m) / p.temperature + kLargestGumbel < floor) return false;
  for (;;) {
    Best best = {floor, INT64_MAX};  // an equal value comes before it
    draw_from(x, n, first, max, sampling, buffer, &best);
    if (best.index == INT64_MAX) return true;
    const int64_t i = best.index - first;
    const Contender found = {x[i], noise(p.key, best.index), int32_t(best.index)};
    floor = std::max(floor, best.value - kSlack);
    all.count = int32_t(std::remove_if(all.list, all.list + all.count, [&](const Contender& c) { return value(c) < floor; }) -
                        all.list);
    if (all.count == kContenders) {
      all.count = -1;
      return false;
    }
    all.list[all.count++] = found;
    if (!copy) {
      copy = buffer + kChunk + 4;
      std::copy(x, x + n, copy);
      x = copy;
    }
    copy[i] = -INFINITY;  // and who is next
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
    if (!(scratch.maxima[size_t(c)] > bound)) break;
    const float* x = row.view(c, scratch.view.data());
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

void HiddenRows::merge(const Part* parts, const Held* held, const int32_t* held_count) const {
  std::vector<Held> all;
  for (int64_t r = 0; r < a_.R; ++r) {
    absorb(part_[r], parts[r], plan(r).scale);
    if (!a_.held_size || !held_count[r]) continue;
    const Held *mine = held_ + r * a_.held_size, *other = held + r * a_.held_size;
    all.assign(mine, mine + held_count_[r]);
    all.insert(all.end(), other, other + held_count[r]);
    put_held(r, all);
  }
}

// Winners of the rows that need no further pass; the number of those that do.
int64_t HiddenRows::settle() const {
  int64_t unsettled = 0;
  for (int64_t r = 0; r < a_.R; ++r) {
    Winner& winner = winner_[r] = {-INFINITY, kNobody, 0, 0, 0};
    const Plan p = plan(r);
    if (!finite(r)) continue;
    const float m = maximum(r);
    const auto offer = [&](float x, float noise, int64_t index) {
      const float value = (x - m) / p.temperature + noise;
      if (value > winner.value || (value == winner.value && double(index) < winner.index))
        winner = {value, double(index), x, winner.s, winner.t};
    };
    if (p.filtered && todo_[r] == kSettled) {
      const Held* list = held_ + r * a_.held_size;
      for (int32_t i = 0; i < held_count_[r] && list[i].value >= keep_[r]; ++i) {
        const double y = (double(list[i].value) - m) / p.temperature, e = std::exp(y);
        if (p.sampled) offer(list[i].value, noise(p.key, list[i].index), list[i].index);
        winner.s += e;
        if (e > 0) winner.t += e * y;
      }
    } else if (p.sampled && !p.filtered) {
      const Contenders& all = contenders_[r];
      for (int i = 0; i < all.count; ++i) offer(all.list[i].x, all.list[i].noise, all.list[i].index);
      if (all.count < 0) {
        todo_[r] = kReadAgain;
        keep_[r] = -INFINITY;
      }
    }
    unsettled += todo_[r] == kReadAgain;
  }
  return unsettled;
}

void HiddenRows::weigh(const DlmkPiece& piece) const {
  over_rows(a_, piece, [&](int64_t r, const Row& row, PieceScratch& scratch) {
    if (todo_[r] == kSearchK || todo_[r] == kSearchP) add_weights(r, row, scratch.view.data());
  });
}

void HiddenRows::draw(const DlmkPiece& piece) const {
  over_rows(a_, piece, [&](int64_t r, const Row& row, PieceScratch& scratch) {
    if (todo_[r] != kReadAgain) return;
    const Plan p = plan(r);
    Winner& winner = winner_[r];
    const Sampling sampling = {maximum(r), p.temperature, keep_[r], p.key};
    for (int64_t c = 0; c < row.chunks(); ++c) {
      float max, s, t;
      const float* x = row.view(c, scratch.view.data(), &max);
      const int64_t n = row.size(c), first = piece.first + c * kChunk;
      if (max < sampling.keep || max == -INFINITY) continue;
      if (p.sampled) {
        Best best = {float(winner.value), int64_t(winner.index)};
        draw_from(x, n, first, max, sampling, scratch.copy.data(), &best);
        if (double(best.index) != winner.index) winner = {best.value, double(best.index), x[best.index - first], winner.s, winner.t};
      }
      if (p.reshaped && p.filtered) {
        kernels().kept_sums(x, n, sampling, &s, &t);
        winner.s += s;
        winner.t += t;
      }
    }
  });
}

// Of other shards. What was settled from held entries is the same in all of them; what was read again adds up.
void HiddenRows::merge_winners(const Winner* others) const {
  for (int64_t r = 0; r < a_.R; ++r) {
    Winner& mine = winner_[r];
    const Winner& other = others[r];
    const bool wins = other.value > mine.value || (other.value == mine.value && other.index < mine.index);
    const bool adds = plan(r).filtered && todo_[r] == kReadAgain;
    const double s = mine.s + (adds ? other.s : 0), t = mine.t + (adds ? other.t : 0);
    if (wins) mine = other;
    mine.s = s;
    mine.t = t;
  }
}

void HiddenRows::finish() const {
  const auto put = [&](int64_t r, int64_t token, double confidence, double margin, double entropy, double logsumexp) {
    out<int64_t>(a_.token)[r] = token;
    out<float>(a_.confidence)[r] = float(confidence);
    out<float>(a_.margin)[r] = float(margin);
    out<float>(a_.entropy)[r] = float(entropy);
    out<float>(a_.logsumexp)[r] = float(logsumexp);
  };
  for (int64_t r = 0; r < a_.R; ++r) {
    const Part& part = part_[r];
    const Winner& winner = winner_[r];
    const Plan p = plan(r);
    if (part.m != part.m) {
      put(r, int64_t(part.index), NAN, NAN, NAN, NAN);
    } else if (part.index < 0) {
      put(r, 0, 0, 0, 0, -INFINITY);
    } else if (part.m == INFINITY) {
      put(r, int64_t(part.index), 1 / part.s, part.s == 1, std::log(part.s), INFINITY);
    } else {
      const double logit = p.sampled ? winner.logit : part.m;
      const bool of_kept = p.reshaped && p.filtered;
      const double s = of_kept ? winner.s : part.s, t = of_kept ? winner.t : part.t;
      const bool second_kept = !of_kept || part.second >= keep_[r];
      const double second = second_kept ? (part.second - part.m) / p.scale : -INFINITY;
      put(r, int64_t(p.sampled ? winner.index : part.index), std::exp((logit - part.m) / p.scale) / s,
          (1 - std::exp(second)) / s, std::log(s) - t / s, part.m / p.scale + std::log(s));
    }
  }
}

}  // namespace dlmk

namespace {

template <class Body>
int guarded(const DlmkHiddenArgs* args, Body body) {
  return dlmk::status_of([&] { body(dlmk::HiddenRows(*args)); });
}

}  // namespace

int dlmk_hidden_read(const DlmkHiddenArgs* args, const DlmkPiece* piece) {
  return guarded(args, [&](const dlmk::HiddenRows& rows) { rows.read(*piece); });
}

int dlmk_hidden_merge(const DlmkHiddenArgs* args, const void* parts, const void* held, const int32_t* held_count) {
  return guarded(args, [&](const dlmk::HiddenRows& rows) {
    rows.merge(static_cast<const dlmk::Part*>(parts), static_cast<const dlmk::Held*>(held), held_count);
  });
}

int dlmk_hidden_filter(const DlmkHiddenArgs* args, int64_t* searching) {
  return guarded(args, [&](const dlmk::HiddenRows& rows) { *searching = rows.filter(); });
}

int dlmk_hidden_weigh(const DlmkHiddenArgs* args, const DlmkPiece* piece) {
  return guarded(args, [&](const dlmk::HiddenRows& rows) { rows.weigh(*piece); });
}

int dlmk_hidden_descend(const DlmkHiddenArgs* args, int64_t* searching) {
  return guarded(args, [&](const dlmk::HiddenRows& rows) { *searching = rows.descend(); });
}

int dlmk_hidden_settle(const DlmkHiddenArgs* args, int64_t* unsettled) {
  return guarded(args, [&](const dlmk::HiddenRows& rows) { *unsettled = rows.settle(); });
}

int dlmk_hidden_draw(const DlmkHiddenArgs* args, const DlmkPiece* piece) {
  return guarded(args, [&](const dlmk::HiddenRows& rows) { rows.draw(*piece); });
}

int dlmk_hidden_merge_winners(const DlmkHiddenArgs* args, const void* winners) {
  return guarded(args, [&](const dlmk::HiddenRows& rows) { rows.merge_winners(static_cast<const dlmk::Winner*>(winners)); });
}

int dlmk_hidden_finish(const DlmkHiddenArgs* args) {
  return guarded(args, [&](const dlmk::HiddenRows& rows) { rows.finish(); });
}
