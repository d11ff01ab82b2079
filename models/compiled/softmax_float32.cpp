// The kernel of softmax.h in float32.
#include "softmax.h"

namespace {

struct PackedItems : Chunk {
  PackedItems(const Problem& problem, int64_t size)
      : padded(round_up(problem.width, 16)),
        columns(zeros<float>(round_up(size, PANEL) * problem.width)),
        rows(zeros<float>(round_up(size, PANEL) * padded)),
        shift(zeros<float>(round_up(size, PANEL))) {
    panels = round_up(size, PANEL) / PANEL;
  }

  void pack(const Problem& problem, int64_t begin, int64_t end) {
    read(problem, begin, end, shift.get(), [this, width = problem.width](int64_t c, int64_t d, float value) {
      columns[(c / PANEL * width + d) * PANEL + c % PANEL] = value;
      rows[c * padded + d] = value;
    });
  }

  template <class Kernels>
  void unpack(const Problem& problem, const Kernels& kernels) {
    for (int64_t c = 0; c < count; c++)
      for (int64_t d = 0; d < problem.width; d++) {
        float sum = 0.0f;
        for (const auto& kernel : kernels) sum += kernel->item_sums[c * padded + d];
        problem.item_gradient[(first + c) * problem.width + d] = sum;
      }
  }

  int64_t padded;
  Buffer<float> columns;  // (panels, D, 64)
  Buffer<float> rows;     // (panels * 64, padded)
  Buffer<float> shift;    // in units of log 2
};

// Replaces 64 scores by their exponentials and adds these to `sums`. Returns whether one is above LIMIT; then `largest` is raised.
template <bool MASKED>
inline bool exponentiate(float* scores, const float* shift, float reference, uint64_t kept, __m512& sums, float& largest) {
  const __m512 references = _mm512_set1_ps(reference), limit = _mm512_set1_ps(LIMIT);
  __m512 value[4];
  unsigned above = 0;
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const __mmask16 mask = MASKED ? __mmask16(kept >> (16 * j)) : __mmask16(0xffff);
    value[j] = _mm512_sub_ps(_mm512_sub_ps(_mm512_load_ps(scores + 16 * j), _mm512_load_ps(shift + 16 * j)), references);
    above |= _mm512_mask_cmp_ps_mask(mask, value[j], limit, _CMP_GT_OQ);
  }
  if (__builtin_expect(above != 0, 0)) {
    for (int j = 0; j < 4; j++) {
      const __mmask16 mask = MASKED ? __mmask16(kept >> (16 * j)) : __mmask16(0xffff);
      largest = std::max(largest, _mm512_mask_reduce_max_ps(mask, value[j]) + reference);
    }
    return true;
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    value[j] = power_of_2(value[j]);
    if (MASKED) value[j] = _mm512_maskz_mov_ps(__mmask16(kept >> (16 * j)), value[j]);
    _mm512_store_ps(scores + 16 * j, value[j]);
  }
  sums = _mm512_add_ps(sums, _mm512_add_ps(_mm512_add_ps(value[0], value[1]), _mm512_add_ps(value[2], value[3])));
  return false;
}

// The same for a binary loss, which no score is too large for: replaces the scores by their weights, and adds the terms to `sums`.
template <bool MASKED>
inline void classify(float* scores, const float* shift, uint64_t kept, __m512& sums) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    __m512 weight;
    __m512 loss = binary_term(_mm512_sub_ps(_mm512_load_ps(scores + 16 * j), _mm512_load_ps(shift + 16 * j)), weight);
    if (MASKED) {
      const __mmask16 mask = __mmask16(kept >> (16 * j));
      weight = _mm512_maskz_mov_ps(mask, weight);
      loss = _mm512_maskz_mov_ps(mask, loss);
    }
    _mm512_store_ps(scores + 16 * j, weight);
    sums = _mm512_add_ps(sums, loss);
  }
}

template <bool IS_BINARY>
class Float32 {
 public:
  static constexpr bool BINARY = IS_BINARY;
  static constexpr int64_t ROWS = 288, CHUNK = 8192;
  using Items = PackedItems;

  Float32(const Problem& problem, int64_t panels)
      : item_sums(zeros<float>(panels * PANEL * round_up(problem.width, 16))),
        width_(problem.width),
        padded_(round_up(problem.width, 16)),
        panels_(panels),
        weights_(zeros<float>(panels * ROWS * PANEL)),
        users_(zeros<float>(ROWS * width_)),
        scaled_(zeros<float>(ROWS * padded_)),
        user_sums_(zeros<float>(ROWS * padded_)) {}

