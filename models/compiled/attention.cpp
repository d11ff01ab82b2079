// Forms of the causal attention of attention.h: softmax, SiLU (HSTU), sparsemax and entmax, each with or without biases.
#include "attention.h"

namespace {

// Biases of scores by the distance of positions and by the age of the key. Their gradients are summed by history and head, and then
// over histories in order, so that they do not depend on the threads.
class Biases {
 public:
  Biases(const Problem& problem, int64_t longest)
      : p_(problem),
        position_(zeros<float>(longest + PANEL)),
        time_(zeros<float>(NUM_BYTES)),
        position_sums_(zeros<float>(longest + PANEL)),
        time_sums_(zeros<float>(NUM_SUMS * NUM_BYTES)) {}

  // factor: of biases, the units of scores.
  void begin(int64_t history, int64_t head, float factor) {
    history_ = history;
    head_ = head;
    length_ = p_.offsets[history + 1] - p_.offsets[history];
    // By place of the key, so that 16 keys are read at once: the bias of key c and query q is at length - 1 - q + c.
    if (p_.position != nullptr)
      for (int64_t i = 0; i < length_; i++) position_[i] = factor * p_.position[head * p_.num_distances + length_ - 1 - i];
    if (p_.time != nullptr) {
      for (int64_t b = 0; b < p_.num_buckets; b++) time_[b] = factor * p_.time[head * p_.num_buckets + b];
      buckets_ = p_.buckets + p_.first_pair[history];
    }
    if (p_.output_gradient == nullptr) return;
    std::memset(position_sums_.get(), 0, (length_ + PANEL) * sizeof(float));
    std::memset(time_sums_.get(), 0, NUM_SUMS * NUM_BYTES * sizeof(float));
  }

  void end() {
    if (p_.output_gradient == nullptr) return;
    if (p_.position != nullptr) {
      float* sums = p_.position_sums + (history_ * p_.num_heads + head_) * p_.num_distances;
      for (int64_t i = 0; i < length_; i++) sums[i] = position_sums_[length_ - 1 - i];
    }
    if (p_.time != nullptr) {
      float* sums = p_.time_sums + (history_ * p_.num_heads + head_) * p_.num_buckets;
      for (int64_t b = 0; b < p_.num_buckets; b++)
        for (int64_t i = 0; i < NUM_SUMS; i++) sums[b] += time_sums_[i * NUM_BYTES + b];
    }
  }

  bool any() const { return p_.position != nullptr || p_.time != nullptr; }

  // Returns 16 scores with their biases.
  __m512 added(const Row& row, int64_t panel, int64_t column) const {
    __m512 scores = _mm512_load_ps(row.scores_of(panel, column));
    const int64_t key = panel * PANEL + column;
    if (key > row.query) return scores;
    if (p_.position != nullptr) scores = _mm512_add_ps(scores, _mm512_loadu_ps(position_.get() + length_ - 1 - row.query + key));
    if (p_.time != nullptr) {
      const __m512i bucket = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(buckets_of(row, panel, column))));
      scores = _mm512_add_ps(scores, _mm512_i32gather_ps(bucket, time_.get(), 4));
    }
    return scores;
  }

  // Adds the gradients of 16 scores, which row.slopes has as well, to those of biases.
  void add_gradients(const Row& row, int64_t panel, int64_t column, __m512 of_score) {
    const int64_t key = panel * PANEL + column;
    if (key > row.query) return;
    if (p_.position != nullptr) {
      float* sums = position_sums_.get() + length_ - 1 - row.query + key;
      _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_loadu_ps(sums), of_score));
    }
    if (p_.time != nullptr) {
      const uint8_t* buckets = buckets_of(row, panel, column);
      const float* slopes = row.slopes_of(panel, column);
      const int64_t number = std::min<int64_t>(16, row.query + 1 - key);
      for (int64_t i = 0; i < number; i++) time_sums_[i % NUM_SUMS * NUM_BYTES + buckets[i]] += slopes[i];
    }
  }

 private:
  static constexpr int64_t NUM_BYTES = 256;  // numbers of a byte: the reads of buckets beyond a row stay within the table
  static constexpr int64_t NUM_SUMS = 4;     // neighbours often share a bucket, and a sum would wait for the one before

  const uint8_t* buckets_of(const Row& row, int64_t panel, int64_t column) const {
    return buckets_ + row.query * length_ + panel * PANEL + column;
  }

  const Problem& p_;
  int64_t history_ = 0, head_ = 0, length_ = 0;
  const uint8_t* buckets_ = nullptr;
  Buffer<float> position_;       // of the head, by place of the key
  Buffer<float> time_;           // of the head, by bucket
  Buffer<float> position_sums_;  // of the head and the history, by place of the key
  Buffer<float> time_sums_;      // (NUM_SUMS, 256), likewise
};

