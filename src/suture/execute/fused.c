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
#define DRAWN 1024 /* random bits at once: whole groups of noise.c */

/* Up or down at random, by 32 bits r: they are added below the last bit that is kept, and what is below is cut off. Beyond the
 * largest finite value there is no neighbour above: there it is rounding to nearest. */
INLINE uint16_t to_bf16_at_random(float x, uint32_t r) {
    uint32_t u = bits(x);
    return (u & 0x7FFFFFFF) > 0x7F7F0000 ? to_bf16(x) : (uint16_t)((u + (r >> 16)) >> 16);
}

INLINE uint16_t to_f16_at_random(float x, uint32_t r) {
    uint32_t u = bits(x), sign = (u >> 16) & 0x8000, rest = u & 0x7FFFFFFF, exponent = rest >> 23;
    uint32_t normal = (rest - (112u << 23) + (r >> 19)) >> 13;
    uint64_t fraction = (rest & 0x7FFFFF) | (exponent ? 0x800000 : 0);
    uint32_t places = 126 - (exponent ? exponent : 1);  /* subnormal: steps of 2^-24, with 32 bits after the point */
    uint32_t small = (uint32_t)(((fraction << 32 >> (places < 63 ? places : 63)) + r) >> 32);
    return rest > 0x477FE000 ? to_f16(x) : (uint16_t)(sign | (exponent < 113 ? small : normal));
}

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

void suture_noise(const uint32_t *key, uint64_t first, size_t n, uint32_t *out);  /* noise.c */

/* n values of 16 bits out of v, by the random bits of the values from number `first` on. */
#define AT_RANDOM(name, to) \
    CLONES EXPORT void suture_at_random_##name(const float *v, uint16_t *out, size_t n, const uint32_t *key, uint64_t first) { \
        uint32_t r[DRAWN]; \
        for (size_t at = 0; at < n;) { \
            size_t left = n - at, here = DRAWN - (first + at) % DRAWN; \
            here = here < left ? here : left; \
            suture_noise(key, first + at, here, r); \
            for (size_t i = 0; i < here; i++) out[at + i] = to(v[at + i], r[i]); \
            at += here; \
        } \
    }

AT_RANDOM(bf16, to_bf16_at_random)
AT_RANDOM(f16, to_f16_at_random)

EXPORT size_t suture_tile(void) { return TILE; }
EXPORT int suture_version(void) { return 4; }
