// Numbers in memory: float, or bfloat16, the upper half of one. Both are computed with in float32. It needs AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

using BFloat16 = uint16_t;

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

// Of 16 numbers the first ones: none if `number` is not positive.
inline __mmask16 first_of(int64_t number) { return number >= 16 ? __mmask16(0xffff) : number <= 0 ? __mmask16(0) : __mmask16((1u << number) - 1); }

// 16 numbers, of which the mask has those that exist. The others are 0, and are not written.
inline __m512 load(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
inline __m512 load(const BFloat16* from, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}
inline void store(__m512 value, float* to, __mmask16 mask) { _mm512_mask_storeu_ps(to, mask, value); }
inline void store(__m512 value, BFloat16* to, __mmask16 mask) {  // as `write`
  const __m512i bits = _mm512_castps_si512(value), upper = _mm512_srli_epi32(bits, 16), one = _mm512_set1_epi32(1);
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(upper, one))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i result = _mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40));
  _mm256_mask_storeu_epi16(to, mask, _mm512_cvtepi32_epi16(result));
}
