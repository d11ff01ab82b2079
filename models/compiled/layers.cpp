// Layers of an encoder between its matrix products: residual sums with dropout and gate, activations with dropout, and norms.
//
// torch reads and writes whole tensors for every operation of these. Here one pass does all of a layer. Random bytes come from the caller;
// a byte below `threshold` drops its number, and `factor` scales the others. Forward passes write the slopes by which backward passes
// multiply, so that these need neither inputs nor exponentials. Results do not depend on the number of threads.
//
// Names: N rows, D numbers of a row. Numbers are float or bfloat16, and all computation is in float32. It needs AVX-512.
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "activations.h"
#include "norm_rows.h"
#include "numbers.h"

namespace {

constexpr int64_t CHUNK = 1 << 14;      // numbers that a thread takes at a time
constexpr int64_t ROWS_OF_SUM = 512;    // rows whose gradients of a norm's weights are summed before those of others
constexpr int64_t TILE = 8;             // rows
constexpr int64_t LANES = 16;

// Calls body(row, d, place, mask) for each 16 numbers of rows: they begin at number d of the row, and at `place` of a contiguous array.
template <class Body>
void each_vector(int64_t rows, int64_t width, int64_t threads, Body body) {
  const int64_t size = std::max<int64_t>(1, CHUNK / width), chunks = (rows + size - 1) / size;
#pragma omp parallel for num_threads(int(threads)) schedule(static) if (chunks > 1)
  for (int64_t chunk = 0; chunk < chunks; chunk++)
    for (int64_t row = chunk * size; row < std::min(rows, (chunk + 1) * size); row++)
      for (int64_t d = 0; d < width; d += LANES) body(row, d, row * width + d, first_of(width - d));
}

struct Sum {
  int64_t rows, width, threads;
  const float* x;              // or null
  const void *said, *gate;     // gate: before the sigmoid, or null
  const float* bias;           // (D), of said, or null
  const uint8_t* bytes;        // or null
  int64_t threshold;
  float factor;
  void* out;
  void *said_slope, *gate_slope;  // with a gate, of the sum, or null
};

template <class Number, class Out>
void sum_of(const Sum& p) {
  const Number *said = static_cast<const Number*>(p.said), *gate = static_cast<const Number*>(p.gate);
  each_vector(p.rows, p.width, p.threads, [&](int64_t, int64_t d, int64_t i, __mmask16 mask) {
    const __m512 keep = kept(p.bytes, i, mask, p.threshold, p.factor);
    __m512 dropped = load(said + i, mask);
    if (p.bias != nullptr) dropped = _mm512_add_ps(dropped, load(p.bias + d, mask));
    dropped = _mm512_mul_ps(dropped, keep);
    if (gate != nullptr) {
      const __m512 share = sigmoid(load(gate + i, mask));
      if (p.gate_slope != nullptr) {
        const __m512 of_gate = _mm512_mul_ps(dropped, _mm512_mul_ps(share, _mm512_sub_ps(_mm512_set1_ps(1.0f), share)));
        store(of_gate, static_cast<Number*>(p.gate_slope) + i, mask);
        store(_mm512_mul_ps(share, keep), static_cast<Number*>(p.said_slope) + i, mask);
      }
      dropped = _mm512_mul_ps(share, dropped);
    }
    if (p.x != nullptr) dropped = _mm512_add_ps(load(p.x + i, mask), dropped);
    store(dropped, static_cast<Out*>(p.out) + i, mask);
  });
}

struct Activation {
  int64_t rows, width, gated, threads;  // width: of an output row; of a gated input row half the numbers
  const void* hidden;
  const float* bias;     // as wide as the input, or null
  const uint8_t* bytes;  // or null
  int64_t threshold;
  float factor;
  void *out, *slopes;  // slopes, as wide as the input, or null
};

template <class Number, class Function>
void activate(const Activation& p) {
  const int64_t parts = p.gated ? 2 : 1;
  each_vector(p.rows, p.width, p.threads, [&](int64_t row, int64_t d, int64_t i, __mmask16 mask) {
    const int64_t first = row * parts * p.width + d, second = first + p.width;
    const __m512 keep = kept(p.bytes, i, mask, p.threshold, p.factor);
    const Number* hidden = static_cast<const Number*>(p.hidden);
    Number* slopes = static_cast<Number*>(p.slopes);
    __m512 input = load(hidden + first, mask);
    if (p.bias != nullptr) input = _mm512_add_ps(input, load(p.bias + d, mask));
    const Slope result = Function::of(input);
    __m512 value = _mm512_mul_ps(result.value, keep), slope = _mm512_mul_ps(result.slope, keep);
    if (p.gated) {
      __m512 other = load(hidden + second, mask);
      if (p.bias != nullptr) other = _mm512_add_ps(other, load(p.bias + p.width + d, mask));
      if (slopes != nullptr) store(value, slopes + second, mask);
      value = _mm512_mul_ps(value, other);
      slope = _mm512_mul_ps(slope, other);
    }
    if (slopes != nullptr) store(slope, slopes + first, mask);
    store(value, static_cast<Number*>(p.out) + i, mask);
  });
}

// The backward pass of sums and activations: the gradient of a row times each part of its slopes, or times what was kept.
struct Scaled {
  int64_t rows, width, parts, threads;
  const void* gradient;  // (N, D)
  const void* slopes;    // (N, parts, D), or null
  const uint8_t* bytes;  // (N, D), without slopes, or null
  int64_t threshold;
  float factor;
  void* out;    // (N, parts, D)
  float* sums;  // (ceil(N / ROWS_OF_SUM), parts, D), the sums of rows, or null
};

template <class Number, class Out>
void scale_by_slopes(const Scaled& p) {
  const int64_t groups = (p.rows + ROWS_OF_SUM - 1) / ROWS_OF_SUM, size = p.parts * p.width;
#pragma omp parallel for num_threads(int(p.threads)) schedule(static) if (groups > 1)
  for (int64_t group = 0; group < groups; group++) {
    const int64_t end = std::min(p.rows, (group + 1) * ROWS_OF_SUM);
    if (p.sums != nullptr) std::fill_n(p.sums + group * size, size, 0.0f);
    for (int64_t first = group * ROWS_OF_SUM; first < end; first += TILE)
      for (int64_t part = 0; part < p.parts; part++)
        for (int64_t d = 0; d < p.width; d += LANES) {
          const __mmask16 mask = first_of(p.width - d);
          __m512 sum = _mm512_setzero_ps();
          for (int64_t row = first; row < std::min(end, first + TILE); row++) {
            const int64_t i = row * p.width + d, place = row * size + part * p.width + d;
            const __m512 slope = p.slopes == nullptr ? kept(p.bytes, i, mask, p.threshold, p.factor)
                                                     : load(static_cast<const Out*>(p.slopes) + place, mask);
            const __m512 scaled = _mm512_mul_ps(load(static_cast<const Number*>(p.gradient) + i, mask), slope);
            sum = _mm512_add_ps(sum, scaled);
            store(scaled, static_cast<Out*>(p.out) + place, mask);
          }
          if (p.sums == nullptr) continue;
          float* sums = p.sums + group * size + part * p.width + d;
          store(_mm512_add_ps(load(sums, mask), sum), sums, mask);
        }
  }
}

struct Norm {
  int64_t rows, width, centred, threads;  // centred: layer norm, otherwise RMS norm
  const float *x, *weight, *bias;         // bias: or null
  float epsilon;
  void* out;
  float *mean, *scale;  // of each row (N); the mean of a layer norm only
  const void* out_gradient;
  const float* kept_gradient;                           // (N, D), is added to the gradient of x, or null
  float *x_gradient, *weight_gradient, *bias_gradient;  // the latter (ceil(N / ROWS_OF_SUM), D)
};

template <class Out, bool CENTRED>
void normalise(const Norm& p) {
#pragma omp parallel for num_threads(int(p.threads)) schedule(static) if (p.rows * p.width > CHUNK)
  for (int64_t row = 0; row < p.rows; row++) {
    const float* x = p.x + row * p.width;
    const RowMoments moments = moments_of<CENTRED>(x, p.width, p.epsilon);
    if (CENTRED) p.mean[row] = moments.mean;
    p.scale[row] = moments.scale;
    write_normed(x, p.width, moments, p.weight, p.bias, static_cast<Out*>(p.out) + row * p.width);
  }
}

template <class Out, bool CENTRED>
void differentiate(const Norm& p) {
  const int64_t groups = (p.rows + ROWS_OF_SUM - 1) / ROWS_OF_SUM;
#pragma omp parallel for num_threads(int(p.threads)) schedule(static) if (p.rows * p.width > CHUNK)
  for (int64_t group = 0; group < groups; group++) {
    float* weight_sums = p.weight_gradient + group * p.width;
    float* bias_sums = p.bias_gradient == nullptr ? nullptr : p.bias_gradient + group * p.width;
    std::fill_n(weight_sums, p.width, 0.0f);
    if (bias_sums != nullptr) std::fill_n(bias_sums, p.width, 0.0f);
    const int64_t first = group * ROWS_OF_SUM, rows = std::min(ROWS_OF_SUM, p.rows - first), place = first * p.width;
    const Out* gradient = static_cast<const Out*>(p.out_gradient) + place;
    const float* kept_gradient = p.kept_gradient == nullptr ? nullptr : p.kept_gradient + place;
    differentiate_norm<CENTRED>(rows, p.width, p.x + place, p.weight, CENTRED ? p.mean + first : nullptr, p.scale + first, gradient, p.width,
                                kept_gradient, p.x_gradient + place, weight_sums, bias_sums);
  }
}

template <class Out>
void norm_of(const Norm& p) {
  if (p.out_gradient == nullptr) p.centred ? normalise<Out, true>(p) : normalise<Out, false>(p);
  else p.centred ? differentiate<Out, true>(p) : differentiate<Out, false>(p);
}

}  // namespace

