// A whole feed-forward sub-layer with its residual sum: x + dropped(W2 dropped(a(W1 norm(x) + b1)) + b2), and its backward pass.
//
// torch reads and writes whole tensors between norm, products, activation and sum. Here they follow one another in the cache, for some rows
// at a time. The backward pass computes norm, first product and activation again, so that of the inner numbers nothing is kept. Results
// depend on the number of threads, as do those of torch, since each adds the gradients of the weights over its own rows.
//
// Names: N rows, D numbers of a row, W inner width, P = 1, or 2 if the activation is gated: a(first part) * second part. Widths are padded to
// multiples of 16 with zeros. It needs AVX-512.
#include <omp.h>

#include <algorithm>

#include "activations.h"
#include "norm_rows.h"
#include "numbers.h"
#include "tiles.h"

namespace {

constexpr int64_t ROWS = 8 * STEP;  // in the cache at a time

struct FeedForward {
  int64_t rows, width, inner, parts, threads;
  int64_t norm;  // 0: none, 1: layer norm, 2: RMS norm
  float epsilon;
  const float *x, *norm_weight, *norm_bias;                // norm_bias: or null
  const float *into, *into_bias, *out_of, *out_bias;       // (P W, D), (P W), (D, W), (D); biases: or null
  const uint8_t *inner_bytes, *bytes;                      // (N, W), (N, D), or null
  int64_t inner_threshold, threshold;
  float inner_factor, factor;
  float *mean, *scale;          // (N), of the norm
  float* out;                   // (N, D)
  const float* gradient;        // of `out`; null in the forward pass
  float* x_gradient;            // (N, D)
  float *norm_weight_gradient, *norm_bias_gradient, *into_gradient, *into_bias_gradient, *out_of_gradient, *out_bias_gradient;
};

// out (number, columns) with rows of `out_row` numbers += left (number, depth) right (depth, columns); both right and out are padded.
void multiply(const float* left, int64_t left_row, const float* right, int64_t depth, int64_t number, int64_t columns, float* out) {
  for (int64_t i = 0; i < number; i += STEP) add_product<STEP>(left + i * left_row, left_row, 1, right, depth, columns, out + i * columns);
}

// out (number, columns) += left^T right of `rows` rows.
void add_outer(const float* left, int64_t left_row, const float* right, int64_t rows, int64_t number, int64_t columns, float* out) {
  int64_t i = 0;
  for (; i + STEP <= number; i += STEP) add_product<STEP>(left + i, 1, left_row, right, rows, columns, out + i * columns);
  left += i, out += i * columns;
  switch (number - i) {
    case 5: add_product<5>(left, 1, left_row, right, rows, columns, out); break;
    case 4: add_product<4>(left, 1, left_row, right, rows, columns, out); break;
    case 3: add_product<3>(left, 1, left_row, right, rows, columns, out); break;
    case 2: add_product<2>(left, 1, left_row, right, rows, columns, out); break;
    case 1: add_product<1>(left, 1, left_row, right, rows, columns, out); break;
    default: break;
  }
}

// The rows of a matrix, padded.
Buffer<float> padded_rows(const float* from, int64_t rows, int64_t columns, int64_t padded) {
  Buffer<float> result = zeros<float>(rows * padded);
  for (int64_t i = 0; i < rows; i++) std::copy_n(from + i * columns, columns, result.get() + i * padded);
  return result;
}

// The columns of a matrix as rows, padded.
Buffer<float> padded_columns(const float* from, int64_t rows, int64_t columns, int64_t padded) {
  Buffer<float> result = zeros<float>(columns * padded);
  for (int64_t j = 0; j < columns; j++)
    for (int64_t i = 0; i < rows; i++) result[j * padded + i] = from[i * columns + j];
  return result;
}

// Weights as the products read them.
struct Weights {
  Buffer<float> into[2];    // of each part, (D, W)
  Buffer<float> out_of;     // (W, D)
  Buffer<float> into_rows[2], out_of_rows;  // (W, D) of each part, and (D, W), for the backward pass
};

// What a thread holds of some rows, and its sums of gradients.
struct Workspace {
  Buffer<float> normed, hidden[2], slopes[2], activated, said;
  Buffer<float> of_said, of_activated, of_normed;                               // gradients
  Buffer<float> of_into[2], of_into_bias[2], of_out_of, of_out_bias, of_norm_weight, of_norm_bias;  // sums
};

struct Widths {
  int64_t outer, inner;  // padded
};

void normalise(const FeedForward& p, int64_t first, int64_t rows, int64_t padded, bool known, float* normed) {
  for (int64_t r = 0; r < rows; r++) {
    const float* x = p.x + (first + r) * p.width;
    float* out = normed + r * padded;
    if (p.norm == 0) {
      std::copy_n(x, p.width, out);
      continue;
    }
    const RowMoments moments = known           ? RowMoments{p.norm == 1 ? p.mean[first + r] : 0.0f, p.scale[first + r]}
                               : p.norm == 1 ? moments_of<true>(x, p.width, p.epsilon)
                                             : moments_of<false>(x, p.width, p.epsilon);
    if (!known) {
      if (p.norm == 1) p.mean[first + r] = moments.mean;
      p.scale[first + r] = moments.scale;
    }
    write_normed(x, p.width, moments, p.norm_weight, p.norm_bias, out);
  }
}

// Sets the rows to the bias.
void begin(const float* bias, int64_t number, int64_t rows, int64_t padded, float* out) {
  for (int64_t r = 0; r < rows; r++) {
    if (bias == nullptr) std::fill_n(out + r * padded, padded, 0.0f);
    else std::copy_n(bias, number, out + r * padded);  // padding stays 0
  }
}

template <class Function, bool SLOPES>
void activate(const FeedForward& p, int64_t first, int64_t rows, int64_t padded, Workspace& own) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < p.inner; d += 16) {
      const __mmask16 mask = first_of(p.inner - d);
      const int64_t i = r * padded + d;
      const __m512 keep = kept(p.inner_bytes, (first + r) * p.inner + d, mask, p.inner_threshold, p.inner_factor);
      const Slope result = Function::of(_mm512_load_ps(own.hidden[0].get() + i));
      __m512 value = _mm512_mul_ps(result.value, keep), slope = _mm512_mul_ps(result.slope, keep);
      if (p.parts == 2) {
        const __m512 other = _mm512_load_ps(own.hidden[1].get() + i);
        if (SLOPES) _mm512_store_ps(own.slopes[1].get() + i, value);
        value = _mm512_mul_ps(value, other);
        slope = _mm512_mul_ps(slope, other);
      }
      if (SLOPES) _mm512_store_ps(own.slopes[0].get() + i, slope);
      _mm512_store_ps(own.activated.get() + i, _mm512_maskz_mov_ps(mask, value));
    }
}

