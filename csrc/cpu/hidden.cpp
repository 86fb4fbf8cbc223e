// score_hidden: the merge of parts of a vocabulary, the last pass over its pieces and the results.
#include "cpu/hidden.h"

namespace dlmk {
namespace {

template <class T>
T* out(int64_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

float noise(const DrawKey& key, int64_t index) {
  return gumbel_from_word(keyed_words(key, kGumbelStream, uint32_t(index >> 2)).w[index & 3]);
}

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

Aligned aligned(const float* x, int64_t n, int64_t first, float* buffer) {
  const int64_t before = first & 3;
  if (!before) return {x, n, first};
  std::fill(buffer, buffer + before, -INFINITY);
  std::copy(x, x + n, buffer + before);
  return {buffer, n + before, first - before};
}

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
  const float t = address<float>(a_.temperature)[r];
  const int64_t k = address<int64_t>(a_.top_k)[r];
  Plan p;
  p.sampled = t > 0;
  p.temperature = p.sampled ? t : 1;
  const bool filters = (k > 0 && k < a_.V) || !(address<float>(a_.top_p)[r] >= 1);
  p.filtered = filters && (p.sampled || a_.sampling_confidence);
  p.reshaped = a_.sampling_confidence && (filters || p.temperature != 1);
  p.scale = p.reshaped ? p.temperature : 1;
  p.key = {address<int64_t>(a_.seed)[r], address<int64_t>(a_.row_ids)[r], address<int64_t>(a_.step)[r]};
  return p;
}

DlmkHiddenNeeds HiddenRows::needs() const {
  DlmkHiddenNeeds all{};
  for (int64_t r = 0; r < a_.R; ++r) {
    const Plan p = plan(r);
    all.drawn |= p.sampled || p.filtered;
    if (!p.filtered) continue;
    const int64_t k = address<int64_t>(a_.top_k)[r];
    all.filtered = 1;
    if (k < a_.V) all.top_k = std::max(all.top_k, k);
    all.top_p |= !(address<float>(a_.top_p)[r] >= 1);
  }
  return all;
}

void HiddenRows::begin() const {
  for (int64_t r = 0; r < a_.R; ++r) {
    part_[r] = {-INFINITY, -1, -INFINITY, 0, 0};
    held_count_[r] = todo_[r] = 0;
    if (contenders_) contenders_[r].count = 0;
  }
  if (bins_) std::fill(bins_, bins_ + a_.R * kBins, 0);
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
  over_rows(a_, piece, 1, [&](int64_t r, const Row& row, PieceScratch& scratch) {
    if (todo_[r] == kSearchK || todo_[r] == kSearchP) add_weights(r, row, scratch.view());
  });
}

void HiddenRows::draw(const DlmkPiece& piece) const {
  over_rows(a_, piece, 1, [&](int64_t r, const Row& row, PieceScratch& scratch) {
    if (todo_[r] != kReadAgain) return;
    const Plan p = plan(r);
    Winner& winner = winner_[r];
    const Sampling sampling = {maximum(r), p.temperature, keep_[r], p.key};
    for (int64_t c = 0; c < row.chunks(); ++c) {
      float max, s, t;
      const float* x = row.view(c, scratch.view(), &max);
      const int64_t n = row.size(c), first = piece.first + c * kChunk;
      if (max < sampling.keep || max == -INFINITY) continue;
      if (p.sampled) {
        Best best = {float(winner.value), int64_t(winner.index)};
        const Aligned all = aligned(x, n, first, scratch.copy());
        kernels().draw(all.x, all.n, all.first, max, sampling, &best);
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

int dlmk_hidden_plan(const DlmkHiddenArgs* args, DlmkHiddenNeeds* needs) {
  return guarded(args, [&](const dlmk::HiddenRows& rows) { *needs = rows.needs(); });
}

int dlmk_hidden_begin(const DlmkHiddenArgs* args) {
  return guarded(args, [&](const dlmk::HiddenRows& rows) { rows.begin(); });
}

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