// A residual sum x + sigmoid(gate) * dropped(said + bias), float if there is an x. Suffix: the numbers of said and gate.
extern "C" void sum_float(const Sum* problem) { sum_of<float, float>(*problem); }
extern "C" void sum_bfloat16(const Sum* problem) { problem->x == nullptr ? sum_of<BFloat16, BFloat16>(*problem) : sum_of<BFloat16, float>(*problem); }

// dropped(activation(hidden + bias)), or for a gated one dropped(activation(first half) * second half).
extern "C" void relu_float(const Activation* problem) { activate<float, Relu>(*problem); }
extern "C" void gelu_float(const Activation* problem) { activate<float, Gelu>(*problem); }
extern "C" void silu_float(const Activation* problem) { activate<float, Silu>(*problem); }
extern "C" void relu_bfloat16(const Activation* problem) { activate<BFloat16, Relu>(*problem); }
extern "C" void gelu_bfloat16(const Activation* problem) { activate<BFloat16, Gelu>(*problem); }
extern "C" void silu_bfloat16(const Activation* problem) { activate<BFloat16, Silu>(*problem); }

// The backward pass of these. Suffixes: the numbers of the gradient, and of slopes and result.
extern "C" void scaled_float_float(const Scaled* problem) { scale_by_slopes<float, float>(*problem); }
extern "C" void scaled_float_bfloat16(const Scaled* problem) { scale_by_slopes<float, BFloat16>(*problem); }
extern "C" void scaled_bfloat16_bfloat16(const Scaled* problem) { scale_by_slopes<BFloat16, BFloat16>(*problem); }

// A layer norm or an RMS norm of rows, or with the gradient of its output its backward pass.
extern "C" void norm_float(const Norm* problem) { norm_of<float>(*problem); }
extern "C" void norm_bfloat16(const Norm* problem) { norm_of<BFloat16>(*problem); }
