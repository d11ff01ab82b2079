// Losses of targets against candidates that all targets share, with both gradients, in blocks of targets and chunks of candidates.
// It needs AVX-512.
//
// Softmax cross-entropy:
//
// Of every target t the kernels compute log Z_t, Z_t = sum_c exp(s_tc) (+ exp(own_t)), with the scores
// s_tc = user_t . item_c * scale - shift_c, and with p_tc = exp(s_tc) / Z_t the products
// user_gradient = scale P V and item_gradient = scale P^T U. If the targets are given, the gradients are those of log Z_t - own_t, with 1 less
// at the target: targets among the candidates, or vectors of their own, which have a gradient then. Otherwise the caller adds what follows
// from own_t.
//
// Exponentials are powers of 2 of s - r with an integer reference r_t >= own_t, so that a change of r is exact. Weights are not divided
// by Z: the rows of U are, which are D / C as many numbers. A score that is larger than r by LIMIT makes the block start again
// with a larger r, which is rare. Up to Kernel::CHUNK candidates the scores are computed once; more candidates are taken in chunks,
// once to sum exponentials and once for the gradients.
//
// Binary cross-entropy of candidates that are no targets: total_t = sum_c log(1 + exp(s_tc)), with the weights sigmoid(s_tc) in place of
// p_tc. They need no sum, so that every chunk is taken once.
//
// Names: T targets, C candidates, D width. A panel has 64 candidates. A block has Kernel::ROWS targets.
#pragma once

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "tiles.h"

constexpr float LIMIT = 64.0f;  // 2^64 times a few million stays far below the largest float

// In the order of models/compiled/softmax.py: Problem. All arrays are contiguous.
struct Problem {
  int64_t num_targets, num_candidates, width, threads;
  const float* user;           // (T, D)
  const float* item;           // (C, D)
  const int64_t* target;       // (T), the target among the candidates, or null
  const float* positive;       // (T, D), the vectors of targets that are not among the candidates, or null
  float* own;                  // (T), the score of the target itself, which is computed if `target` or `positive` is given
  const float* shift;          // (C) or null
  const int64_t* hit_order;    // candidates by id, or null: candidates hit_order[first .. first + count] of a target are left out
  const int64_t* hit_first;    // (T)
  const int64_t* hit_count;    // (T)
  float* total;                // (T), log Z, or the sum of a binary loss
  float* user_gradient;        // (T, D)
  float* item_gradient;        // (C, D)
  float* positive_gradient;    // (T, D), with `positive`
  int64_t own_counts;          // whether exp(own) is in Z in addition to the candidates
  float scale;
};

// Some of the candidates. Kernels add the forms in which they read the vectors.
struct Chunk {
  int64_t first, count, panels;
  uint64_t last_panel() const { return count % PANEL ? (uint64_t(1) << (count % PANEL)) - 1 : ~uint64_t(0); }

  // Gives each number of the candidates in some panels to `write(candidate, place, number)`, and writes their shifts in units of log 2.
  // Zeros follow the last candidate.
  template <class Write>
  void read(const Problem& problem, int64_t begin, int64_t end, float* shift, const Write& write) const {
    for (int64_t c = begin * PANEL; c < end * PANEL; c++) {
      const bool real = c < count;
      const float* vector = problem.item + (first + c) * problem.width;
      for (int64_t d = 0; d < problem.width; d++) write(c, d, real ? vector[d] : 0.0f);
      shift[c] = real && problem.shift != nullptr ? problem.shift[first + c] * LOG2_E : 0.0f;
    }
  }
};

// 16 terms of a binary loss: log(1 + exp(x)), and the weights sigmoid(x). x is in units of log 2.
inline __m512 binary_term(__m512 x, __m512& weight) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 power = power_of_2(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
  const __m512 share = _mm512_div_ps(one, _mm512_add_ps(one, power));
  weight = _mm512_mask_mul_ps(share, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), share, power);
  // log(1 + p) = 2 artanh(p / (2 + p)), with |p / (2 + p)| <= 1 / 3: the terms left out are below 2^-26 of the result.
  const __m512 ratio = _mm512_div_ps(power, _mm512_add_ps(power, _mm512_set1_ps(2.0f)));
  const __m512 square = _mm512_mul_ps(ratio, ratio);
  __m512 series = _mm512_set1_ps(1.0f / 13.0f);
  for (const float number : {11.0f, 9.0f, 7.0f, 5.0f, 3.0f, 1.0f}) series = _mm512_fmadd_ps(series, square, _mm512_set1_ps(1.0f / number));
  const __m512 above = _mm512_mul_ps(_mm512_max_ps(_mm512_setzero_ps(), x), _mm512_set1_ps(LN_2));
  return _mm512_fmadd_ps(_mm512_add_ps(ratio, ratio), series, above);
}

