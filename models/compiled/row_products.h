// Products of some rows with small weights, and norms of rows, for kernels that pass over rows once. It needs AVX-512.
//
// Some rows at a time stay in the cache. Widths are padded to multiples of 16 with zeros. Names: N rows, D numbers of a row.
#pragma once

#include <omp.h>

#include <algorithm>
#include <memory>

#include "norm_rows.h"
#include "tiles.h"

constexpr int64_t ROWS = 8 * STEP;  // in the cache at a time

// The norm of rows. The means and scales of a forward pass serve the backward pass.
struct RowNorm {
  int64_t kind;  // 0: none, 1: layer norm, 2: RMS norm
  float epsilon;
  const float *weight, *bias;  // (D); bias: or null
  float *mean, *scale;         // (N); mean: of a layer norm
};

// out (COUNT, columns) = bias + left (COUNT, depth) right (depth, columns), for the columns of one tile, of which `last` masks the last 16.
template <int COUNT, int VECTORS>
inline void write_tile(const float* left, int64_t left_row, const float* right, int64_t depth, int64_t padded, const float* bias, float* out,
                       int64_t out_row, __mmask16 last) {
  __m512 sums[COUNT][VECTORS];
#pragma GCC unroll 4
  for (int j = 0; j < VECTORS; j++) {
    const __mmask16 mask = j == VECTORS - 1 ? last : __mmask16(0xffff);
    sums[0][j] = bias == nullptr ? _mm512_setzero_ps() : load(bias + 16 * j, mask);
#pragma GCC unroll 6
    for (int i = 1; i < COUNT; i++) sums[i][j] = sums[0][j];
  }
  add_products<COUNT, VECTORS>(left, left_row, 1, right, depth, padded, sums);
#pragma GCC unroll 6
  for (int i = 0; i < COUNT; i++)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) store(sums[i][j], out + i * out_row + 16 * j, j == VECTORS - 1 ? last : __mmask16(0xffff));
}

template <int VECTORS>
inline void write_panel(const float* left, int64_t left_row, const float* right, int64_t depth, int64_t padded, int64_t rows, const float* bias,
                        float* out, int64_t out_row, __mmask16 last) {
  int64_t i = 0;
  for (; i + STEP <= rows; i += STEP)
    write_tile<STEP, VECTORS>(left + i * left_row, left_row, right, depth, padded, bias, out + i * out_row, out_row, last);
  for (; i < rows; i++) write_tile<1, VECTORS>(left + i * left_row, left_row, right, depth, padded, bias, out + i * out_row, out_row, last);
}

// out (rows, columns) = bias + left (rows, depth) right (depth, columns). left and out have rows of left_row and out_row numbers, right is padded.
// bias: or null. Each row is computed alike, wherever it is.
inline void write_product(const float* left, int64_t left_row, const float* right, int64_t depth, int64_t rows, int64_t columns, const float* bias,
                          float* out, int64_t out_row) {
  const int64_t padded = round_up(columns, 16);
  for (int64_t d = 0; d < padded; d += PANEL) {  // a panel of the weights stays in the fastest cache
    const float* own_bias = bias == nullptr ? nullptr : bias + d;
    const __mmask16 last = first_of(columns - std::min(padded, d + PANEL) + 16);
    switch (std::min(PANEL, padded - d) / 16) {
      case 4: write_panel<4>(left, left_row, right + d, depth, padded, rows, own_bias, out + d, out_row, last); break;
      case 3: write_panel<3>(left, left_row, right + d, depth, padded, rows, own_bias, out + d, out_row, last); break;
      case 2: write_panel<2>(left, left_row, right + d, depth, padded, rows, own_bias, out + d, out_row, last); break;
      default: write_panel<1>(left, left_row, right + d, depth, padded, rows, own_bias, out + d, out_row, last); break;
    }
  }
}

