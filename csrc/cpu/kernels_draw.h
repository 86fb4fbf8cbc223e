// The loops that draw: Gumbel noise over what may win. Part of kernels_impl.h.

// Words up to this one may beat `best`: u <= -log(1 - u) = e^-g, so a draw of at least `gap` needs u <= e^-gap.
// The slack covers the roundings of the portable logarithm and of the sums (below 1e-5 together).
static inline uint32_t largest_word(float bound, float best) {
  double limit = exp(double(bound) - double(best)) * 1.0001 * 4294967296.0 + 2.0;
  return limit >= 4294967295.0 ? 0xffffffffu : uint32_t(limit);
}

// The same to the next power of two, without an exponential.
static inline uint32_t power_of_two_word(float bound, float best) {
  const float halvings = (best - bound - 1e-3f) * 1.4426f;  // below log2(e): rounded down
  return halvings > 0 ? 0xffffffffu >> int(halvings < 31 ? halvings : 31) : 0xffffffffu;
}

// What noise is added to: the logit of a sampling distribution ...
struct Logits {
  const Sampling& row;

  DrawKey key() const { return row.key; }
  float bound(float max) const { return (max - row.m) / row.temperature; }
  // No logit below this one can win: (x - m) / temperature + the largest draw stays below `best`. The slack covers roundings.
  float lowest(float best) const {
    const float x = row.m + row.temperature * (best - kLargestGumbel - 0.01f);
    const float contender = x - 1e-5f * (fabsf(x) + fabsf(row.m));
    return contender >= row.keep ? contender : row.keep;  // NaN (an overflow): keep
  }
  bool counts(float x) const { return x >= row.keep && x != -INFINITY; }
  float value(float x) const { return (x - row.m) / row.temperature; }
  // What may win of a group whose tallest entry is x, which is far below that of a chunk.
  uint32_t largest_word_of_group(float x, float best) const { return power_of_two_word(value(x), best); }
};

// ... or the logarithm of a state's weight, which grows with its log score x and is at most x + log_slope.
struct States {
  const StateDraw& row;

  DrawKey key() const { return row.key; }
  float bound(float max) const {
    const float log_w = value(max);
    return log_w + 1e-6f * fabsf(log_w);  // it is rounded, with the noise and before
  }
  float lowest(float best) const {
    const float x = best - kLargestGumbel - 0.01f - row.log_slope;
    return x - 1e-5f * (fabsf(x) + fabsf(best) + fabsf(row.log_slope));
  }
  bool counts(float) const { return true; }
  uint32_t largest_word_of_group(float, float) const { return 0xffffffffu; }  // its value takes longer than the draws
  float value(float x) const { return log_weight(weight_of(row.weights, exp(double(x)))); }
};

// Who wins: `reach` is what the next value has to come up to.
struct Single {
  Best* best;

  float reach() const { return best->value; }
  template <class Terms>
  void take(const Terms& terms, float x, int64_t index, uint32_t word) {
    const float value = terms.value(x) + gumbel_from_word(word);
    if (value > best->value || (value == best->value && index < best->index)) *best = {value, index};
  }
};

// Who may win.
struct Several {
  Contenders* all;
  float floor;

  float reach() const { return floor; }
  template <class Terms>
  void take(const Terms& terms, float x, int64_t index, uint32_t word) {
    const auto value_of = [&](const Contender& c) { return terms.value(c.x) + c.noise; };
    const Contender found = {x, gumbel_from_word(word), int32_t(index)};
    const float value = value_of(found);
    if (!(value >= floor) || all->count < 0) return;
    if (value - kSlack > floor) {
      floor = value - kSlack;
      int32_t left = 0;
      for (int32_t i = 0; i < all->count; ++i)
        if (value_of(all->list[i]) >= floor) all->list[left++] = all->list[i];
      all->count = left;
    }
    if (all->count == kContenders)
      all->count = -1;
    else
      all->list[all->count++] = found;
  }
};

// What a row's Philox blocks have in common.
struct PhiloxRow {
  V::Int keys[kPhiloxRounds][2], row_low, row_high, step;