// Targets of a block: references and sums in units of log 2, and which candidates count.
template <int64_t ROWS>
struct Block {
  int64_t first = 0, count = 0;
  float reference[ROWS], largest[ROWS];
  __m512 sums[ROWS];        // of exponentials, or of binary losses, by lane
  Buffer<uint64_t> kept;    // (panels, ROWS), a bit for each candidate of a panel
  bool has_hits = false;

  void clear() {
    for (int64_t r = 0; r < ROWS; r++) {
      sums[r] = _mm512_setzero_ps();
      largest[r] = reference[r];
    }
  }

  void find_kept(const Problem& problem, const Chunk& chunk) {
    has_hits = problem.hit_order != nullptr;
    if (has_hits) std::fill_n(kept.get(), (chunk.panels - 1) * ROWS, ~uint64_t(0));
    std::fill_n(kept.get() + (chunk.panels - 1) * ROWS, ROWS, chunk.last_panel());
    for (int64_t r = 0; has_hits && r < count; r++) {
      const int64_t* hit = problem.hit_order + problem.hit_first[first + r];
      for (int64_t i = 0; i < problem.hit_count[first + r]; i++) {
        const int64_t place = hit[i] - chunk.first;
        if (place < 0 || place >= chunk.count) continue;
        kept[place / PANEL * ROWS + r] &= ~(uint64_t(1) << (place % PANEL));
      }
    }
  }
};

// Runs `Kernel` over blocks and chunks. Kernel has
//   BINARY, whether the loss is a binary one
//   ROWS, CHUNK, and Items: a Chunk with pack(problem, first panel, last panel) and unpack(problem, gradients of threads)
//   a constructor (problem, panels); start() and end() of a thread's work
//   load_users(problem, block); weigh(block, items, with_users): exponentials, true if a score is above LIMIT
//   user_row(r): sum of weights times candidates; set_row(problem, block, r, factor): the target's vector, times factor
//   add_items(items): weights times the vectors of set_row, added to item_sums.
template <class Kernel>
class Driver {
 public:
  explicit Driver(const Problem& problem) : problem_(problem), items_(problem, chunk_size()) {
    blocks_ = (problem.num_targets + Kernel::ROWS - 1) / Kernel::ROWS;
    threads_ = int(std::max<int64_t>(1, std::min(problem.threads, blocks_)));
    reference_ = zeros<float>(problem.num_targets);
    total_ = zeros<float>(problem.num_targets);
    for (int thread = 0; thread < threads_; thread++) {
      kernels_.push_back(std::make_unique<Kernel>(problem, items_.panels));
      blocks_of_.push_back(std::make_unique<Block<Kernel::ROWS>>());
      blocks_of_.back()->kept = zeros<uint64_t>(items_.panels * Kernel::ROWS);
    }
  }

  void run() {
    begin_rows();
    const int64_t size = chunk_size();
    const bool once = Kernel::BINARY || size >= problem_.num_candidates;
    for (int pass = once ? 1 : 0; pass < 2; pass++)
      for (int64_t first = 0; first < problem_.num_candidates; first += size) {
        items_.first = first;
        items_.count = std::min(size, problem_.num_candidates - first);
        items_.panels = round_up(items_.count, PANEL) / PANEL;
        run_chunk(once || pass == 0, pass == 1);
      }
    end_rows();
  }

 private:
  // Chunks of nearly equal sizes, so that the last one is not small.
  int64_t chunk_size() const {
    const int64_t number = (problem_.num_candidates + Kernel::CHUNK - 1) / Kernel::CHUNK;
    return round_up((problem_.num_candidates + number - 1) / number, PANEL);
  }

  // The vector of the target, or null.
  const float* target_of(int64_t t) const {
    if (problem_.target != nullptr) return problem_.item + problem_.target[t] * problem_.width;
    return problem_.positive == nullptr ? nullptr : problem_.positive + t * problem_.width;
  }

  void begin_rows() {
    if (Kernel::BINARY) return;
    const int64_t width = problem_.width;
#pragma omp parallel for num_threads(threads_) schedule(static)
    for (int64_t t = 0; t < problem_.num_targets; t++) {
      if (const float* item = target_of(t)) {
        const float* user = problem_.user + t * width;
        float score = 0.0f;
#pragma omp simd reduction(+ : score)
        for (int64_t d = 0; d < width; d++) score += user[d] * item[d];
        problem_.own[t] = score * problem_.scale;
      }
      const float own = problem_.own[t] * LOG2_E;
      reference_[t] = std::ceil(own == -std::numeric_limits<float>::infinity() ? -1e30f : own);
      if (problem_.own_counts) total_[t] = std::exp2(own - reference_[t]);
    }
  }

