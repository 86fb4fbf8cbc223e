#include "cpu/row.h"

#include "cpu/parallel.h"

namespace dlmk {

const float* Row::view(int64_t chunk, float* buffer, float* max) const {
  const int64_t begin = chunk * kChunk, n = size(chunk);
  auto id = std::lower_bound(suppressed->begin(), suppressed->end(), begin);
  const bool whole = id == suppressed->end() || *id >= begin + n;
  const float* x = kernels().load(logits + begin * width(), dtype, n, buffer, whole ? max : nullptr);
  if (whole) return x;
  if (x != buffer) std::copy(x, x + n, buffer);
  for (; id != suppressed->end() && *id < begin + n; ++id) buffer[*id - begin] = -INFINITY;
  if (max) *max = kernels().maximum(buffer, n);
  return buffer;
}

float Row::maximum(int64_t chunk, float* buffer) const {
  const int64_t begin = chunk * kChunk, n = size(chunk);
  auto id = std::lower_bound(suppressed->begin(), suppressed->end(), begin);
  float max;
  if (id != suppressed->end() && *id < begin + n)
    view(chunk, buffer, &max);
  else
    kernels().load(logits + begin * width(), dtype, n, nullptr, &max);
  return max;
}

bool reshaped(const Row& row, const RowParameters& parameters) {
  const bool filtered = (parameters.top_k > 0 && parameters.top_k < row.V) || !(parameters.top_p >= 1);
  return parameters.sampling_confidence && (filtered || (parameters.temperature > 0 && parameters.temperature != 1));
}

void chunk_statistics(const Row& row, int64_t begin, int64_t end, bool sums, Scratch& scratch, ChunkStats* chunks) {
  float* buffer = scratch.buffer.data();
  float highest = -INFINITY;
  const auto near = [&](const ChunkStats& chunk) {
    return std::isfinite(chunk.max) && chunk.max >= highest - kNegligible;
  };
  // Sums that the final maximum makes negligible are left out when chunks are merged, so neither order changes a result.
  if (scratch.peaked || !sums) {  // the maximum of the row first, then the sums of the few chunks that it leaves
    for (int64_t c = begin; c < end; ++c) {
      chunks[c] = {row.maximum(c, buffer), 0, 0};
      if (chunks[c].max > highest) highest = chunks[c].max;
    }
    for (int64_t c = begin; c < end && sums; ++c) {
      if (!near(chunks[c])) continue;
      const float* x = row.view(c, buffer);
      kernels().sums(x, row.size(c), chunks[c].max, nullptr, 0, &chunks[c].s, &chunks[c].t);
    }
  } else {  // both while the chunk is in the first-level cache
    for (int64_t c = begin; c < end; ++c) {
      ChunkStats& chunk = chunks[c];
      const float* x = row.view(c, buffer, &chunk.max);
      chunk.s = chunk.t = 0;
      if (chunk.max > highest) highest = chunk.max;
      if (!near(chunk)) continue;
      const int64_t next = std::min((c + 1) * kChunk, row.V);
      const int64_t ahead = c + 1 < end ? row.size(c + 1) * row.width() : 0;
      kernels().sums(x, row.size(c), chunk.max, row.logits + next * row.width(), ahead, &chunk.s, &chunk.t);
    }
  }
  int64_t needed = 0;
  for (int64_t c = begin; c < end; ++c) needed += near(chunks[c]);
  scratch.peaked = 4 * needed < end - begin;
}

void highest_first(const ChunkStats* chunks, std::vector<int64_t>& order) {
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return chunks[a].max > chunks[b].max || (chunks[a].max == chunks[b].max && a < b);
  });
}

