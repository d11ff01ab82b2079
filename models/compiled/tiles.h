// Products of small matrices in float32, exponentials and memory for the kernels. It needs AVX-512.
//
// A panel has 64 columns. A tile of 6 x 64 sums fills 24 of the 32 registers.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

constexpr int64_t PANEL = 64;
constexpr int64_t STEP = 6;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
template <class Value>
using Buffer = std::unique_ptr<Value[], Free>;

inline int64_t round_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

// Memory of zeros that begins at a cache line.
template <class Value>
Buffer<Value> zeros(int64_t number) {
  const size_t bytes = round_up(number * int64_t(sizeof(Value)) + 1, 64);
  void* memory = std::aligned_alloc(64, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, 0, bytes);
  return Buffer<Value>(static_cast<Value*>(memory));
}

// 2^x within 2 units in the last place, 0 far below, NaN of NaN. The polynomial is that of Cephes (exp2f).
inline __m512 power_of_2(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT);
  const __m512 part = _mm512_sub_ps(x, whole);
  __m512 power = _mm512_set1_ps(1.535336188319500e-4f);
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(1.339887440266574e-3f));
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(9.618437357674640e-3f));
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(5.550332471162809e-2f));
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(2.402264791363012e-1f));
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(6.931472028550421e-1f));
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(power, whole);
}

inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, power_of_2(_mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E)))));
}

// sums (ROWS, 16 VECTORS) += sum_k left[i * left_row + k * left_step] right[k], in registers; right has rows of `padded` numbers.
template <int ROWS, int VECTORS>
__attribute__((always_inline)) inline void add_products(const float* left, int64_t left_row, int64_t left_step, const float* right, int64_t depth,
                                                        int64_t padded, __m512 (&sums)[ROWS][VECTORS]) {
  for (int64_t k = 0; k < depth; k++) {
    __m512 vector[VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) vector[j] = _mm512_load_ps(right + k * padded + 16 * j);
#pragma GCC unroll 6
    for (int i = 0; i < ROWS; i++) {
      const __m512 weight = _mm512_set1_ps(left[i * left_row + k * left_step]);
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; j++) sums[i][j] = _mm512_fmadd_ps(weight, vector[j], sums[i][j]);
    }
  }
}

// scores (STEP, 16 VECTORS) = users (STEP, D) columns (D, 16 VECTORS). Users have rows of `user_row` numbers, the others of 64.
template <int VECTORS>
inline void score_columns(const float* users, int64_t user_row, int64_t width, const float* columns, float* scores) {
  __m512 sums[STEP][VECTORS];
#pragma GCC unroll 6
  for (int i = 0; i < STEP; i++)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) sums[i][j] = _mm512_setzero_ps();
  add_products<STEP, VECTORS>(users, user_row, 1, columns, width, PANEL, sums);
#pragma GCC unroll 6
  for (int i = 0; i < STEP; i++)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) _mm512_store_ps(scores + i * PANEL + 16 * j, sums[i][j]);
}

// The scores of a panel, of which the first `number` columns are needed; the others of a group of 16 are computed too.
inline void score(const float* users, int64_t user_row, int64_t width, const float* columns, float* scores, int64_t number = PANEL) {
  switch ((number + 15) / 16) {
    case 1: score_columns<1>(users, user_row, width, columns, scores); break;
    case 2: score_columns<2>(users, user_row, width, columns, scores); break;
    case 3: score_columns<3>(users, user_row, width, columns, scores); break;
    default: score_columns<4>(users, user_row, width, columns, scores); break;
  }
}

// Writes the columns of 16 rows of 16 numbers as rows.
inline void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) a[i] = _mm512_load_ps(from + i * from_row);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // a[i + j] has column j of each quarter, of rows i .. i + 4
    a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const __m512 even_low = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88), even_high = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd), odd_high = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
    _mm512_store_ps(to + j * to_row, _mm512_shuffle_f32x4(even_low, even_high, 0x88));
    _mm512_store_ps(to + (4 + j) * to_row, _mm512_shuffle_f32x4(odd_low, odd_high, 0x88));
    _mm512_store_ps(to + (8 + j) * to_row, _mm512_shuffle_f32x4(even_low, even_high, 0xdd));
    _mm512_store_ps(to + (12 + j) * to_row, _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd));
  }
}

// out (ROWS, 16 VECTORS) += sum_k left[i * left_row + k * left_step] right[k]; out and right have rows of `padded` numbers.
template <int ROWS, int VECTORS>
inline void add_tile(const float* left, int64_t left_row, int64_t left_step, const float* right, int64_t depth, int64_t padded, float* out) {
  __m512 sums[ROWS][VECTORS];
#pragma GCC unroll 6
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) sums[i][j] = _mm512_load_ps(out + i * padded + 16 * j);
  add_products<ROWS, VECTORS>(left, left_row, left_step, right, depth, padded, sums);
#pragma GCC unroll 6
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) _mm512_store_ps(out + i * padded + 16 * j, sums[i][j]);
}

template <int ROWS>
inline void add_product(const float* left, int64_t left_row, int64_t left_step, const float* right, int64_t depth, int64_t padded, float* out) {
  int64_t d = 0;
  for (; d + 64 <= padded; d += 64) add_tile<ROWS, 4>(left, left_row, left_step, right + d, depth, padded, out + d);
  switch ((padded - d) / 16) {
    case 3: add_tile<ROWS, 3>(left, left_row, left_step, right + d, depth, padded, out + d); break;
    case 2: add_tile<ROWS, 2>(left, left_row, left_step, right + d, depth, padded, out + d); break;
    case 1: add_tile<ROWS, 1>(left, left_row, left_step, right + d, depth, padded, out + d); break;
    default: break;
  }
}
