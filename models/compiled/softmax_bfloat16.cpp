// The kernel of softmax.h with matrix products in bfloat16, summed in float32. It needs AMX.
//
// Scores keep almost the precision of float32: each factor is split into the sum of two numbers of bfloat16, and of the four products of
// these, only that of the two small ones is left out, 2^-16 of the score. Weights and vectors are rounded once for the gradients.
//
// AMX multiplies tiles of 16 x 32 and 32 x 16 numbers. The right one holds pairs of its rows: (k, n) is at [k / 2][n][k % 2].
#include <sys/syscall.h>
#include <unistd.h>

#include "softmax.h"

namespace {

using BFloat16 = uint16_t;

// Rounds to the nearest number, ties to even. NaN stays NaN.
inline BFloat16 rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return BFloat16((bits >> 16) | 0x40);
  return BFloat16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float widened(BFloat16 value) {
  const uint32_t bits = uint32_t(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// Splits a number into two of bfloat16. The second is zero where the first is not finite, so that the product is that of the first.
inline void split(float value, BFloat16& large, BFloat16& small) {
  large = rounded(value);
  const float rest = value - widened(large);
  small = std::isfinite(rest) ? rounded(rest) : BFloat16(0);
}

// Pairs of rows are stored in the order in which _mm512_unpack{lo,hi}_epi16 gives their 32 columns. This is the column at a place.
inline int64_t column_at(int64_t place) {
  const int64_t lane = place % 16 / 4, within = place % 4;
  return place / 32 * 32 + 8 * lane + within + (place % 32 < 16 ? 0 : 4);
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

struct PackedItems : Chunk {
  PackedItems(const Problem& problem, int64_t size)
      : depth(round_up(problem.width, 32)),
        padded(round_up(problem.width, 32)),
        large(zeros<BFloat16>(round_up(size, PANEL) * depth)),
        small(zeros<BFloat16>(round_up(size, PANEL) * depth)),
        rows(zeros<BFloat16>(round_up(size, PANEL) * padded)),
        shift(zeros<float>(round_up(size, PANEL))) {
    panels = round_up(size, PANEL) / PANEL;
  }

  void pack(const Problem& problem, int64_t begin, int64_t end) {
    read(problem, begin, end, shift.get(), [this](int64_t c, int64_t d, float value) {
      const int64_t place = c / PANEL * PANEL * depth + c % PANEL * 2 + d / 2 * 2 * PANEL + d % 2;
      split(value, large[place], small[place]);
      rows[c / 2 * 2 * padded + 2 * d + c % 2] = large[place];
    });
  }

  template <class Kernels>
  void unpack(const Problem& problem, const Kernels& kernels) {
    for (int64_t place = 0; place < panels * PANEL; place++) {
      const int64_t c = column_at(place), at = place / PANEL * PANEL * padded + place % PANEL;
      if (c >= count) continue;
      for (int64_t d = 0; d < problem.width; d++) {
        float sum = 0.0f;
        for (const auto& kernel : kernels) sum += kernel->item_sums[at + d * PANEL];
        problem.item_gradient[(first + c) * problem.width + d] = sum;
      }
    }
  }

  int64_t depth, padded;
  Buffer<BFloat16> large, small;  // (panels, depth / 2, 64, 2), the two parts
  Buffer<BFloat16> rows;          // (panels * 32, padded, 2)
  Buffer<float> shift;            // in units of log 2
};

// scores (32, 32) = (a + a') (b + b') without a' b'. Users have rows of `depth` numbers.
inline void score(const BFloat16* large, const BFloat16* small, int64_t depth, const BFloat16* columns, const BFloat16* small_columns, float* scores) {
  const int64_t left = depth * 2, right = PANEL * 4;  // bytes from row to row
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; k += 32) {
    _tile_loadd(4, large + k, left);
    _tile_loadd(5, large + 16 * depth + k, left);
    _tile_loadd(6, small_columns + k * PANEL, right);
    _tile_loadd(7, small_columns + k * PANEL + 32, right);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(6, columns + k * PANEL, right);
    _tile_loadd(7, columns + k * PANEL + 32, right);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(4, small + k, left);
    _tile_loadd(5, small + 16 * depth + k, left);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, scores, 128);
  _tile_stored(1, scores + 16, 128);
  _tile_stored(2, scores + 16 * 32, 128);
  _tile_stored(3, scores + 16 * 32 + 16, 128);
}

// One row of 32 scores.
template <bool MASKED>
inline __m512i exponentiate(const float* scores, const float* shift, float reference, uint64_t kept, __m512& sums, float& largest, bool& above) {
  const __m512 references = _mm512_set1_ps(reference), limit = _mm512_set1_ps(LIMIT);
  __m512 value[2];
  unsigned over = 0;
#pragma GCC unroll 2
  for (int j = 0; j < 2; j++) {
    const __mmask16 mask = MASKED ? __mmask16(kept >> (16 * j)) : __mmask16(0xffff);
    value[j] = _mm512_sub_ps(_mm512_sub_ps(_mm512_load_ps(scores + 16 * j), _mm512_load_ps(shift + 16 * j)), references);
    over |= _mm512_mask_cmp_ps_mask(mask, value[j], limit, _CMP_GT_OQ);
  }
  if (__builtin_expect(over != 0, 0)) {
    above = true;
    for (int j = 0; j < 2; j++) {
      const __mmask16 mask = MASKED ? __mmask16(kept >> (16 * j)) : __mmask16(0xffff);
      largest = std::max(largest, _mm512_mask_reduce_max_ps(mask, value[j]) + reference);
    }
  }
#pragma GCC unroll 2
  for (int j = 0; j < 2; j++) {
    value[j] = power_of_2(value[j]);
    if (MASKED) value[j] = _mm512_maskz_mov_ps(__mmask16(kept >> (16 * j)), value[j]);
  }
  sums = _mm512_add_ps(sums, _mm512_add_ps(value[0], value[1]));
  return (__m512i)_mm512_cvtne2ps_pbh(value[1], value[0]);
}

// The same for a binary loss.
template <bool MASKED>
inline __m512i classify(const float* scores, const float* shift, uint64_t kept, __m512& sums) {
  __m512 weight[2];
#pragma GCC unroll 2
  for (int j = 0; j < 2; j++) {
    __m512 loss = binary_term(_mm512_sub_ps(_mm512_load_ps(scores + 16 * j), _mm512_load_ps(shift + 16 * j)), weight[j]);
    if (MASKED) {
      const __mmask16 mask = __mmask16(kept >> (16 * j));
      weight[j] = _mm512_maskz_mov_ps(mask, weight[j]);
      loss = _mm512_maskz_mov_ps(mask, loss);
    }
    sums = _mm512_add_ps(sums, loss);
  }
  return (__m512i)_mm512_cvtne2ps_pbh(weight[1], weight[0]);
}

// out (32, 32) += left right, over `blocks` blocks of `depth` numbers.
inline void add_product(const BFloat16* left, int64_t left_row, int64_t left_block, const BFloat16* right, int64_t right_row, int64_t right_block,
                        int64_t blocks, int64_t depth, float* out, int64_t out_row) {
  const int64_t step = out_row * 4, below = 16 * out_row;
  _tile_loadd(0, out, step);
  _tile_loadd(1, out + 16, step);
  _tile_loadd(2, out + below, step);
  _tile_loadd(3, out + below + 16, step);
  for (int64_t block = 0; block < blocks; block++)
    for (int64_t k = 0; k < depth; k += 32) {
      const BFloat16* a = left + block * left_block + k;
      const BFloat16* b = right + block * right_block + k * right_row;
      _tile_loadd(4, a, left_row * 2);
      _tile_loadd(5, a + 16 * left_row, left_row * 2);
      _tile_loadd(6, b, right_row * 4);
      _tile_loadd(7, b + 32, right_row * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  _tile_stored(0, out, step);
  _tile_stored(1, out + 16, step);
  _tile_stored(2, out + below, step);
  _tile_stored(3, out + below + 16, step);
}

template <bool IS_BINARY>
class Amx {
 public:
  static constexpr bool BINARY = IS_BINARY;
  static constexpr int64_t ROWS = 512, CHUNK = 8192;
  using Items = PackedItems;

  Amx(const Problem& problem, int64_t panels)
      : item_sums(zeros<float>(panels * PANEL * round_up(problem.width, 32))),
        width_(problem.width),
        depth_(round_up(problem.width, 32)),
        panels_(panels),
        large_(zeros<BFloat16>(ROWS * depth_)),
        small_(zeros<BFloat16>(ROWS * depth_)),
        rows_(zeros<BFloat16>(GROUP * PART * PANEL)),
        pairs_(zeros<BFloat16>(panels * ROWS * PANEL)),
        scaled_(zeros<BFloat16>(depth_ * ROWS)),
        user_sums_(zeros<float>(ROWS * depth_)),
        scores_(zeros<float>(32 * 32)) {}

  void start(bool gradients) {
    const TileConfig config;
    _tile_loadconfig(&config);
    if (gradients) std::memset(item_sums.get(), 0, panels_ * PANEL * depth_ * sizeof(float));
  }
  void end() { _tile_release(); }

  void load_users(const Problem& problem, const Block<ROWS>& block) {
    const float factor = problem.scale * LOG2_E;
    for (int64_t r = 0; r < round_up(block.count, 32); r++)
      for (int64_t d = 0; d < width_; d++) {
        const float value = r < block.count ? problem.user[(block.first + r) * width_ + d] * factor : 0.0f;
        split(value, large_[r * depth_ + d], small_[r * depth_ + d]);
      }
    std::memset(scaled_.get(), 0, depth_ * ROWS * sizeof(BFloat16));
  }

  bool weigh(Block<ROWS>& block, const Items& items, bool with_users) {
    bool above = false;
    std::memset(user_sums_.get(), 0, ROWS * depth_ * sizeof(float));
    const int64_t rows = round_up(block.count, 32);
    for (int64_t group = 0; group < items.panels; group += GROUP)
      for (int64_t first = 0; first < rows; first += PART) {
        const int64_t number = std::min(GROUP, items.panels - group), last = std::min(first + PART, rows);
        for (int64_t p = group; p < group + number; p++) above |= weigh_panel(block, items, p, p - group, with_users ? p : 0, first, last);
        if (!with_users || above) continue;
        const BFloat16* vectors = items.rows.get() + group * PANEL * depth_;
        for (int64_t d = 0; d < depth_; d += 32)
          for (int64_t r = first; r < last; r += 32)
            add_product(rows_.get() + (r - first) * PANEL, PANEL, PART * PANEL, vectors + 2 * d, depth_, PANEL * depth_, number, PANEL,
                        user_sums_.get() + r * depth_ + d, depth_);
      }
    return above;
  }

  const float* user_row(int64_t r) const { return user_sums_.get() + r * depth_; }

  void set_row(const Problem& problem, const Block<ROWS>& block, int64_t r, float factor) {
    const float* user = problem.user + (block.first + r) * width_;
    for (int64_t d = 0; d < width_; d++) scaled_[d * ROWS + r] = rounded(user[d] * factor);
  }

  void add_items(const Block<ROWS>& block, const Items& items) {
    const int64_t rows = round_up(block.count, 32);
    for (int64_t p = 0; p < items.panels; p++)
      for (int64_t d = 0; d < depth_; d += 32)
        for (int64_t c = 0; c < PANEL; c += 32)
          add_product(scaled_.get() + d * ROWS, ROWS, 0, pairs_.get() + p * ROWS * PANEL + 2 * c, PANEL, 0, 1, rows,
                      item_sums.get() + p * PANEL * depth_ + d * PANEL + c, PANEL);
  }

  Buffer<float> item_sums;  // (panels, depth, 64), columns in the order of column_at

 private:
  // Panels and rows that are computed in turns: the items of a group of panels stay in the second-level cache for all parts of a
  // block. The weights of a group are multiplied at once, so that tiles of sums are loaded less often.
  static constexpr int64_t GROUP = 4, PART = 128;

  bool weigh_panel(Block<ROWS>& block, const Items& items, int64_t p, int64_t row_panel, int64_t pair_panel, int64_t first, int64_t last) {
    bool above = false;
    const bool masked = block.has_hits || p == items.panels - 1;
    const uint64_t* kept = block.kept.get() + p * ROWS;
    for (int64_t r = first; r < last; r += 32)
      for (int64_t c = 0; c < PANEL; c += 32) {
        const int64_t columns = p * PANEL * depth_ + 2 * c;
        score(large_.get() + r * depth_, small_.get() + r * depth_, depth_, items.large.get() + columns, items.small.get() + columns, scores_.get());
        BFloat16* rows = rows_.get() + (row_panel * PART + r - first) * PANEL + c;
        BFloat16* pairs = pairs_.get() + (pair_panel * ROWS + r) * PANEL + 2 * c;
        const float* shift = items.shift.get() + p * PANEL + c;
        above |= masked ? weigh_tile<true>(block, shift, kept, r, c, rows, pairs) : weigh_tile<false>(block, shift, kept, r, c, rows, pairs);
      }
    return above;
  }

  // Writes the weights of 32 x 32 scores by rows and by pairs of rows.
  template <bool MASKED>
  bool weigh_tile(Block<ROWS>& block, const float* shift, const uint64_t* kept, int64_t first, int64_t column, BFloat16* rows, BFloat16* pairs) {
    bool above = false;
    for (int64_t r = 0; r < 32; r += 2) {
      __m512i pair[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; i++) {
        const int64_t row = first + r + i;
        const uint64_t mask = MASKED ? kept[row] >> column : 0;
        const float* scores = scores_.get() + (r + i) * 32;
        if (BINARY) pair[i] = classify<MASKED>(scores, shift, mask, block.sums[row]);
        else pair[i] = exponentiate<MASKED>(scores, shift, block.reference[row], mask, block.sums[row], block.largest[row], above);
        _mm512_store_si512(rows + (r + i) * PANEL, pair[i]);
      }
      _mm512_store_si512(pairs + r * PANEL, _mm512_unpacklo_epi16(pair[0], pair[1]));
      _mm512_store_si512(pairs + r * PANEL + 32, _mm512_unpackhi_epi16(pair[0], pair[1]));
    }
    return above;
  }

  int64_t width_, depth_, panels_;
  Buffer<BFloat16> large_, small_;  // (ROWS, depth), the two parts of the vectors of the targets, in units of log 2
  Buffer<BFloat16> rows_;           // (GROUP, PART, 64), weights
  Buffer<BFloat16> pairs_;          // (panels, ROWS / 2, 64, 2), weights
  Buffer<BFloat16> scaled_;         // (depth, ROWS), the vectors of the targets, divided by the sums
  Buffer<float> user_sums_;         // (ROWS, depth)
  Buffer<float> scores_;            // (32, 32)
};

}  // namespace

// Asks Linux for the registers of AMX, for this process. Returns 0 if they are granted.
extern "C" int request_amx() {
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return int(syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA));
}

extern "C" int softmax_bfloat16(const Problem* problem) { return run<Amx<false>>(*problem); }

extern "C" int binary_bfloat16(const Problem* problem) { return run<Amx<true>>(*problem); }