namespace {

RowResult nan_row(const Row& row, int64_t chunk, Scratch& scratch) {
  const float* x = row.view(chunk, scratch.buffer.data());
  int64_t i = 0;
  while (x[i] == x[i]) ++i;
  return {chunk * kChunk + i, NAN, NAN, NAN, NAN};
}

RowResult infinite_row(const Row& row, const ChunkStats* chunks, Scratch& scratch) {
  int64_t count = 0, first = -1;
  for (int64_t c = 0; c < row.chunks(); ++c) {
    if (chunks[c].max != INFINITY) continue;
    const float* x = row.view(c, scratch.buffer.data());
    for (int64_t i = 0; i < row.size(c); ++i) {
      if (x[i] != INFINITY) continue;
      if (first < 0) first = c * kChunk + i;
      ++count;
    }
  }
  const double n = double(count);
  return {first, float(1 / n), count == 1 ? 1.0f : 0.0f, float(std::log(n)), INFINITY};
}

RowStats merge(const Row& row, const ChunkStats* chunks, float m, Scratch& scratch) {
  RowStats stats{m, -INFINITY, -1, 0, 0};
  int64_t winner = -1;
  for (int64_t c = 0; c < row.chunks(); ++c) {
    const ChunkStats& chunk = chunks[c];
    if (winner < 0 && chunk.max == m)
      winner = c;
    else
      stats.second = std::max(stats.second, chunk.max);
    if (!(chunk.max >= m - kNegligible)) continue;
    const double d = double(chunk.max) - double(m), scale = d == 0 ? 1 : std::exp(d);
    stats.s += scale * chunk.s;
    stats.t += scale * (double(chunk.t) + d * chunk.s);
  }
  const float* x = row.view(winner, scratch.buffer.data());
  const int64_t n = row.size(winner), i = kernels().find(x, n, m);
  stats.index = winner * kChunk + i;
  if (stats.second < m) stats.second = std::max(stats.second, kernels().maximum_without(x, n, i));
  return stats;
}

// Highest noised entry of the sampling distribution, and its logit.
int64_t draw(const Row& row, const RowStats& stats, const Sampling& sampling, const ChunkStats* chunks, Scratch& scratch,
             int threads, float* logit) {
  std::vector<int64_t>& order = scratch.order;
  order.clear();
  for (int64_t c = 0; c < row.chunks(); ++c)
    if (chunks[c].max >= sampling.keep && chunks[c].max > -INFINITY) order.push_back(c);
  highest_first(chunks, order);
  const Words words = keyed_words(sampling.key, kGumbelStream, uint32_t(stats.index >> 2));
  const Best start = {0.0f + gumbel_from_word(words.w[stats.index & 3]), stats.index};
  const auto draw_from = [&](size_t from, size_t stride, float* buffer) {
    Best best = start;
    for (size_t i = from; i < order.size(); i += stride) {
      const float max = chunks[order[i]].max;
      if ((max - sampling.m) / sampling.temperature + kLargestGumbel < best.value) break;  // and so is every later chunk
      kernels().draw(row.view(order[i], buffer), row.size(order[i]), order[i] * kChunk, max, sampling, &best);
    }
    return best;
  };
  Best winner = start;
  if (threads <= 1) {
    winner = draw_from(0, 1, scratch.buffer.data());
  } else {
    std::vector<Best> found(size_t(threads), start);
    std::vector<float> buffers(size_t(threads) * kChunk);
    parallel(threads, [&](int thread, int team) {
      found[size_t(thread)] = draw_from(size_t(thread), size_t(team), buffers.data() + int64_t(thread) * kChunk);
    });
    for (const Best& other : found)
      if (other.value > winner.value || (other.value == winner.value && other.index < winner.index)) winner = other;
  }
  *logit = row.view(winner.index / kChunk, scratch.buffer.data())[winner.index % kChunk];
  return winner.index;
}

}  // namespace

RowResult finish_row(const Row& row, const RowParameters& parameters, const ChunkStats* chunks, Scratch& scratch,
                     int threads) {
  float m = -INFINITY;
  for (int64_t c = 0; c < row.chunks(); ++c) {
    if (chunks[c].max != chunks[c].max) return nan_row(row, c, scratch);
    m = std::max(m, chunks[c].max);
  }
  if (m == INFINITY) return infinite_row(row, chunks, scratch);
  if (m == -INFINITY) return {0, 0, 0, 0, -INFINITY};

  const RowStats stats = merge(row, chunks, m, scratch);
  const bool sampled = parameters.temperature > 0;
  const bool filtered = (parameters.top_k > 0 && parameters.top_k < row.V) || !(parameters.top_p >= 1);
  Sampling sampling = {m, sampled ? parameters.temperature : 1.0f, -INFINITY, parameters.key};
  if (filtered && (sampled || parameters.sampling_confidence))
    sampling.keep = lowest_kept(row, stats, parameters, chunks, scratch);

  int64_t token = stats.index;
  float logit = m;
  if (sampled) token = draw(row, stats, sampling, chunks, scratch, threads, &logit);

  double s = stats.s, t = stats.t, temperature = 1, second = double(stats.second) - double(m);
  if (reshaped(row, parameters)) {
    temperature = sampling.temperature;
    second = stats.second >= sampling.keep ? second / temperature : -INFINITY;
    s = t = 0;
    for (int64_t c = 0; c < row.chunks(); ++c) {
      const float max = chunks[c].max;
      if (max < sampling.keep || (max - m) / sampling.temperature < -kNegligible) continue;
      float chunk_s, chunk_t;
      const float* x = row.view(c, scratch.buffer.data());
      kernels().kept_sums(x, row.size(c), sampling, &chunk_s, &chunk_t);
      s += chunk_s;
      t += chunk_t;
    }
  }
  const double confidence = std::exp((double(logit) - double(m)) / temperature) / s;
  return {token, float(confidence), float((1 - std::exp(second)) / s), float(std::log(s) - t / s),
          float(double(m) / temperature + std::log(s))};
}

}  // namespace dlmk
