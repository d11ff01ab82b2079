// Causal attention of packed histories, forward and backward, computed in float32. It needs AVX-512.
//
// Histories are not padded: history b has the events offsets[b] .. offsets[b + 1]. Query head h reads key and value head h / (H / G).
// A form (attention.cpp) turns scores into weights W. The backward pass computes the weights again (Dao et al. 2022,
// arXiv:2205.14135, algorithm 4): with o = W v and the gradient do of the output, dW = do v^T, dv = W^T do, and with the gradient dS of
// the scores, which the form computes, dq = scale dS k, dk = scale dS^T q.
//
// A block has ROWS queries of a history and a head. Names: N events, H heads, G heads of keys and values, K head width, V of values.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "numbers.h"
#include "tiles.h"

// In the order of models/compiled/attention.py: _Problem. Rows of an array are `..._row` numbers apart; within a row, heads are contiguous.
struct Problem {
  int64_t num_histories, num_heads, num_key_heads, key_width, value_width, threads, in_bfloat16;
  const int64_t* offsets;  // (B + 1)
  const void *query, *key, *value;
  int64_t query_row, key_row, value_row;
  float* output;                 // (N, H, V)
  const float* output_gradient;  // (N, H, V); null in the forward pass
  void *query_gradient, *key_gradient, *value_gradient;
  int64_t query_gradient_row, key_gradient_row, value_gradient_row;
  float* level;               // (N, H), of each row of weights, see the forms; null for silu
  int64_t num_distances;      // the length of the longest history, or 0
  int64_t num_buckets;        // or 0
  const float* position;      // (H, num_distances), the bias of each distance, or null
  const float* time;          // (H, num_buckets), the bias of each bucket of ages, or null
  const uint8_t* buckets;     // the bucket of each pair, of each history with L events (L, L); 64 more bytes can be read
  const int64_t* first_pair;  // (B + 1), where the pairs of each history begin
  float* position_sums;       // (B, H, num_distances), zeros; the gradients of biases by history
  float* time_sums;           // (B, H, num_buckets), zeros
  float scale;
  float divisor;  // silu: divides the weights
};

constexpr int64_t ROWS = 48;

// A query of a block, and where its numbers are: 64 for each panel of keys.
struct Row {
  int64_t query;   // the place in its history
  int64_t event;   // the place in the batch
  int64_t panels;  // of keys that the block computes for it
  int64_t keys;    // their number, a multiple of 16
  float* scores;
  float* slopes;          // in the backward pass the gradients of weights, otherwise null
  const float* gradient;  // in the backward pass that of the output, otherwise null

  // The number of keys of a panel.
  int64_t keys_of(int64_t panel) const { return std::min(PANEL, keys - panel * PANEL); }
  float* scores_of(int64_t panel, int64_t column) const { return scores + panel * ROWS * PANEL + column; }
  float* slopes_of(int64_t panel, int64_t column) const { return slopes + panel * ROWS * PANEL + column; }
  // The keys that the query sees, of the 16 that begin at a column of a panel.
  __mmask16 seen(int64_t panel, int64_t column) const { return first_of(query + 1 - panel * PANEL - column); }
};

// The working memory of a thread. Form has
//   a constructor (problem, length of the longest history)
//   query_factor(): factor of queries in the products of scores
//   begin(history, head), end(): before and after all queries of a history and a head of queries
//   weigh(row): replaces scores by weights, and returns the factor of the weighted sum of values
//   differentiate(row): replaces scores by weights, and the gradients of weights by those of scores.
template <class Number, class Form>
class Worker {
 public:
  Worker(const Problem& problem, int64_t longest)
      : p_(problem),
        form_(problem, longest),
        key_padded_(round_up(p_.key_width, 16)),
        value_padded_(round_up(p_.value_width, 16)),
        panels_(round_up(longest, PANEL) / PANEL),
        key_columns_(zeros<float>(panels_ * PANEL * key_padded_)),
        value_columns_(zeros<float>(panels_ * PANEL * value_padded_)),
        key_rows_(zeros<float>(panels_ * PANEL * key_padded_)),
        value_rows_(zeros<float>(panels_ * PANEL * value_padded_)),
        key_sums_(zeros<float>(panels_ * PANEL * key_padded_)),
        value_sums_(zeros<float>(panels_ * PANEL * value_padded_)),
        weights_(zeros<float>(panels_ * ROWS * PANEL)),
        slopes_(zeros<float>(panels_ * ROWS * PANEL)),
        queries_(zeros<float>(ROWS * key_padded_)),
        gradients_(zeros<float>(ROWS * value_padded_)),
        sums_(zeros<float>(ROWS * std::max(key_padded_, value_padded_))) {}

