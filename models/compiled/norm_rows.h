// Layer norms and RMS norms of rows, which are computed in float32. It needs AVX-512.
//
// With CENTRED it is a layer norm: the mean of a row is subtracted. Names: D numbers of a row.
#pragma once

#include <algorithm>
#include <cmath>

#include "numbers.h"

struct RowMoments {
  float mean, scale;  // of an RMS norm the mean is 0
};

template <bool CENTRED>
RowMoments moments_of(const float* x, int64_t width, float epsilon) {
  const float share = 1.0f / float(width);
  float mean = 0.0f;
  if (CENTRED) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t d = 0; d < width; d += 16) sum = _mm512_add_ps(sum, load(x + d, first_of(width - d)));
    mean = _mm512_reduce_add_ps(sum) * share;
  }
  const __m512 centre = _mm512_set1_ps(mean);
  __m512 squares = _mm512_setzero_ps();
  for (int64_t d = 0; d < width; d += 16) {
    const __mmask16 mask = first_of(width - d);
    const __m512 distance = _mm512_maskz_sub_ps(mask, load(x + d, mask), centre);
    squares = _mm512_fmadd_ps(distance, distance, squares);
  }
  return {mean, 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) * share + epsilon)};
}

// bias: or null
template <class Out>
void write_normed(const float* x, int64_t width, RowMoments moments, const float* weight, const float* bias, Out* out) {
  const __m512 centre = _mm512_set1_ps(moments.mean), scale = _mm512_set1_ps(moments.scale);
  for (int64_t d = 0; d < width; d += 16) {
    const __mmask16 mask = first_of(width - d);
    __m512 normed = _mm512_mul_ps(_mm512_sub_ps(load(x + d, mask), centre), scale);
    normed = _mm512_mul_ps(normed, load(weight + d, mask));
    if (bias != nullptr) normed = _mm512_add_ps(normed, load(bias + d, mask));
    store(normed, out + d, mask);
  }
}

constexpr int64_t NORM_TILE = 8;  // rows

// The backward pass. With n the normed row and g = weight * dy: dx = scale (g - mean(g) - n mean(g n)) + kept, where mean(g) is left out in an
// RMS norm. A tile of rows stays in the cache, and its sums for the weights in registers.
//
// gradient: of the normed rows, with `gradient_row` numbers from one row to the next. kept: another gradient of x, or null. The sums of the
// weights' gradients are added to weight_sums and bias_sums, (D); the latter is null without a bias. mean: null of an RMS norm.
template <bool CENTRED, class Out>
void differentiate_norm(int64_t num_rows, int64_t width, const float* x, const float* weight, const float* mean, const float* scales,
                        const Out* gradient, int64_t gradient_row, const float* kept, float* x_gradient, float* weight_sums,
                        float* bias_sums) {
  const float share = 1.0f / float(width);
  for (int64_t first = 0; first < num_rows; first += NORM_TILE) {
    const int64_t rows = std::min(NORM_TILE, num_rows - first);
    __m512 of_mean[NORM_TILE], of_scale[NORM_TILE];
    for (int64_t r = 0; r < rows; r++) {
      const float* row = x + (first + r) * width;
      const Out* of_row = gradient + (first + r) * gradient_row;
      const __m512 centre = _mm512_set1_ps(CENTRED ? mean[first + r] : 0.0f);
      __m512 sum = _mm512_setzero_ps(), products = _mm512_setzero_ps();
      for (int64_t d = 0; d < width; d += 16) {
        const __mmask16 mask = first_of(width - d);
        const __m512 weighted = _mm512_mul_ps(load(of_row + d, mask), load(weight + d, mask));
        sum = _mm512_add_ps(sum, weighted);
        products = _mm512_fmadd_ps(weighted, _mm512_sub_ps(load(row + d, mask), centre), products);
      }
      of_mean[r] = _mm512_set1_ps(CENTRED ? _mm512_reduce_add_ps(sum) * share : 0.0f);
      of_scale[r] = _mm512_set1_ps(_mm512_reduce_add_ps(products) * scales[first + r] * share);
    }
    for (int64_t d = 0; d < width; d += 16) {
      const __mmask16 mask = first_of(width - d);
      const __m512 own_weight = load(weight + d, mask);
      __m512 weight_sum = load(weight_sums + d, mask), bias_sum = _mm512_setzero_ps();
      for (int64_t r = 0; r < rows; r++) {
        const int64_t place = (first + r) * width + d;
        const __m512 scale = _mm512_set1_ps(scales[first + r]), centre = _mm512_set1_ps(CENTRED ? mean[first + r] : 0.0f);
        const __m512 normed = _mm512_mul_ps(_mm512_sub_ps(load(x + place, mask), centre), scale);
        const __m512 of_out = load(gradient + (first + r) * gradient_row + d, mask);
        weight_sum = _mm512_fmadd_ps(of_out, normed, weight_sum);
        bias_sum = _mm512_add_ps(of_out, bias_sum);
        const __m512 centred = _mm512_sub_ps(_mm512_mul_ps(of_out, own_weight), of_mean[r]);
        __m512 of_x = _mm512_mul_ps(_mm512_fnmadd_ps(normed, of_scale[r], centred), scale);
        if (kept != nullptr) of_x = _mm512_add_ps(of_x, load(kept + place, mask));
        store(of_x, x_gradient + place, mask);
      }
      store(weight_sum, weight_sums + d, mask);
      if (bias_sums != nullptr) store(_mm512_add_ps(load(bias_sums + d, mask), bias_sum), bias_sums + d, mask);
    }
  }
}