  void end_rows() {
    const int64_t width = problem_.width;
    for (int64_t t = 0; problem_.target != nullptr && t < problem_.num_targets; t++) {
      float* gradient = problem_.item_gradient + problem_.target[t] * width;
      for (int64_t d = 0; d < width; d++) gradient[d] -= problem_.scale * problem_.user[t * width + d];
    }
  }

  void run_chunk(bool sums, bool gradients) {
#pragma omp parallel num_threads(threads_)
    {
      const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
      items_.pack(problem_, items_.panels * thread / threads, items_.panels * (thread + 1) / threads);
#pragma omp barrier
      // Work is dealt by number of kernels, so that results do not depend on how many threads the system grants.
      for (int64_t part = thread; part < threads_; part += threads) {
        Kernel& kernel = *kernels_[part];
        kernel.start(gradients);
        for (int64_t b = blocks_ * part / threads_; b < blocks_ * (part + 1) / threads_; b++)
          run_block(kernel, *blocks_of_[part], b, sums, gradients);
        kernel.end();
      }
    }
    if (gradients) items_.unpack(problem_, kernels_);
  }

  void run_block(Kernel& kernel, Block<Kernel::ROWS>& block, int64_t number, bool sums, bool gradients) {
    block.first = number * Kernel::ROWS;
    block.count = std::min(Kernel::ROWS, problem_.num_targets - block.first);
    for (int64_t r = 0; r < Kernel::ROWS; r++) block.reference[r] = r < block.count ? reference_[block.first + r] : 0.0f;
    block.find_kept(problem_, items_);
    kernel.load_users(problem_, block);
    block.clear();
    while (kernel.weigh(block, items_, gradients)) {
      for (int64_t r = 0; r < Kernel::ROWS; r++) {
        const float larger = std::ceil(block.largest[r]), smaller = block.reference[r];
        block.reference[r] = larger;
        if (r >= block.count) continue;
        reference_[block.first + r] = larger;
        total_[block.first + r] *= std::exp2(smaller - larger);
      }
      block.clear();
    }
    for (int64_t r = 0; r < block.count; r++) {
      float& total = total_[block.first + r];
      if (sums) total += _mm512_reduce_add_ps(block.sums[r]);
      if (gradients) finish_row(kernel, block, r, total);
    }
    if (gradients) kernel.add_items(block, items_);
  }

  void finish_row(Kernel& kernel, const Block<Kernel::ROWS>& block, int64_t r, float total) {
    const int64_t t = block.first + r;
    const float factor = Kernel::BINARY ? problem_.scale : problem_.scale / total;
    problem_.total[t] = Kernel::BINARY ? total : (block.reference[r] + std::log2(total)) * LN_2;
    float* gradient = problem_.user_gradient + t * problem_.width;
    const float* sums = kernel.user_row(r);
    if (items_.first == 0) begin_gradient(t, factor, block.reference[r]);
    for (int64_t d = 0; d < problem_.width; d++) gradient[d] += sums[d] * factor;
    kernel.set_row(problem_, block, r, factor);
  }

  // Writes the part of a target's gradients that follows from its own score.
  void begin_gradient(int64_t t, float factor, float reference) {
    const int64_t width = problem_.width;
    float* gradient = problem_.user_gradient + t * width;
    const float* item = Kernel::BINARY ? nullptr : target_of(t);
    if (item == nullptr) {
      std::fill_n(gradient, width, 0.0f);
      return;
    }
    const float share = problem_.own_counts ? factor * std::exp2(problem_.own[t] * LOG2_E - reference) : 0.0f;
    const float of_own = share - problem_.scale;
    for (int64_t d = 0; d < width; d++) gradient[d] = of_own * item[d];
    if (problem_.positive == nullptr) return;
    const float* user = problem_.user + t * width;
    for (int64_t d = 0; d < width; d++) problem_.positive_gradient[t * width + d] = of_own * user[d];
  }

  const Problem& problem_;
  typename Kernel::Items items_;
  int64_t blocks_ = 0;
  int threads_ = 1;
  Buffer<float> reference_, total_;  // (T)
  std::vector<std::unique_ptr<Kernel>> kernels_;
  std::vector<std::unique_ptr<Block<Kernel::ROWS>>> blocks_of_;
};

// Returns 0, or 1 if memory does not suffice.
template <class Kernel>
int run(const Problem& problem) {
  try {
    Driver<Kernel>(problem).run();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