  void start(bool gradients) {
    if (gradients) std::memset(item_sums.get(), 0, panels_ * PANEL * padded_ * sizeof(float));
  }
  void end() {}

  void load_users(const Problem& problem, const Block<ROWS>& block) {
    const float factor = problem.scale * LOG2_E;
    const float* user = problem.user + block.first * width_;
    for (int64_t i = 0; i < round_up(block.count, STEP) * width_; i++) users_[i] = i < block.count * width_ ? user[i] * factor : 0.0f;
  }

  bool weigh(Block<ROWS>& block, const Items& items, bool with_users) {
    bool above = false;
    std::memset(user_sums_.get(), 0, ROWS * padded_ * sizeof(float));
    for (int64_t group = 0; group < items.panels; group += GROUP)
      for (int64_t first = 0; first < block.count; first += PART)
        for (int64_t p = group; p < std::min(items.panels, group + GROUP); p++)
          above |= weigh_panel(block, items, p, first, std::min(first + PART, round_up(block.count, STEP)), with_users);
    return above;
  }

  const float* user_row(int64_t r) const { return user_sums_.get() + r * padded_; }

  void set_row(const Problem& problem, const Block<ROWS>& block, int64_t r, float factor) {
    const float* user = problem.user + (block.first + r) * width_;
    for (int64_t d = 0; d < width_; d++) scaled_[r * padded_ + d] = user[d] * factor;
  }

  void add_items(const Block<ROWS>& block, const Items& items) {
    for (int64_t group = 0; group < items.panels; group += GROUP)
      for (int64_t first = 0; first < block.count; first += PART)
        for (int64_t p = group; p < std::min(items.panels, group + GROUP); p++) {
          const float* weights = weights_.get() + (p * ROWS + first) * PANEL;
          const float* users = scaled_.get() + first * padded_;
          float* sums = item_sums.get() + p * PANEL * padded_;
          const int64_t depth = std::min(PART, block.count - first);
          int64_t c = 0;
          for (; c + STEP <= PANEL; c += STEP) add_product<STEP>(weights + c, 1, PANEL, users, depth, padded_, sums + c * padded_);
          add_product<PANEL % STEP>(weights + c, 1, PANEL, users, depth, padded_, sums + c * padded_);
        }
  }

  Buffer<float> item_sums;  // (panels * 64, padded)

 private:
  // Panels and rows that are computed in turns: the items of a group of panels stay in the second-level cache for all parts of a
  // block, and a part of a block in the first-level cache.
  static constexpr int64_t GROUP = 8, PART = 72;

  bool weigh_panel(Block<ROWS>& block, const Items& items, int64_t p, int64_t first, int64_t last, bool with_users) {
    bool above = false;
    float* weights = weights_.get() + (with_users ? p : 0) * ROWS * PANEL;
    const float* shift = items.shift.get() + p * PANEL;
    const uint64_t* kept = block.kept.get() + p * ROWS;
    const bool masked = block.has_hits || p == items.panels - 1;
    for (int64_t r = first; r < last; r += STEP) {
      score(users_.get() + r * width_, width_, width_, items.columns.get() + p * width_ * PANEL, weights + r * PANEL);
      for (int64_t i = r; i < r + STEP; i++) {
        float* row = weights + i * PANEL;
        if (BINARY)
          masked ? classify<true>(row, shift, kept[i], block.sums[i]) : classify<false>(row, shift, 0, block.sums[i]);
        else
          above |= masked ? exponentiate<true>(row, shift, block.reference[i], kept[i], block.sums[i], block.largest[i])
                          : exponentiate<false>(row, shift, block.reference[i], 0, block.sums[i], block.largest[i]);
      }
    }
    for (int64_t r = first; with_users && !above && r < last; r += STEP)
      add_product<STEP>(weights + r * PANEL, PANEL, 1, items.rows.get() + p * PANEL * padded_, PANEL, padded_, user_sums_.get() + r * padded_);
    return above;
  }

  int64_t width_, padded_, panels_;
  Buffer<float> weights_;    // (panels, ROWS, 64)
  Buffer<float> users_;      // (ROWS, D), in units of log 2
  Buffer<float> scaled_;     // (ROWS, padded), divided by the sums
  Buffer<float> user_sums_;  // (ROWS, padded)
};

}  // namespace

extern "C" int softmax_float32(const Problem* problem) { return run<Float32<false>>(*problem); }

extern "C" int binary_float32(const Problem* problem) { return run<Float32<true>>(*problem); }
