// Causal softmax attention of packed histories, forward and backward, computed in float32. It needs AVX-512.
//
// Histories are not padded: history b has the events offsets[b] .. offsets[b + 1]. Query head h reads key and value head h / (H / G).
// Of the forward pass only the log of each row's sum of exponentials is kept. The backward pass computes the weights again
// (Dao et al. 2022, arXiv:2205.14135, algorithm 4): with W the weights and o the output, dW = do v^T,
// dS = W (dW - sum(o do)), dq = scale dS k, dk = scale dS^T q, dv = W^T do.
//
// A block has ROWS queries of a history and a head. Names: N events, H heads, G heads of keys and values, K head width, V of values.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tiles.h"

namespace {

using BFloat16 = uint16_t;

// In the order of models/compiled/attention.py: _Problem. Rows of an array are `..._row` numbers apart; within a row, heads are contiguous.
struct Problem {
  int64_t num_histories, num_heads, num_key_heads, key_width, value_width, threads, in_bfloat16;
  const int64_t* offsets;  // (B + 1)
  const void *query, *key, *value;
  int64_t query_row, key_row, value_row;
  float* output;                 // (N, H, V)
  float* log_total;              // (N, H), in units of log 2
  const float* output_gradient;  // (N, H, V); null in the forward pass
  void *query_gradient, *key_gradient, *value_gradient;
  int64_t query_gradient_row, key_gradient_row, value_gradient_row;
  float scale;
};

inline float read(const float* from) { return *from; }
inline float read(const BFloat16* from) {
  const uint32_t bits = uint32_t(*from) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline void write(float value, float* to) { *to = value; }
inline void write(float value, BFloat16* to) {  // to the nearest number, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  *to = nan ? BFloat16((bits >> 16) | 0x40) : BFloat16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

constexpr int64_t ROWS = 48;

// The working memory of a thread.
template <class Number>
class Worker {
 public:
  Worker(const Problem& problem, int64_t longest)
      : p_(problem),
        key_padded_(round_up(p_.key_width, 16)),
        value_padded_(round_up(p_.value_width, 16)),
        panels_(round_up(longest, PANEL) / PANEL),
        key_columns_(zeros<float>(panels_ * PANEL * p_.key_width)),
        value_columns_(zeros<float>(panels_ * PANEL * p_.value_width)),
        key_rows_(zeros<float>(panels_ * PANEL * key_padded_)),
        value_rows_(zeros<float>(panels_ * PANEL * value_padded_)),
        key_sums_(zeros<float>(panels_ * PANEL * key_padded_)),
        value_sums_(zeros<float>(panels_ * PANEL * value_padded_)),
        weights_(zeros<float>(panels_ * ROWS * PANEL)),
        slopes_(zeros<float>(panels_ * ROWS * PANEL)),
        queries_(zeros<float>(ROWS * p_.key_width)),
        query_rows_(zeros<float>(ROWS * key_padded_)),
        gradients_(zeros<float>(ROWS * p_.value_width)),
        gradient_rows_(zeros<float>(ROWS * value_padded_)),
        sums_(zeros<float>(ROWS * std::max(key_padded_, value_padded_))) {}

  // Attention of one history and one head of keys, for all heads of queries that share it.
  void attend(int64_t history, int64_t key_head) {
    begin(history, key_head);
    const int64_t shared = p_.num_heads / p_.num_key_heads;
    for (int64_t head = key_head * shared; head < (key_head + 1) * shared; head++)
      for (int64_t row = 0; row < length_; row += ROWS) {
        if (p_.output_gradient == nullptr) forward_block(head, row);
        else backward_block(head, row);
      }
    if (p_.output_gradient != nullptr) write_key_gradients(key_head);
  }

 private:
  static const Number* at(const void* array, int64_t row, int64_t row_size, int64_t head, int64_t width) {
    return static_cast<const Number*>(array) + row * row_size + head * width;
  }
  static Number* at(void* array, int64_t row, int64_t row_size, int64_t head, int64_t width) {
    return static_cast<Number*>(array) + row * row_size + head * width;
  }

  void begin(int64_t history, int64_t head) {
    first_ = p_.offsets[history];
    length_ = p_.offsets[history + 1] - first_;
    const bool backward = p_.output_gradient != nullptr;
    const int64_t end = round_up(length_, PANEL);
    pack(p_.key, p_.key_row, head, p_.key_width, key_padded_, key_columns_.get(), key_rows_.get());
    pack(p_.value, p_.value_row, head, p_.value_width, value_padded_, backward ? value_columns_.get() : nullptr, value_rows_.get());
    if (!backward) return;
    std::memset(key_sums_.get(), 0, end * key_padded_ * sizeof(float));
    std::memset(value_sums_.get(), 0, end * value_padded_ * sizeof(float));
  }

  // Copies keys or values by rows of `padded` numbers, and by panels of columns. Zeros follow the last event.
  void pack(const void* from, int64_t row_size, int64_t head, int64_t width, int64_t padded, float* columns, float* rows) {
    const int64_t end = round_up(length_, PANEL);
    for (int64_t c = 0; c < length_; c++) {
      const Number* vector = at(from, first_ + c, row_size, head, width);
      for (int64_t d = 0; d < width; d++) rows[c * padded + d] = read(vector + d);
    }
    std::memset(rows + length_ * padded, 0, (end - length_) * padded * sizeof(float));
    if (columns == nullptr) return;
    const __m512i places = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(int(padded)));
    for (int64_t c = 0; c < end; c += 16)
      for (int64_t d = 0; d < width; d++)
        _mm512_store_ps(columns + (c / PANEL * width + d) * PANEL + c % PANEL, _mm512_i32gather_ps(places, rows + c * padded + d, 4));
  }

  // Copies vectors of the block, times a factor; zeros follow the last event.
  template <class From>
  void load_block(const From* from, int64_t row_size, int64_t width, int64_t row, float factor, float* to, int64_t padded) {
    const int64_t real = std::min(ROWS, length_ - row);
    for (int64_t r = 0; r < real; r++) {
      const From* vector = from + (first_ + row + r) * row_size;
      for (int64_t d = 0; d < width; d++) to[r * padded + d] = read(vector + d) * factor;
    }
    std::memset(to + real * padded, 0, (ROWS - real) * padded * sizeof(float));
  }

  // The candidates of a panel that a query sees.
  static uint64_t seen(int64_t query, int64_t panel) {
    const int64_t number = query + 1 - panel * PANEL;
    return number >= PANEL ? ~uint64_t(0) : number <= 0 ? 0 : (uint64_t(1) << number) - 1;
  }

  // Writes the scores of STEP queries, in units of log 2, for the panels that one of them sees. Returns the number of these.
  int64_t score_step(const float* queries, int64_t query) {
    const int64_t number = std::min(panels_of(query + STEP - 1), panels_of(length_ - 1));
    const int64_t r = query % ROWS;
    for (int64_t panel = 0; panel < number; panel++)
      score(queries, p_.key_width, key_columns_.get() + panel * p_.key_width * PANEL, weights_.get() + (panel * ROWS + r) * PANEL);
    return number;
  }
  static int64_t panels_of(int64_t query) { return query / PANEL + 1; }

  void forward_block(int64_t head, int64_t row) {
    const int64_t heads = p_.num_heads;
    load_block(at(p_.query, 0, 0, head, p_.key_width), p_.query_row, p_.key_width, row, p_.scale * LOG2_E, queries_.get(), p_.key_width);
    std::memset(sums_.get(), 0, ROWS * value_padded_ * sizeof(float));
    for (int64_t r = 0; r < ROWS && row + r < length_; r += STEP) {
      const int64_t number = score_step(queries_.get() + r * p_.key_width, row + r);
      float total[STEP], largest[STEP];
      for (int64_t i = 0; i < STEP; i++) total[i] = exponentiate(row + r + i, r + i, number, largest[i]);
      for (int64_t panel = 0; panel < number; panel++) {
        const int64_t depth = std::min(PANEL, row + r + STEP - panel * PANEL);
        add_product<STEP>(weights_.get() + (panel * ROWS + r) * PANEL, PANEL, 1, value_rows_.get() + panel * PANEL * value_padded_, depth,
                          value_padded_, sums_.get() + r * value_padded_);
      }
      for (int64_t i = r; i < r + STEP && row + i < length_; i++) {
        const int64_t event = first_ + row + i;
        const float factor = 1.0f / total[i - r];
        p_.log_total[event * heads + head] = largest[i - r] + std::log2(total[i - r]);
        float* output = p_.output + (event * heads + head) * p_.value_width;
        for (int64_t d = 0; d < p_.value_width; d++) output[d] = sums_[i * value_padded_ + d] * factor;
      }
    }
  }

  // Replaces the scores of a query by exponentials of their distance from the largest one, and returns the sum.
  float exponentiate(int64_t query, int64_t r, int64_t number, float& largest) {
    __m512 highest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for (int64_t panel = 0; panel < number; panel++)
      for (int64_t j = 0; j < 4; j++) {
        const __mmask16 mask = __mmask16(seen(query, panel) >> (16 * j));
        const __m512 scores = _mm512_load_ps(weights_.get() + (panel * ROWS + r) * PANEL + 16 * j);
        highest = _mm512_mask_max_ps(highest, mask, highest, scores);
      }
    largest = _mm512_reduce_max_ps(highest);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t panel = 0; panel < number; panel++) {
      float* weights = weights_.get() + (panel * ROWS + r) * PANEL;
      for (int64_t j = 0; j < 4; j++) {
        const __mmask16 mask = __mmask16(seen(query, panel) >> (16 * j));
        const __m512 distance = _mm512_sub_ps(_mm512_load_ps(weights + 16 * j), _mm512_set1_ps(largest));
        const __m512 weight = _mm512_maskz_mov_ps(mask, power_of_2(distance));
        sum = _mm512_add_ps(sum, weight);
        _mm512_store_ps(weights + 16 * j, weight);
      }
    }
    return _mm512_reduce_add_ps(sum);
  }

  void backward_block(int64_t head, int64_t row) {
    const int64_t heads = p_.num_heads, width = p_.value_width;
    load_block(at(p_.query, 0, 0, head, p_.key_width), p_.query_row, p_.key_width, row, p_.scale * LOG2_E, queries_.get(), p_.key_width);
    load_block(at(p_.query, 0, 0, head, p_.key_width), p_.query_row, p_.key_width, row, p_.scale, query_rows_.get(), key_padded_);
    load_block(p_.output_gradient + head * width, heads * width, width, row, 1.0f, gradients_.get(), width);
    load_block(p_.output_gradient + head * width, heads * width, width, row, 1.0f, gradient_rows_.get(), value_padded_);
    std::memset(sums_.get(), 0, ROWS * key_padded_ * sizeof(float));
    const int64_t rows = std::min(ROWS, length_ - row);
    for (int64_t r = 0; r < rows; r += STEP) {
      const int64_t number = score_step(queries_.get() + r * p_.key_width, row + r);
      for (int64_t panel = 0; panel < number; panel++)
        score(gradients_.get() + r * width, width, value_columns_.get() + panel * width * PANEL, slopes_.get() + (panel * ROWS + r) * PANEL);
      for (int64_t i = r; i < r + STEP; i++) differentiate(head, row, i, number);
      for (int64_t panel = 0; panel < number; panel++) {
        const int64_t depth = std::min(PANEL, row + r + STEP - panel * PANEL);
        add_product<STEP>(slopes_.get() + (panel * ROWS + r) * PANEL, PANEL, 1, key_rows_.get() + panel * PANEL * key_padded_, depth,
                          key_padded_, sums_.get() + r * key_padded_);
      }
    }
    for (int64_t r = 0; r < rows; r++) {
      Number* gradient = at(p_.query_gradient, first_ + row + r, p_.query_gradient_row, head, p_.key_width);
      for (int64_t d = 0; d < p_.key_width; d++) write(sums_[r * key_padded_ + d] * p_.scale, gradient + d);
    }
    add_to_keys(row, rows);
  }

  // Replaces the scores of row r of the block by weights, and the gradients of weights by those of scores.
  void differentiate(int64_t head, int64_t row, int64_t r, int64_t number) {
    const bool real = row + r < length_;
    float log_total = 0.0f, inner = 0.0f;
    if (real) {
      const int64_t event = first_ + row + r;
      const float* output = p_.output + (event * p_.num_heads + head) * p_.value_width;
#pragma omp simd reduction(+ : inner)
      for (int64_t d = 0; d < p_.value_width; d++) inner += output[d] * gradients_[r * p_.value_width + d];
      log_total = p_.log_total[event * p_.num_heads + head];
    }
    for (int64_t panel = 0; panel < number; panel++) {
      float* weights = weights_.get() + (panel * ROWS + r) * PANEL;
      float* slopes = slopes_.get() + (panel * ROWS + r) * PANEL;
      const uint64_t visible = real ? seen(row + r, panel) : 0;
      for (int64_t j = 0; j < 4; j++) {
        const __mmask16 mask = __mmask16(visible >> (16 * j));
        const __m512 distance = _mm512_sub_ps(_mm512_load_ps(weights + 16 * j), _mm512_set1_ps(log_total));
        const __m512 weight = _mm512_maskz_mov_ps(mask, power_of_2(distance));
        const __m512 slope = _mm512_sub_ps(_mm512_load_ps(slopes + 16 * j), _mm512_set1_ps(inner));
        _mm512_store_ps(weights + 16 * j, weight);
        _mm512_store_ps(slopes + 16 * j, _mm512_maskz_mul_ps(mask, weight, slope));
      }
    }
  }

  // Adds what the block contributes to the gradients of keys and values: columns that its queries see, from the first that does.
  void add_to_keys(int64_t row, int64_t rows) {
    for (int64_t c = 0; c < std::min(row + rows, length_); c += STEP) {
      // A group of columns is cut at the end of a panel.
      const int64_t panel = c / PANEL, place = c % PANEL;
      const int64_t skipped = std::max<int64_t>(0, (c - row) / STEP * STEP);
      const float* weights = weights_.get() + (panel * ROWS + skipped) * PANEL + place;
      const float* slopes = slopes_.get() + (panel * ROWS + skipped) * PANEL + place;
      const float* gradients = gradient_rows_.get() + skipped * value_padded_;
      const float* queries = query_rows_.get() + skipped * key_padded_;
      float* values = value_sums_.get() + c * value_padded_;
      float* keys = key_sums_.get() + c * key_padded_;
      const int64_t depth = rows - skipped;
      if (PANEL - place >= STEP) {
        add_product<STEP>(weights, 1, PANEL, gradients, depth, value_padded_, values);
        add_product<STEP>(slopes, 1, PANEL, queries, depth, key_padded_, keys);
      } else {
        add_product<PANEL % STEP>(weights, 1, PANEL, gradients, depth, value_padded_, values);
        add_product<PANEL % STEP>(slopes, 1, PANEL, queries, depth, key_padded_, keys);
        c += PANEL % STEP - STEP;
      }
    }
  }

  void write_key_gradients(int64_t head) {
    for (int64_t c = 0; c < length_; c++) {
      Number* key = at(p_.key_gradient, first_ + c, p_.key_gradient_row, head, p_.key_width);
      for (int64_t d = 0; d < p_.key_width; d++) write(key_sums_[c * key_padded_ + d], key + d);
      Number* value = at(p_.value_gradient, first_ + c, p_.value_gradient_row, head, p_.value_width);
      for (int64_t d = 0; d < p_.value_width; d++) write(value_sums_[c * value_padded_ + d], value + d);
    }
  }

  const Problem& p_;
  int64_t key_padded_, value_padded_, panels_;
  int64_t first_ = 0, length_ = 0;
  Buffer<float> key_columns_, value_columns_;  // (panels, width, 64)
  Buffer<float> key_rows_, value_rows_;        // (panels * 64, padded)
  Buffer<float> key_sums_, value_sums_;        // (panels * 64, padded), gradients
  Buffer<float> weights_, slopes_;             // (panels, ROWS, 64)
  Buffer<float> queries_, query_rows_;         // (ROWS, K) in units of log 2, and (ROWS, padded), both times the scale
  Buffer<float> gradients_, gradient_rows_;    // (ROWS, V) and (ROWS, padded), of the output
  Buffer<float> sums_;                         // (ROWS, padded)
};

template <class Number>
int run(const Problem& problem) {
  int64_t longest = 1;
  for (int64_t b = 0; b < problem.num_histories; b++) longest = std::max(longest, problem.offsets[b + 1] - problem.offsets[b]);
  const int threads = int(std::max<int64_t>(1, std::min(problem.threads, problem.num_histories)));
  std::vector<std::unique_ptr<Worker<Number>>> workers;
  try {
    for (int thread = 0; thread < threads; thread++) workers.push_back(std::make_unique<Worker<Number>>(problem, longest));
  } catch (const std::bad_alloc&) {
    return 1;
  }
  // Histories are independent of one another, so the results do not depend on who computes which.
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(2)
  for (int64_t history = 0; history < problem.num_histories; history++)
    for (int64_t head = 0; head < problem.num_key_heads; head++) workers[omp_get_thread_num()]->attend(history, head);
  return 0;
}

}  // namespace

extern "C" int causal_attention(const Problem* problem) {
  return problem->in_bfloat16 ? run<BFloat16>(*problem) : run<float>(*problem);
}