// Computes the inner numbers of rows, with their slopes for the backward pass.
template <class Function, bool SLOPES>
void compute_inner(const FeedForward& p, const Weights& weights, Widths widths, int64_t first, int64_t rows, Workspace& own) {
  normalise(p, first, rows, widths.outer, SLOPES, own.normed.get());
  for (int64_t part = 0; part < p.parts; part++) {
    begin(p.into_bias == nullptr ? nullptr : p.into_bias + part * p.inner, p.inner, ROWS, widths.inner, own.hidden[part].get());
    multiply(own.normed.get(), widths.outer, weights.into[part].get(), p.width, rows, widths.inner, own.hidden[part].get());
  }
  activate<Function, SLOPES>(p, first, rows, widths.inner, own);
}

template <class Function>
void compute(const FeedForward& p, const Weights& weights, Widths widths, int64_t first, int64_t rows, Workspace& own) {
  compute_inner<Function, false>(p, weights, widths, first, rows, own);
  begin(p.out_bias, p.width, ROWS, widths.outer, own.said.get());
  multiply(own.activated.get(), widths.inner, weights.out_of.get(), p.inner, rows, widths.outer, own.said.get());
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < p.width; d += 16) {
      const __mmask16 mask = first_of(p.width - d);
      const int64_t place = (first + r) * p.width + d;
      const __m512 dropped = _mm512_mul_ps(_mm512_load_ps(own.said.get() + r * widths.outer + d),
                                           kept(p.bytes, place, mask, p.threshold, p.factor));
      store(_mm512_add_ps(load(p.x + place, mask), dropped), p.out + place, mask);
    }
}