// The parts of forms whose weights sum to one. `level` has a number of each row of the forward pass. Scores are in units of 1 / factor.
class Normalised {
 public:
  Normalised(const Problem& problem, int64_t longest, float factor) : p_(problem), biases_(problem, longest), factor_(factor) {}

  float query_factor() const { return p_.scale * factor_; }
  void begin(int64_t history, int64_t head) {
    head_ = head;
    biases_.begin(history, head, factor_);
  }
  void end() { biases_.end(); }

 protected:
  float& level(const Row& row) const { return p_.level[row.event * p_.num_heads + head_]; }

  // Adds biases to the scores of a row, and returns the largest that the query sees.
  float with_biases(const Row& row) const {
    __m512 highest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for (int64_t panel = 0; panel < row.panels; panel++)
      for (int64_t c = 0; c < row.keys_of(panel); c += 16) {
        const __m512 scores = biases_.added(row, panel, c);
        if (biases_.any()) _mm512_store_ps(row.scores_of(panel, c), scores);
        highest = _mm512_mask_max_ps(highest, row.seen(panel, c), highest, scores);
      }
    return _mm512_reduce_max_ps(highest);
  }

  const Problem& p_;
  Biases biases_;

 private:
  float factor_;
  int64_t head_ = 0;
};

// Softmax. Scores are in units of log 2. The level of a row is the log of its sum of exponentials. The backward pass computes
// dS = W (dW - sum(o do)).
class Softmax : public Normalised {
 public:
  Softmax(const Problem& problem, int64_t longest) : Normalised(problem, longest, LOG2_E) {}

  float weigh(const Row& row) {
    const float largest = with_biases(row);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t panel = 0; panel < row.panels; panel++)
      for (int64_t c = 0; c < row.keys_of(panel); c += 16) {
        float* scores = row.scores_of(panel, c);
        const __m512 distance = _mm512_sub_ps(_mm512_load_ps(scores), _mm512_set1_ps(largest));
        const __m512 weight = _mm512_maskz_mov_ps(row.seen(panel, c), power_of_2(distance));
        sum = _mm512_add_ps(sum, weight);
        _mm512_store_ps(scores, weight);
      }
    const float total = _mm512_reduce_add_ps(sum);
    level(row) = largest + std::log2(total);
    return 1.0f / total;
  }

  void differentiate(const Row& row) {
    const float* output = p_.output + (&level(row) - p_.level) * p_.value_width;
    float inner = 0.0f;
#pragma omp simd reduction(+ : inner)
    for (int64_t d = 0; d < p_.value_width; d++) inner += output[d] * row.gradient[d];
    const __m512 log_total = _mm512_set1_ps(level(row));
    for (int64_t panel = 0; panel < row.panels; panel++)
      for (int64_t c = 0; c < row.keys_of(panel); c += 16) {
        float *scores = row.scores_of(panel, c), *slopes = row.slopes_of(panel, c);
        const __mmask16 seen = row.seen(panel, c);
        const __m512 weight = _mm512_maskz_mov_ps(seen, power_of_2(_mm512_sub_ps(biases_.added(row, panel, c), log_total)));
        const __m512 of_score = _mm512_maskz_mul_ps(seen, weight, _mm512_sub_ps(_mm512_load_ps(slopes), _mm512_set1_ps(inner)));
        _mm512_store_ps(scores, weight);
        _mm512_store_ps(slopes, of_score);
        biases_.add_gradients(row, panel, c, of_score);
      }
  }
};