// out (number, columns) += left^T right of `rows` rows.
inline void add_outer(const float* left, int64_t left_row, const float* right, int64_t rows, int64_t number, int64_t columns, float* out) {
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
inline Buffer<float> padded_rows(const float* from, int64_t rows, int64_t columns, int64_t padded) {
  Buffer<float> result = zeros<float>(rows * padded);
  for (int64_t i = 0; i < rows; i++) std::copy_n(from + i * columns, columns, result.get() + i * padded);
  return result;
}

// The columns of a matrix as rows, padded.
inline Buffer<float> padded_columns(const float* from, int64_t rows, int64_t columns, int64_t padded) {
  Buffer<float> result = zeros<float>(columns * padded);
  for (int64_t j = 0; j < columns; j++)
    for (int64_t i = 0; i < rows; i++) result[j * padded + i] = from[i * columns + j];
  return result;
}

// Writes the norm of `rows` rows from `first` on, or these rows without one. known: mean and scale are.
inline void normalise(const RowNorm& norm, const float* x, int64_t width, int64_t first, int64_t rows, int64_t padded, bool known,
                      float* normed) {
  x += first * width;
  for (int64_t r = 0; r < rows; r++, x += width, normed += padded) {
    if (norm.kind == 0) {
      std::copy_n(x, width, normed);
      continue;
    }
    const RowMoments moments = known             ? RowMoments{norm.kind == 1 ? norm.mean[first + r] : 0.0f, norm.scale[first + r]}
                               : norm.kind == 1 ? moments_of<true>(x, width, norm.epsilon)
                                                : moments_of<false>(x, width, norm.epsilon);
    if (!known) {
      if (norm.kind == 1) norm.mean[first + r] = moments.mean;
      norm.scale[first + r] = moments.scale;
    }
    write_normed(x, width, moments, norm.weight, norm.bias, normed);
  }
}

// The gradient of these rows, from that of their norm, plus `kept`, another gradient of x, or null. Sums are added to.
inline void differentiate_norm(const RowNorm& norm, const float* x, int64_t width, int64_t first, int64_t rows, const float* of_normed,
                               int64_t padded, const float* kept, float* x_gradient, float* weight_sums, float* bias_sums) {
  const int64_t place = first * width;
  x += place, x_gradient += place;
  if (kept != nullptr) kept += place;
  if (norm.bias == nullptr) bias_sums = nullptr;
  if (norm.kind == 1)
    differentiate_norm<true>(rows, width, x, norm.weight, norm.mean + first, norm.scale + first, of_normed, padded, kept, x_gradient, weight_sums,
                             bias_sums);
  else if (norm.kind == 2)
    differentiate_norm<false>(rows, width, x, norm.weight, nullptr, norm.scale + first, of_normed, padded, kept, x_gradient, weight_sums,
                              bias_sums);
  else
    for (int64_t r = 0; r < rows; r++)
      for (int64_t d = 0; d < width; d++)
        x_gradient[r * width + d] = of_normed[r * padded + d] + (kept == nullptr ? 0.0f : kept[r * width + d]);
}

// Adds a padded matrix to a matrix, or nothing if there is none.
inline void add_rows(const float* from, int64_t rows, int64_t columns, int64_t padded, float* to) {
  if (to == nullptr) return;
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) to[i * columns + j] += from[i * padded + j];
}

// Calls work(first, rows, own) for all rows, some at a time. A thread has one `own`, and all of them are returned.
template <class Own, class Make, class Work>
std::unique_ptr<Own[]> for_rows(int64_t num_rows, int64_t& threads, Make make, Work work) {
  const int64_t tiles = (num_rows + ROWS - 1) / ROWS;
  threads = std::min(threads, tiles);
  std::unique_ptr<Own[]> own(new Own[threads]);
  for (int64_t thread = 0; thread < threads; thread++) own[thread] = make();
#pragma omp parallel for num_threads(int(threads)) schedule(static, 1)
  for (int64_t thread = 0; thread < threads; thread++)
    for (int64_t tile = tiles * thread / threads; tile < tiles * (thread + 1) / threads; tile++)
      work(tile * ROWS, std::min(ROWS, num_rows - tile * ROWS), own[thread]);
  return own;
}