  // Attention of one history and one head of keys, for all heads of queries that share it.
  void attend(int64_t history, int64_t key_head) {
    begin(history, key_head);
    const int64_t shared = p_.num_heads / p_.num_key_heads;
    for (int64_t head = key_head * shared; head < (key_head + 1) * shared; head++) {
      form_.begin(history, head);
      for (int64_t row = 0; row < length_; row += ROWS) {
        if (p_.output_gradient == nullptr) forward_block(head, row);
        else backward_block(head, row);
      }
      form_.end();
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
    // Groups of columns and steps of queries end after the last event.
    end_ = std::min(round_up(length_ + STEP, 16), round_up(length_, PANEL));
    pack(p_.key, p_.key_row, head, p_.key_width, key_padded_, key_columns_.get(), key_rows_.get());
    pack(p_.value, p_.value_row, head, p_.value_width, value_padded_, backward ? value_columns_.get() : nullptr, value_rows_.get());
    if (!backward) return;
    std::memset(key_sums_.get(), 0, end_ * key_padded_ * sizeof(float));
    std::memset(value_sums_.get(), 0, end_ * value_padded_ * sizeof(float));
  }

  // Copies a vector times a factor; zeros follow up to `padded` numbers.
  template <class From>
  static void copy(const From* from, int64_t width, float factor, float* to) {
    for (int64_t d = 0; d < width; d += 16) _mm512_store_ps(to + d, _mm512_mul_ps(load(from + d, first_of(width - d)), _mm512_set1_ps(factor)));
  }
  template <class To>
  static void copy_back(const float* from, int64_t width, float factor, To* to) {
    for (int64_t d = 0; d < width; d += 16) store(_mm512_mul_ps(_mm512_load_ps(from + d), _mm512_set1_ps(factor)), to + d, first_of(width - d));
  }

  // Copies keys or values by rows of `padded` numbers, and by panels of columns. Zeros follow the last event.
  void pack(const void* from, int64_t row_size, int64_t head, int64_t width, int64_t padded, float* columns, float* rows) {
    for (int64_t c = 0; c < length_; c++) copy(at(from, first_ + c, row_size, head, width), width, 1.0f, rows + c * padded);
    std::memset(rows + length_ * padded, 0, (end_ - length_) * padded * sizeof(float));
    if (columns == nullptr) return;
    for (int64_t c = 0; c < end_; c += 16)
      for (int64_t d = 0; d < padded; d += 16)
        transpose(rows + c * padded + d, padded, columns + (c / PANEL * padded + d) * PANEL + c % PANEL, PANEL);
  }

  // Copies vectors of the block, times a factor; zeros follow the last event.
  template <class From>
  void load_block(const From* from, int64_t row_size, int64_t width, int64_t row, float factor, float* to, int64_t padded) {
    const int64_t real = std::min(ROWS, length_ - row), end = std::min(ROWS, round_up(real, STEP));
    for (int64_t r = 0; r < real; r++) copy(from + (first_ + row + r) * row_size, width, factor, to + r * padded);
    std::memset(to + real * padded, 0, (end - real) * padded * sizeof(float));
  }

  // The panels of keys that are computed for STEP queries, from this one.
  int64_t panels_for(int64_t query) const { return std::min(panels_of(query + STEP - 1), panels_of(length_ - 1)); }
  // The number of these keys: those that a query sees, and the rest of a group of columns in add_to_keys.
  int64_t keys_for(int64_t query) const { return std::min(round_up(query + 2 * STEP - 1, 16), panels_for(query) * PANEL); }

  // Writes the products of the vectors of the block's queries with columns, (panels, padded, 64), panel by panel, so that one is in the
  // first-level cache for all queries.
  void multiply(const float* vectors, int64_t width, const float* columns, int64_t padded, int64_t row, int64_t rows, float* products) {
    for (int64_t first = 0; first < row + rows; first += PANEL)
      for (int64_t r = first_step(row, first); r < rows; r += STEP)
        score(vectors + r * padded, padded, width, columns + first * padded, products + first * ROWS + r * PANEL, std::min(PANEL, keys_for(row + r) - first));
  }

  // Adds the products of weights and vectors, (panels * 64, padded), to the sums of the block's queries.
  void add_weighted(const float* weights, const float* vectors, int64_t padded, int64_t row, int64_t rows) {
    for (int64_t first = 0; first < row + rows; first += PANEL)
      for (int64_t r = first_step(row, first); r < rows; r += STEP)
        add_product<STEP>(weights + first * ROWS + r * PANEL, PANEL, 1, vectors + first * padded, std::min(PANEL, row + r + STEP - first), padded,
                          sums_.get() + r * padded);
  }

  // The first step of the block's queries that sees a panel.
  static int64_t first_step(int64_t row, int64_t first) { return std::max<int64_t>(0, (first - row) / STEP * STEP); }
  static int64_t panels_of(int64_t query) { return query / PANEL + 1; }

  Row row_of(int64_t row, int64_t r, bool backward) {
    const int64_t step = r / STEP * STEP;
    return {row + r,
            first_ + row + r,
            panels_for(row + step),
            keys_for(row + step),
            weights_.get() + r * PANEL,
            backward ? slopes_.get() + r * PANEL : nullptr,
            backward ? gradients_.get() + r * value_padded_ : nullptr};
  }

  void load_queries(int64_t head, int64_t row) {
    load_block(at(p_.query, 0, 0, head, p_.key_width), p_.query_row, p_.key_width, row, form_.query_factor(), queries_.get(), key_padded_);
  }

  void forward_block(int64_t head, int64_t row) {
    const int64_t rows = std::min(ROWS, length_ - row);
    load_queries(head, row);
    std::memset(sums_.get(), 0, ROWS * value_padded_ * sizeof(float));
    multiply(queries_.get(), p_.key_width, key_columns_.get(), key_padded_, row, rows, weights_.get());
    float factor[ROWS];
    for (int64_t r = 0; r < rows; r++) factor[r] = form_.weigh(row_of(row, r, false));
    add_weighted(weights_.get(), value_rows_.get(), value_padded_, row, rows);
    for (int64_t r = 0; r < rows; r++) {
      float* output = p_.output + ((first_ + row + r) * p_.num_heads + head) * p_.value_width;
      copy_back(sums_.get() + r * value_padded_, p_.value_width, factor[r], output);
    }
  }

  void backward_block(int64_t head, int64_t row) {
    const int64_t rows = std::min(ROWS, length_ - row), heads = p_.num_heads, width = p_.value_width;
    load_queries(head, row);
    load_block(p_.output_gradient + head * width, heads * width, width, row, 1.0f, gradients_.get(), value_padded_);
    std::memset(sums_.get(), 0, ROWS * key_padded_ * sizeof(float));
    multiply(queries_.get(), p_.key_width, key_columns_.get(), key_padded_, row, rows, weights_.get());
    multiply(gradients_.get(), width, value_columns_.get(), value_padded_, row, rows, slopes_.get());
    // The rest of the last step has the zeros of load_block, and what it gives is not used.
    for (int64_t r = 0; r < rows; r++) form_.differentiate(row_of(row, r, true));
    add_weighted(slopes_.get(), key_rows_.get(), key_padded_, row, rows);
    for (int64_t r = 0; r < rows; r++)
      copy_back(sums_.get() + r * key_padded_, p_.key_width, p_.scale, at(p_.query_gradient, first_ + row + r, p_.query_gradient_row, head, p_.key_width));
    add_to_keys(row, rows);
  }

  // Adds what the block contributes to the gradients of keys and values: columns that its queries see, from the first that does.
  void add_to_keys(int64_t row, int64_t rows) {
    for (int64_t c = 0; c < std::min(row + rows, length_); c += STEP) {
      // A group of columns is cut at the end of a panel.
      const int64_t panel = c / PANEL, place = c % PANEL;
      const int64_t skipped = std::max<int64_t>(0, (c - row) / STEP * STEP);
      const float* weights = weights_.get() + (panel * ROWS + skipped) * PANEL + place;
      const float* slopes = slopes_.get() + (panel * ROWS + skipped) * PANEL + place;
      const float* gradients = gradients_.get() + skipped * value_padded_;
      const float* queries = queries_.get() + skipped * key_padded_;
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
    const float factor = p_.scale / form_.query_factor();  // the queries of the sums have the units of scores
    for (int64_t c = 0; c < length_; c++) {
      copy_back(key_sums_.get() + c * key_padded_, p_.key_width, factor, at(p_.key_gradient, first_ + c, p_.key_gradient_row, head, p_.key_width));
      copy_back(value_sums_.get() + c * value_padded_, p_.value_width, 1.0f,
                at(p_.value_gradient, first_ + c, p_.value_gradient_row, head, p_.value_width));
    }
  }

  const Problem& p_;
  Form form_;
  int64_t key_padded_, value_padded_, panels_;
  int64_t first_ = 0, length_ = 0, end_ = 0;
  Buffer<float> key_columns_, value_columns_;  // (panels, padded, 64)
  Buffer<float> key_rows_, value_rows_;        // (panels * 64, padded)
  Buffer<float> key_sums_, value_sums_;        // (panels * 64, padded), gradients
  Buffer<float> weights_, slopes_;             // (panels, ROWS, 64)
  Buffer<float> queries_, gradients_;          // (ROWS, padded), in the units of scores, and of the output
  Buffer<float> sums_;                         // (ROWS, padded)
};

// Returns 0, or 1 if memory does not suffice.
template <class Number, class Form>
int run(const Problem& problem) {
  int64_t longest = 1;
  for (int64_t b = 0; b < problem.num_histories; b++) longest = std::max(longest, problem.offsets[b + 1] - problem.offsets[b]);
  const int threads = int(std::max<int64_t>(1, std::min(problem.threads, problem.num_histories)));
  std::vector<std::unique_ptr<Worker<Number, Form>>> workers;
  try {
    for (int thread = 0; thread < threads; thread++) workers.push_back(std::make_unique<Worker<Number, Form>>(problem, longest));
  } catch (const std::bad_alloc&) {
    return 1;
  }
  // Histories are independent of one another, so the results do not depend on who computes which.
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(2)
  for (int64_t history = 0; history < problem.num_histories; history++)
    for (int64_t head = 0; head < problem.num_key_heads; head++) workers[omp_get_thread_num()]->attend(history, head);
  return 0;
}