// Weights above a threshold t: W = max(0, S - t) (sparsemax; Martins & Astudillo 2016, arXiv:1602.02068), or
// W = max(0, S / 2 - t)^2 (entmax with alpha 1.5; Peters, Niculae & Martins 2019, arXiv:1905.05702). They sum to one. The level of a row is
// its threshold, of scores whose largest is 0. With the slope D, 1 where W > 0 (sparsemax) or the root of W (entmax), dS = D (dW - sum(D dW) / sum(D)).
//
// Newton's method begins below the threshold, where the weights are too large, and no round goes beyond it, because the function is
// convex and falls (for entmax the root of the sum of squares). It ends like that of models/attention/normalise.py.
template <bool SQUARE>
class Thresholded : public Normalised {
 public:
  Thresholded(const Problem& problem, int64_t longest) : Normalised(problem, longest, SQUARE ? 0.5f : 1.0f) {}

  float weigh(const Row& row) {
    shift(row);
    float threshold = -1.0f;
    for (int round = 0; round < MAX_ROUNDS; round++) {
      const float step = newton_step(row, threshold);
      threshold += step;
      if (!(step > -ROUNDING * std::numeric_limits<float>::epsilon() * threshold)) break;
    }
    level(row) = threshold;
    const __m512 lowest = _mm512_set1_ps(threshold);
    for (int64_t panel = 0; panel < row.panels; panel++)
      for (int64_t c = 0; c < row.keys_of(panel); c += 16) {
        const __m512 above = above_of(row, panel, c, lowest);
        _mm512_store_ps(row.scores_of(panel, c), SQUARE ? _mm512_mul_ps(above, above) : above);
      }
    return 1.0f;
  }

  void differentiate(const Row& row) {
    shift(row);
    const __m512 lowest = _mm512_set1_ps(level(row));
    __m512 products = _mm512_setzero_ps(), sum = _mm512_setzero_ps();
    for (int64_t panel = 0; panel < row.panels; panel++)
      for (int64_t c = 0; c < row.keys_of(panel); c += 16) {
        const __m512 above = above_of(row, panel, c, lowest), slope = slope_of(above);
        products = _mm512_fmadd_ps(slope, _mm512_load_ps(row.slopes_of(panel, c)), products);
        sum = _mm512_add_ps(sum, slope);
        _mm512_store_ps(row.scores_of(panel, c), above);
      }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(products) / _mm512_reduce_add_ps(sum));
    for (int64_t panel = 0; panel < row.panels; panel++)
      for (int64_t c = 0; c < row.keys_of(panel); c += 16) {
        float *scores = row.scores_of(panel, c), *slopes = row.slopes_of(panel, c);
        const __m512 above = _mm512_load_ps(scores);
        const __m512 of_score = _mm512_mul_ps(slope_of(above), _mm512_sub_ps(_mm512_load_ps(slopes), mean));
        _mm512_store_ps(scores, SQUARE ? _mm512_mul_ps(above, above) : above);
        _mm512_store_ps(slopes, of_score);
        biases_.add_gradients(row, panel, c, of_score);
      }
  }

 private:
  static constexpr int MAX_ROUNDS = 60;
  static constexpr float ROUNDING = 8.0f;  // units in the last place of the threshold that count as no step

  // Makes the largest score 0, so that a large one does not cost precision.
  void shift(const Row& row) const {
    const __m512 largest = _mm512_set1_ps(with_biases(row));
    for (int64_t panel = 0; panel < row.panels; panel++)
      for (int64_t c = 0; c < row.keys_of(panel); c += 16) {
        float* scores = row.scores_of(panel, c);
        _mm512_store_ps(scores, _mm512_sub_ps(_mm512_load_ps(scores), largest));
      }
  }

  static __m512 above_of(const Row& row, int64_t panel, int64_t column, __m512 lowest) {
    const __m512 distance = _mm512_sub_ps(_mm512_load_ps(row.scores_of(panel, column)), lowest);
    // The order of the operands makes NaN pass: max returns the second one.
    return _mm512_maskz_max_ps(row.seen(panel, column), _mm512_setzero_ps(), distance);
  }
  static __m512 slope_of(__m512 above) {
    if (SQUARE) return above;
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(above, _mm512_setzero_ps(), _CMP_NLE_UQ), _mm512_set1_ps(1.0f));
  }

  static float newton_step(const Row& row, float threshold) {
    const __m512 lowest = _mm512_set1_ps(threshold);
    __m512 weights = _mm512_setzero_ps(), slopes = _mm512_setzero_ps();
    for (int64_t panel = 0; panel < row.panels; panel++)
      for (int64_t c = 0; c < row.keys_of(panel); c += 16) {
        const __m512 above = above_of(row, panel, c, lowest);
        weights = SQUARE ? _mm512_fmadd_ps(above, above, weights) : _mm512_add_ps(weights, above);
        slopes = _mm512_add_ps(slopes, slope_of(above));
      }
    const float weight = _mm512_reduce_add_ps(weights), slope = _mm512_reduce_add_ps(slopes);
    if (!SQUARE) return (weight - 1.0f) / slope;
    const float norm = std::sqrt(weight);
    return (norm - 1.0f) * norm / slope;
  }
};