  explicit PhiloxRow(const DrawKey& key)
      : row_low(V::set_int(uint32_t(key.row_id))),
        row_high(V::set_int(uint32_t(key.row_id >> 32))),
        step(V::set_int(uint32_t(key.step))) {
    uint32_t k0 = uint32_t(key.seed), k1 = uint32_t(key.seed >> 32);
    for (auto& round : keys) {
      round[0] = V::set_int(k0);
      round[1] = V::set_int(k1);
      k0 += kPhiloxW0;
      k1 += kPhiloxW1;
    }
  }

  // Words of W consecutive blocks: word k of each in words[k].
  inline void group(uint32_t block, V::Int* words) const {
    const V::Int factor0 = V::set_int(kPhiloxM0), factor1 = V::set_int(kPhiloxM1);
    const uint32_t first = (kGumbelStream << 24) | block;
    V::Int even[4] = {V::even(first), row_low, step, row_high}, odd[4] = {V::odd(first), row_low, step, row_high};
    const auto mix = [&](V::Int* c, const V::Int* round) {
      const V::Int p0 = V::multiply(c[0], factor0), p1 = V::multiply(c[2], factor1);
      c[0] = V::exclusive(V::high(p1), V::exclusive(c[1], round[0]));
      c[1] = p1;
      c[2] = V::exclusive(V::high(p0), V::exclusive(c[3], round[1]));
      c[3] = p0;
    };
    for (const auto& round : keys) {
      mix(even, round);
      mix(odd, round);
    }
    for (int k = 0; k < 4; ++k) words[k] = V::join(even[k], odd[k]);
  }
};

// Draws for n entries that `max` bounds, the first of which is entry `first` of the row.
template <class Terms, class Found>
static inline void draw_from(const Terms& terms, const float* x, int64_t n, int64_t first, float max, Found found) {
  const float bound = terms.bound(max);
  uint32_t limit = largest_word(bound, found.reach());
  float lowest = terms.lowest(found.reach());
  const DrawKey key = terms.key();
  const PhiloxRow philox(key);
  const int64_t group = 4 * V::W;
  int64_t i = 0;
  for (; i + group <= n; i += group) {
    const V::Float tallest = V::max(V::max(V::load(x + i), V::load(x + i + V::W)),
                                    V::max(V::load(x + i + 2 * V::W), V::load(x + i + 3 * V::W)));
    if (!V::bits(V::ge(tallest, V::set(lowest)))) continue;
    V::Int words[4];
    philox.group(uint32_t((first + i) >> 2), words);
    const uint32_t of_group = terms.largest_word_of_group(V::highest(tallest), found.reach());
    const uint32_t here = of_group < limit ? of_group : limit;
    uint32_t lanes = 0;
    for (int k = 0; k < 4; ++k) lanes |= V::at_most(words[k], here);
    if (!lanes) continue;
    uint32_t stored[4][V::W];
    for (int k = 0; k < 4; ++k) V::store_int(stored[k], words[k]);
    for (; lanes; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      for (int k = 0; k < 4; ++k) {
        const int64_t at = i + 4 * lane + k;
        if (stored[k][lane] > here || !(x[at] >= lowest)) continue;
        const float before = found.reach();
        if (terms.counts(x[at])) found.take(terms, x[at], first + at, stored[k][lane]);
        if (found.reach() > before) {
          limit = largest_word(bound, found.reach());
          lowest = terms.lowest(found.reach());
        }
      }
    }
  }
  for (; i < n; i += 4) {
    const Words words = keyed_words(key, kGumbelStream, uint32_t((first + i) >> 2));
    for (int64_t k = 0; k < 4 && i + k < n; ++k)
      if (words.w[k] <= limit && terms.counts(x[i + k])) found.take(terms, x[i + k], first + i + k, words.w[k]);
  }
}

static void k_draw(const float* x, int64_t n, int64_t first, float max, const Sampling& row, Best* best) {
  draw_from(Logits{row}, x, n, first, max, Single{best});
}

static void k_contend(const float* x, int64_t n, int64_t first, float max, const Sampling& row, float floor, Contenders* all) {
  draw_from(Logits{row}, x, n, first, max, Several{all, floor});
}

static void k_draw_state(const float* x, int64_t n, int64_t first, float max, const StateDraw& row, Best* best) {
  draw_from(States{row}, x, n, first, max, Single{best});
}
