// Activations with their slopes, and dropout, of 16 numbers. It needs AVX-512.
#pragma once

#include "numbers.h"
#include "tiles.h"

// Returns `factor` for the numbers that are kept, and 0 for the others.
inline __m512 kept(const uint8_t* bytes, int64_t first, __mmask16 mask, int64_t threshold, float factor) {
  if (bytes == nullptr) return _mm512_set1_ps(1.0f);
  const __m512i drawn = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, bytes + first));
  return _mm512_maskz_mov_ps(_mm512_cmpge_epi32_mask(drawn, _mm512_set1_epi32(int(threshold))), _mm512_set1_ps(factor));
}

struct Slope {
  __m512 value, slope;
};

struct Relu {
  static Slope of(__m512 x) {
    const __m512 zero = _mm512_setzero_ps();
    // NaN passes, as in torch: max returns its second operand.
    return {_mm512_max_ps(zero, x), _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, zero, _CMP_GT_OQ), _mm512_set1_ps(1.0f))};
  }
};

struct Silu {
  static Slope of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), share = sigmoid(x);
    // silu'(x) = sigmoid(x) (1 + x (1 - sigmoid(x)))
    return {_mm512_mul_ps(x, share), _mm512_mul_ps(share, _mm512_fmadd_ps(x, _mm512_sub_ps(one, share), one))};
  }
};

// x Phi(x), with the slope Phi(x) + x phi(x) (Hendrycks & Gimpel 2016, arXiv:1606.08415). The error function is equation 7.1.26 of Abramowitz &
// Stegun, within 1.5e-7. It has the exponential of phi.
struct Gelu {
  static Slope of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 size = _mm512_abs_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678f)));
    const __m512 power = power_of_2(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f * LOG2_E)));
    const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(size, _mm512_set1_ps(0.3275911f), one));
    __m512 sum = _mm512_set1_ps(1.061405429f);
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(-1.453152027f));
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(1.421413741f));
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(-0.284496736f));
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(0.254829592f));
    const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(sum, t), _mm512_mul_ps(power, _mm512_set1_ps(0.5f)));  // Phi(-|x|)
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 share = _mm512_mask_mov_ps(_mm512_sub_ps(one, tail), negative, tail);
    // Where x^2 is infinite the slope would be infinity times 0.
    const __m512 density = _mm512_mul_ps(power, _mm512_set1_ps(0.39894228f));
    const __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-32.0f), _mm512_min_ps(_mm512_set1_ps(32.0f), x));
    return {_mm512_mul_ps(x, share), _mm512_fmadd_ps(bounded, density, share)};
  }
};