// SiLU of scores, without normalisation: W = silu(S) / divisor, dS = dW silu'(S) / divisor.
class Silu {
 public:
  Silu(const Problem& problem, int64_t longest) : p_(problem), biases_(problem, longest) {}

  float query_factor() const { return p_.scale; }
  void begin(int64_t history, int64_t head) { biases_.begin(history, head, 1.0f); }
  void end() { biases_.end(); }

  float weigh(const Row& row) {
    for (int64_t panel = 0; panel < row.panels; panel++)
      for (int64_t c = 0; c < row.keys_of(panel); c += 16) {
        const __m512 scores = biases_.added(row, panel, c);
        _mm512_store_ps(row.scores_of(panel, c), _mm512_maskz_mul_ps(row.seen(panel, c), scores, sigmoid(scores)));
      }
    return 1.0f / p_.divisor;
  }

  void differentiate(const Row& row) {
    const __m512 one = _mm512_set1_ps(1.0f), factor = _mm512_set1_ps(1.0f / p_.divisor);
    for (int64_t panel = 0; panel < row.panels; panel++)
      for (int64_t c = 0; c < row.keys_of(panel); c += 16) {
        const __mmask16 seen = row.seen(panel, c);
        const __m512 scores = biases_.added(row, panel, c), share = sigmoid(scores);
        const __m512 weight = _mm512_mul_ps(scores, share);
        // silu'(s) = sigmoid(s) (1 + s (1 - sigmoid(s)))
        const __m512 slope = _mm512_mul_ps(share, _mm512_fmadd_ps(scores, _mm512_sub_ps(one, share), one));
        const __m512 of_weight = _mm512_mul_ps(_mm512_load_ps(row.slopes_of(panel, c)), factor);
        const __m512 of_score = _mm512_maskz_mul_ps(seen, of_weight, slope);
        _mm512_store_ps(row.scores_of(panel, c), _mm512_maskz_mul_ps(seen, weight, factor));
        _mm512_store_ps(row.slopes_of(panel, c), of_score);
        biases_.add_gradients(row, panel, c, of_score);
      }
  }

 private:
  const Problem& p_;
  Biases biases_;
};

template <class Form>
int attend(const Problem& problem) {
  return problem.in_bfloat16 ? run<BFloat16, Form>(problem) : run<float, Form>(problem);
}

}  // namespace

extern "C" int softmax_attention(const Problem* problem) { return attend<Softmax>(*problem); }

extern "C" int sparsemax_attention(const Problem* problem) { return attend<Thresholded<false>>(*problem); }

extern "C" int entmax15_attention(const Problem* problem) { return attend<Thresholded<true>>(*problem); }

extern "C" int silu_attention(const Problem* problem) { return attend<Silu>(*problem); }

// Writes the bucket of each pair of a query and a key that it sees, of each history (L, L) one after another.
// Bucket b begins at age bounds[b - 1], and the ages of the keys of a query mostly fall, so that a search begins at the last bucket.
extern "C" void age_buckets(const int64_t* offsets, int64_t num_histories, const int64_t* first_pair, const int64_t* times, const int64_t* requests,
                            const int64_t* bounds, int64_t num_bounds, uint8_t* buckets, int64_t threads) {
#pragma omp parallel for num_threads(int(threads)) schedule(dynamic)
  for (int64_t history = 0; history < num_histories; history++) {
    const int64_t first = offsets[history], length = offsets[history + 1] - first;
    for (int64_t query = 0; query < length; query++) {
      uint8_t* row = buckets + first_pair[history] + query * length;
      int64_t bucket = num_bounds;
      for (int64_t key = 0; key <= query; key++) {
        const int64_t age = std::max<int64_t>(0, requests[first + query] - times[first + key]);
        while (bucket > 0 && age < bounds[bucket - 1]) bucket--;
        while (bucket < num_bounds && age >= bounds[bucket]) bucket++;
        row[key] = uint8_t(bucket);
      }
    }
  }
}