// Multiplies `values` by slopes and adds the rows to `sums`.
void scale_and_sum(int64_t rows, int64_t padded, const float* values, const float* slopes, float* scaled, float* sums) {
  for (int64_t d = 0; d < padded; d += 16) {
    __m512 sum = _mm512_load_ps(sums + d);
    for (int64_t r = 0; r < rows; r++) {
      const __m512 product = _mm512_mul_ps(_mm512_load_ps(values + r * padded + d), _mm512_load_ps(slopes + r * padded + d));
      sum = _mm512_add_ps(sum, product);
      _mm512_store_ps(scaled + r * padded + d, product);
    }
    _mm512_store_ps(sums + d, sum);
  }
}

template <class Function>
void differentiate(const FeedForward& p, const Weights& weights, Widths widths, int64_t first, int64_t rows, Workspace& own) {
  compute_inner<Function, true>(p, weights, widths, first, rows, own);
  for (int64_t d = 0; d < p.width; d += 16) {
    const __mmask16 mask = first_of(p.width - d);
    __m512 sum = _mm512_load_ps(own.of_out_bias.get() + d);
    for (int64_t r = 0; r < rows; r++) {
      const int64_t place = (first + r) * p.width + d;
      const __m512 of_said = _mm512_maskz_mul_ps(mask, load(p.gradient + place, mask), kept(p.bytes, place, mask, p.threshold, p.factor));
      sum = _mm512_add_ps(sum, of_said);
      _mm512_store_ps(own.of_said.get() + r * widths.outer + d, of_said);
    }
    _mm512_store_ps(own.of_out_bias.get() + d, sum);
  }
  add_outer(own.of_said.get(), widths.outer, own.activated.get(), rows, p.width, widths.inner, own.of_out_of.get());
  begin(nullptr, 0, ROWS, widths.inner, own.of_activated.get());
  multiply(own.of_said.get(), widths.outer, weights.out_of_rows.get(), p.width, rows, widths.inner, own.of_activated.get());
  begin(nullptr, 0, ROWS, widths.outer, own.of_normed.get());
  for (int64_t part = 0; part < p.parts; part++) {
    float* of_hidden = own.hidden[part].get();  // in place of what it was computed from
    scale_and_sum(rows, widths.inner, own.of_activated.get(), own.slopes[part].get(), of_hidden, own.of_into_bias[part].get());
    add_outer(of_hidden, widths.inner, own.normed.get(), rows, p.inner, widths.outer, own.of_into[part].get());
    multiply(of_hidden, widths.inner, weights.into_rows[part].get(), p.inner, rows, widths.outer, own.of_normed.get());
  }
  const int64_t place = first * p.width;
  const float *x = p.x + place, *gradient = p.gradient + place, *of_normed = own.of_normed.get();
  float* of_x = p.x_gradient + place;
  float* of_norm_bias = p.norm_bias == nullptr ? nullptr : own.of_norm_bias.get();
  if (p.norm == 1)
    differentiate_norm<true>(rows, p.width, x, p.norm_weight, p.mean + first, p.scale + first, of_normed, widths.outer, gradient, of_x,
                             own.of_norm_weight.get(), of_norm_bias);
  else if (p.norm == 2)
    differentiate_norm<false>(rows, p.width, x, p.norm_weight, nullptr, p.scale + first, of_normed, widths.outer, gradient, of_x,
                              own.of_norm_weight.get(), of_norm_bias);
  else
    for (int64_t r = 0; r < rows; r++)
      for (int64_t d = 0; d < p.width; d++) of_x[r * p.width + d] = gradient[r * p.width + d] + of_normed[r * widths.outer + d];
}

