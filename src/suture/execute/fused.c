/* One pass over rows of a weight: widen, add s · B A, round once. The same for DoRA, which gives each row the length m.
 *
 *   LoRA   out[i, j] = round(v[i, j])                      v[i, j] = w[i, j] + (Σ_k b[i, k] a[k, j]) · s
 *   DoRA   out[i, j] = round(v[i, j] · (m[i] / ‖v[i]‖))
 *
 * Σ_k runs over k in ascending order, every step one fused multiply-add. ‖v[i]‖² is summed in TILE lanes, column j in lane
 * j mod TILE in ascending order, every step one fused multiply-add; then the upper half of the lanes is added to the lower
 * one until one is left. Sums have a fixed order and fma is exact on every machine, so the bytes depend on the inputs
 * alone: not on the CPU, its vector width, the block of rows, or the number of threads. w and out may be the same memory.
 * a is packed: columns in tiles of TILE, each (rank, TILE) and contiguous; the last tile is filled up.
 */
#include <math.h>

#include "../floats.h"

#define TILE 64
#define ROWS 4

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
INLINE void tile(const void *w, void *out, const float *b, const float *a, float s, size_t at, size_t stride, size_t rank,
                 int n_rows, int n_cols, int from, int to) {
    float sum[ROWS][TILE];
    for (int q = 0; q < n_rows; q++)
        for (int j = 0; j < TILE; j++) sum[q][j] = 0;
    for (size_t k = 0; k < rank; k++)
        for (int q = 0; q < n_rows; q++) {
            float factor = b[q * rank + k];
            for (int j = 0; j < TILE; j++) sum[q][j] = __builtin_fmaf(factor, a[k * TILE + j], sum[q][j]);
        }
    for (int q = 0; q < n_rows; q++)
        for (int j = 0; j < n_cols; j++) {
            float scaled = sum[q][j] * s;
            store(out, at + q * stride + j, load(w, at + q * stride + j, from) + scaled, to);
        }
}

INLINE void lora(const void *w, void *out, const float *b, const float *a, float s, size_t rows, size_t cols, size_t rank,
                 int from, int to) {
    size_t whole = cols / TILE, rest = cols % TILE;
    for (size_t i = 0; i < rows; i += ROWS) {
        int n_rows = rows - i < ROWS ? (int)(rows - i) : ROWS;
        for (size_t t = 0; t < whole; t++) {
            size_t at = i * cols + t * TILE;
            if (n_rows == ROWS) tile(w, out, b + i * rank, a + t * rank * TILE, s, at, cols, rank, ROWS, TILE, from, to);
            else tile(w, out, b + i * rank, a + t * rank * TILE, s, at, cols, rank, n_rows, TILE, from, to);
        }
        if (rest)
            tile(w, out, b + i * rank, a + whole * rank * TILE, s, i * cols + whole * TILE, cols, rank, n_rows, (int)rest,
                 from, to);
    }
}

/* Rows of v scaled to the length m and rounded. */
INLINE void lengths(const float *v, void *out, const float *m, size_t rows, size_t cols, int to) {
    for (size_t i = 0; i < rows; i++) {
        const float *row = v + i * cols;
        float lane[TILE] = {0};
        size_t whole = cols - cols % TILE;
        for (size_t j = 0; j < whole; j += TILE)
            for (int l = 0; l < TILE; l++) lane[l] = __builtin_fmaf(row[j + l], row[j + l], lane[l]);
        for (size_t j = whole; j < cols; j++) lane[j - whole] = __builtin_fmaf(row[j], row[j], lane[j - whole]);
        for (int half = TILE / 2; half; half /= 2)
            for (int l = 0; l < half; l++) lane[l] += lane[l + half];
        float factor = m[i] / sqrtf(lane[0]);
        for (size_t j = 0; j < cols; j++) store(out, i * cols + j, row[j] * factor, to);
    }
}

#define VARIANT(name, from, to) \
    CLONES EXPORT void suture_lora_##name(const void *w, void *out, const float *b, const float *a, float s, size_t rows, \
                                          size_t cols, size_t rank) { lora(w, out, b, a, s, rows, cols, rank, from, to); }

VARIANT(f32_f32, F32, F32)
VARIANT(f32_bf16, F32, BF16)
VARIANT(f32_f16, F32, F16)
VARIANT(bf16_f32, BF16, F32)
VARIANT(bf16_bf16, BF16, BF16)
VARIANT(bf16_f16, BF16, F16)
VARIANT(f16_f32, F16, F32)
VARIANT(f16_bf16, F16, BF16)
VARIANT(f16_f16, F16, F16)

#define LENGTHS(name, to) \
    CLONES EXPORT void suture_lengths_##name(const float *v, void *out, const float *m, size_t rows, size_t cols) { \
        lengths(v, out, m, rows, cols, to); }

LENGTHS(f32, F32)
LENGTHS(bf16, BF16)
LENGTHS(f16, F16)

EXPORT size_t suture_tile(void) { return TILE; }
EXPORT int suture_version(void) { return 3; }
