// The products around an attention: W norm(x) in front of it, and x + dropped(W seen + b) behind it, forward and backward.
//
// A library's products of narrow matrices reach half of the processor's peak, and norm, dropout and sum pass over the rows again. Here all of
// this is one pass, with some rows in the cache. Results depend on the number of threads, as do those of torch, since each adds the gradients
// of the weights over its own rows.
//
// Names: N rows, D width of the residual stream, S numbers of a projected row, V numbers that a row has seen. Widths are padded to multiples
// of 16 with zeros. It needs AVX-512.
#include <algorithm>

#include "activations.h"
#include "row_products.h"

namespace {

struct Projection {
  int64_t rows, width, size, threads;  // N, D, S
  RowNorm norm;
  const float *x, *weight;      // (N, D), (S, D)
  float* out;                   // (N, S)
  const float* gradient;        // of `out`; null in the forward pass
  const float* kept_gradient;   // (N, D), another gradient of x, or null
  float* x_gradient;            // (N, D)
  float *norm_weight_gradient, *norm_bias_gradient, *weight_gradient;
};

struct Sum {
  int64_t rows, width, size, threads;  // N, D, V
  const float *x, *seen, *weight, *bias;  // (N, D), (N, V), (D, V), (D) or null
  const uint8_t* bytes;                   // (N, D), or null
  int64_t threshold;
  float factor;
  float* out;             // (N, D)
  const float* gradient;  // of `out`; null in the forward pass
  float* seen_gradient;   // (N, V)
  float *weight_gradient, *bias_gradient;
};

// Rows of a matrix, padded.
void copy_padded(const float* from, int64_t rows, int64_t columns, int64_t padded, float* to) {
  for (int64_t r = 0; r < rows; r++) std::copy_n(from + r * columns, columns, to + r * padded);
}

// What a thread holds of some rows, and its sums of gradients.
struct Workspace {
  Buffer<float> inner, outer;                        // rows of the residual stream, and of the other width
  Buffer<float> of_weight, of_norm_weight, of_bias;  // sums
};

void project(const Projection& p) {
  const int64_t outer = round_up(p.width, 16), inner = round_up(p.size, 16);
  int64_t threads = p.threads;
  const Buffer<float> weight = padded_columns(p.weight, p.size, p.width, inner);  // (D, S)
  for_rows<Workspace>(
      p.rows, threads, [&] { return Workspace{nullptr, zeros<float>(ROWS * outer)}; },
      [&](int64_t first, int64_t rows, Workspace& own) {
        normalise(p.norm, p.x, p.width, first, rows, outer, false, own.outer.get());
        write_product(own.outer.get(), outer, weight.get(), p.width, rows, p.size, nullptr, p.out + first * p.size, p.size);
      });
}

void differentiate_projection(const Projection& p) {
  const int64_t outer = round_up(p.width, 16);
  int64_t threads = p.threads;
  const Buffer<float> weight = padded_rows(p.weight, p.size, p.width, outer);  // (S, D)
  const auto own = for_rows<Workspace>(
      p.rows, threads,
      [&] {
        return Workspace{nullptr, zeros<float>(2 * ROWS * outer), zeros<float>(p.size * outer), zeros<float>(outer),
                         zeros<float>(outer)};
      },
      [&](int64_t first, int64_t rows, Workspace& own) {
        float *normed = own.outer.get(), *of_normed = normed + ROWS * outer;
        normalise(p.norm, p.x, p.width, first, rows, outer, true, normed);
        const float* gradient = p.gradient + first * p.size;
        add_outer(gradient, p.size, normed, rows, p.size, outer, own.of_weight.get());
        write_product(gradient, p.size, weight.get(), p.size, rows, p.width, nullptr, of_normed, outer);
        differentiate_norm(p.norm, p.x, p.width, first, rows, of_normed, outer, p.kept_gradient, p.x_gradient, own.of_norm_weight.get(),
                           own.of_bias.get());
      });
  for (int64_t thread = 0; thread < threads; thread++) {
    add_rows(own[thread].of_weight.get(), p.size, p.width, outer, p.weight_gradient);
    add_rows(own[thread].of_norm_weight.get(), 1, p.width, outer, p.norm_weight_gradient);
    add_rows(own[thread].of_bias.get(), 1, p.width, outer, p.norm_bias_gradient);
  }
}

void add(const Sum& p) {
  const int64_t outer = round_up(p.width, 16);
  int64_t threads = p.threads;
  const Buffer<float> weight = padded_columns(p.weight, p.width, p.size, outer);  // (V, D)
  for_rows<Workspace>(
      p.rows, threads, [&] { return Workspace{nullptr, zeros<float>(ROWS * outer)}; },
      [&](int64_t first, int64_t rows, Workspace& own) {
        const float* seen = p.seen + first * p.size;
        write_product(seen, p.size, weight.get(), p.size, rows, p.width, p.bias, own.outer.get(), outer);
        for (int64_t r = 0; r < rows; r++)
          for (int64_t d = 0; d < p.width; d += 16) {
            const __mmask16 mask = first_of(p.width - d);
            const int64_t place = (first + r) * p.width + d;
            const __m512 keep = kept(p.bytes, place, mask, p.threshold, p.factor);
            const __m512 dropped = _mm512_mul_ps(_mm512_load_ps(own.outer.get() + r * outer + d), keep);
            store(_mm512_add_ps(load(p.x + place, mask), dropped), p.out + place, mask);
          }
      });
}

void differentiate_sum(const Sum& p) {
  const int64_t outer = round_up(p.width, 16), inner = round_up(p.size, 16);
  int64_t threads = p.threads;
  const Buffer<float> weight = padded_rows(p.weight, p.width, p.size, inner);  // (D, V)
  const auto own = for_rows<Workspace>(
      p.rows, threads,
      [&] {
        return Workspace{zeros<float>(ROWS * inner), zeros<float>(ROWS * outer), zeros<float>(p.width * inner), nullptr, zeros<float>(outer)};
      },
      [&](int64_t first, int64_t rows, Workspace& own) {
        float *seen = own.inner.get(), *of_said = own.outer.get();
        copy_padded(p.seen + first * p.size, rows, p.size, inner, seen);
        for (int64_t d = 0; d < p.width; d += 16) {
          const __mmask16 mask = first_of(p.width - d);
          __m512 sum = _mm512_load_ps(own.of_bias.get() + d);
          for (int64_t r = 0; r < rows; r++) {
            const int64_t place = (first + r) * p.width + d;
            const __m512 keep = kept(p.bytes, place, mask, p.threshold, p.factor);
            const __m512 gradient = _mm512_maskz_mul_ps(mask, load(p.gradient + place, mask), keep);
            sum = _mm512_add_ps(sum, gradient);
            _mm512_store_ps(of_said + r * outer + d, gradient);
          }
          _mm512_store_ps(own.of_bias.get() + d, sum);
        }
        add_outer(of_said, outer, seen, rows, p.width, inner, own.of_weight.get());
        write_product(of_said, outer, weight.get(), p.width, rows, p.size, nullptr, p.seen_gradient + first * p.size, p.size);
      });
  for (int64_t thread = 0; thread < threads; thread++) {
    add_rows(own[thread].of_weight.get(), p.width, p.size, inner, p.weight_gradient);
    add_rows(own[thread].of_bias.get(), 1, p.width, outer, p.bias_gradient);
  }
}

// Returns whether there was not enough memory.
template <class Problem>
int run(const Problem& p, void (*forward)(const Problem&), void (*backward)(const Problem&)) {
  try {
    if (p.gradient == nullptr) forward(p);
    else backward(p);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

}  // namespace

// Gradients of weights are added to zeros of the caller. They return 1 if there is not enough memory.
extern "C" int projection(const Projection* problem) { return run(*problem, project, differentiate_projection); }
extern "C" int projected_sum(const Sum* problem) { return run(*problem, add, differentiate_sum); }