Workspace workspace_of(const FeedForward& p, Widths widths) {
  Workspace own;
  const int64_t outer = ROWS * widths.outer, inner = ROWS * widths.inner;
  own.normed = zeros<float>(outer);
  own.activated = zeros<float>(inner);
  own.said = zeros<float>(outer);
  for (int64_t part = 0; part < p.parts; part++) own.hidden[part] = zeros<float>(inner);
  if (p.gradient == nullptr) return own;
  own.of_said = zeros<float>(outer);
  own.of_activated = zeros<float>(inner);
  own.of_normed = zeros<float>(outer);
  for (int64_t part = 0; part < p.parts; part++) {
    own.slopes[part] = zeros<float>(inner);
    own.of_into[part] = zeros<float>(p.inner * widths.outer);
    own.of_into_bias[part] = zeros<float>(widths.inner);
  }
  own.of_out_of = zeros<float>(p.width * widths.inner);
  own.of_out_bias = zeros<float>(widths.outer);
  own.of_norm_weight = zeros<float>(widths.outer);
  own.of_norm_bias = zeros<float>(widths.outer);
  return own;
}

// Adds a padded matrix to a matrix, or nothing if there is none.
void add_rows(const float* from, int64_t rows, int64_t columns, int64_t padded, float* to) {
  if (to == nullptr) return;
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) to[i * columns + j] += from[i * padded + j];
}

// Adds the sums of a thread to those of all.
void add_sums(const FeedForward& p, Widths widths, const Workspace& own) {
  for (int64_t part = 0; part < p.parts; part++) {
    add_rows(own.of_into[part].get(), p.inner, p.width, widths.outer, p.into_gradient + part * p.inner * p.width);
    float* of_bias = p.into_bias_gradient == nullptr ? nullptr : p.into_bias_gradient + part * p.inner;
    add_rows(own.of_into_bias[part].get(), 1, p.inner, widths.inner, of_bias);
  }
  add_rows(own.of_out_of.get(), p.width, p.inner, widths.inner, p.out_of_gradient);
  add_rows(own.of_out_bias.get(), 1, p.width, widths.outer, p.out_bias_gradient);
  add_rows(own.of_norm_weight.get(), 1, p.width, widths.outer, p.norm_weight_gradient);
  add_rows(own.of_norm_bias.get(), 1, p.width, widths.outer, p.norm_bias_gradient);
}

template <class Function>
void feed_forward(const FeedForward& p) {
  const Widths widths{round_up(p.width, 16), round_up(p.inner, 16)};
  const bool backward = p.gradient != nullptr;
  Weights weights;
  for (int64_t part = 0; part < p.parts; part++) {
    const float* into = p.into + part * p.inner * p.width;
    weights.into[part] = padded_columns(into, p.inner, p.width, widths.inner);
    if (backward) weights.into_rows[part] = padded_rows(into, p.inner, p.width, widths.outer);
  }
  if (backward) weights.out_of_rows = padded_rows(p.out_of, p.width, p.inner, widths.inner);
  else weights.out_of = padded_columns(p.out_of, p.width, p.inner, widths.outer);
  const int64_t tiles = (p.rows + ROWS - 1) / ROWS, threads = std::min(p.threads, tiles);
  std::unique_ptr<Workspace[]> own(new Workspace[threads]);
#pragma omp parallel for num_threads(int(threads)) schedule(static, 1)
  for (int64_t thread = 0; thread < threads; thread++) {
    own[thread] = workspace_of(p, widths);
    for (int64_t tile = tiles * thread / threads; tile < tiles * (thread + 1) / threads; tile++) {
      const int64_t first = tile * ROWS, rows = std::min(ROWS, p.rows - first);
      if (backward) differentiate<Function>(p, weights, widths, first, rows, own[thread]);
      else compute<Function>(p, weights, widths, first, rows, own[thread]);
    }
  }
  if (backward)
    for (int64_t thread = 0; thread < threads; thread++) add_sums(p, widths, own[thread]);
}

// Returns whether there was enough memory.
template <class Function>
int run(const FeedForward& p) {
  try {
    feed_forward<Function>(p);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

}  // namespace

// Suffix: the activation. Gradients of weights are added to zeros of the caller. They return 1 if there is not enough memory.
extern "C" int feed_forward_relu(const FeedForward* problem) { return run<Relu>(*problem); }
extern "C" int feed_forward_gelu(const FeedForward* problem) { return run<Gelu>(*problem); }
extern "C" int feed_forward_silu(const FeedForward* problem) { return run<Silu>(*problem); }
