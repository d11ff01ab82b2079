// A whole feed-forward sub-layer with its residual sum: x + dropped(W2 dropped(a(W1 norm(x) + b1)) + b2), and its backward pass.
//
// torch reads and writes whole tensors between norm, products, activation and sum. Here they follow one another in the cache, for some rows
// at a time. The backward pass computes norm, first product and activation again, so that of the inner numbers nothing is kept. Results
// depend on the number of threads, as do those of torch, since each adds the gradients of the weights over its own rows.
//
// Names: N rows, D numbers of a row, W inner width, P = 1, or 2 if the activation is gated: a(first part) * second part. Widths are padded to
// multiples of 16 with zeros. It needs AVX-512.
#include <algorithm>

#include "activations.h"
#include "numbers.h"
#include "row_products.h"
#include "tiles.h"

namespace {

struct FeedForward {
  int64_t rows, width, inner, parts, threads;
  RowNorm norm;
  const float* x;
  const float *into, *into_bias, *out_of, *out_bias;       // (P W, D), (P W), (D, W), (D); biases: or null
  const uint8_t *inner_bytes, *bytes;                      // (N, W), (N, D), or null
  int64_t inner_threshold, threshold;
  float inner_factor, factor;
  float* out;                   // (N, D)
  const float* gradient;        // of `out`; null in the forward pass
  float* x_gradient;            // (N, D)
  float *norm_weight_gradient, *norm_bias_gradient, *into_gradient, *into_bias_gradient, *out_of_gradient, *out_bias_gradient;
};

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
  normalise(p.norm, p.x, p.width, first, rows, widths.outer, SLOPES, own.normed.get());
  for (int64_t part = 0; part < p.parts; part++) {
    const float* bias = p.into_bias == nullptr ? nullptr : p.into_bias + part * p.inner;
    write_product(own.normed.get(), widths.outer, weights.into[part].get(), p.width, rows, p.inner, bias, own.hidden[part].get(), widths.inner);
  }
  activate<Function, SLOPES>(p, first, rows, widths.inner, own);
}

template <class Function>
void compute(const FeedForward& p, const Weights& weights, Widths widths, int64_t first, int64_t rows, Workspace& own) {
  compute_inner<Function, false>(p, weights, widths, first, rows, own);
  write_product(own.activated.get(), widths.inner, weights.out_of.get(), p.inner, rows, p.width, p.out_bias, own.said.get(), widths.outer);
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
  write_product(own.of_said.get(), widths.outer, weights.out_of_rows.get(), p.width, rows, p.inner, nullptr, own.of_activated.get(),
                widths.inner);
  for (int64_t part = 0; part < p.parts; part++) {
    float* of_hidden = own.hidden[part].get();  // in place of what it was computed from
    scale_and_sum(rows, widths.inner, own.of_activated.get(), own.slopes[part].get(), of_hidden, own.of_into_bias[part].get());
    add_outer(of_hidden, widths.inner, own.normed.get(), rows, p.inner, widths.outer, own.of_into[part].get());
    const float* weight = weights.into_rows[part].get();
    if (part == 0)
      write_product(of_hidden, widths.inner, weight, p.inner, rows, p.width, nullptr, own.of_normed.get(), widths.outer);
    else
      for (int64_t r = 0; r < rows; r += STEP)  // of rows that do not exist too
        add_product<STEP>(of_hidden + r * widths.inner, widths.inner, 1, weight, p.inner, widths.outer, own.of_normed.get() + r * widths.outer);
  }
  differentiate_norm(p.norm, p.x, p.width, first, rows, own.of_normed.get(), widths.outer, p.gradient, p.x_gradient, own.of_norm_weight.get(),
                     own.of_norm_bias.get());
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
  int64_t threads = p.threads;
  const auto own = for_rows<Workspace>(
      p.rows, threads, [&] { return workspace_of(p, widths); },
      [&](int64_t first, int64_t rows, Workspace& own) {
        if (backward) differentiate<Function>(p, weights, widths, first, rows, own);
        else compute<Function>(p, weights, widths, first, rows, own);
      });
  if (backward)
    for (int64_t thread = 0; thread < threads; thread++) add_sums(p, widths, own[thread]);
}

// Returns whether there was not enough memory.
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
