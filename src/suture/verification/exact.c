/* The verifier's own arithmetic for LoRA: rows recomputed in float64, and each stored value judged.
 *
 *   x[i, j] = w[i, j] + s · Σ_k b[i, k] a[k, j]          in float64
 *   E[i, j] = gamma · (|w[i, j]| + |s| Σ_k |b[i, k]| |a[k, j]|)
 *   right   ⇔ |stored − x| ≤ ½ ulp(|x| + E) + E          ulp of the stored type
 *
 * Where values were rounded at random, R is that rounding with the bits of the value, which never falls as x rises, and
 *
 *   right   ⇔ R(x − E) ≤ stored ≤ R(x + E)
 *
 * A row is doubtful if a value in it is not right, or not finite: then numpy looks closer. Nothing is shared with the kernel
 * that merges.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TILE 32
#define ROWS 4

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

enum { F32 = 0, BF16 = 1, F16 = 2 };

typedef struct {
    const void *w, *stored;
    const double *b, *a;
    double s, gamma;
    size_t rows, cols, rank;
    const uint32_t *bits;  /* of each value, where it was rounded at random */
} Rows;

typedef struct { double unit, smallest, largest; } Type;  /* ½ ulp of 1; the least and the greatest power of two */

static const Type TYPES[] = {
    [F32] = {0x1p-24, 0x1p-126, 0x1p127}, [BF16] = {0x1p-8, 0x1p-126, 0x1p127}, [F16] = {0x1p-11, 0x1p-14, 0x1p15}};

INLINE float of_bits(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

INLINE float half_to_float(uint16_t h) {
    uint32_t exponent = (h >> 10) & 31, fraction = h & 1023, sign = (uint32_t)(h >> 15) << 31;
    float small = (float)(int32_t)fraction * 0x1p-24f, big = of_bits(((exponent + 112) << 23) | (fraction << 13));
    float special = of_bits(0x7F800000u | (fraction << 13)), x = exponent == 0 ? small : exponent == 31 ? special : big;
    uint32_t u;
    memcpy(&u, &x, 4);
    return of_bits(u | sign);
}

INLINE double wide(const void *p, size_t at, int type) {
    if (type == F32) return ((const float *)p)[at];
    uint16_t h = ((const uint16_t *)p)[at];
    return type == BF16 ? of_bits((uint32_t)h << 16) : half_to_float(h);
}

INLINE int64_t int_of(double x) { int64_t u; memcpy(&u, &x, 8); return u; }  /* of sizes: in the same order */
INLINE double double_of(int64_t u) { double x; memcpy(&x, &u, 8); return x; }

INLINE double half_ulp(double size, Type type) {
    double power = double_of(int_of(size) & 0x7FF0000000000000);
    power = power < type.smallest ? type.smallest : power;
    return (power > type.largest ? type.largest : power) * type.unit;
}

/* x = (k + f) · step goes up to the next step if f is at least 1 − bits / 2^32, else down; to nearest beyond the largest. */
INLINE double at_random(double x, uint32_t bits, Type type) {
    double size = fabs(x), step = 2 * half_ulp(size, type), largest = 2 * type.largest * (1 - type.unit);
    double steps = size * double_of(0x7FE0000000000000 - int_of(step)), whole = floor(steps);
    double inside = (whole + (steps - whole >= 1 - bits * 0x1p-32 ? 1 : 0)) * step;
    double outside = size >= type.largest * (2 - type.unit) ? INFINITY : largest;
    return copysign(size > largest ? outside : inside, x);
}

/* What float32 may be off by. */
INLINE double bound(const Rows *r, size_t i, size_t j, double w) {
    double size = 0;
    for (size_t k = 0; k < r->rank; k++) size += fabs(r->b[i * r->rank + k]) * fabs(r->a[k * r->cols + j]);
    return r->gamma * (fabs(w) + fabs(r->s) * size);
}

/* One value by the whole rule, for those that are not simply the rounding of x. */
static int is_right(const Rows *r, size_t i, size_t j, double w, double stored, double x, Type type) {
    double error = bound(r, i, j, w);
    return fabs(stored - x) <= half_ulp(fabs(x) + error, type) + error;  /* false for what is not a number */
}

static int is_right_at_random(const Rows *r, size_t i, size_t j, double w, double stored, double x, Type type) {
    double error = bound(r, i, j, w);
    uint32_t bits = r->bits[i * r->cols + j];
    return at_random(x - error, bits, type) <= stored && stored <= at_random(x + error, bits, type);
}

/* A tile of rows: marks each row with a value that is not right, and raises the largest distance. */
INLINE void tile(const Rows *r, uint8_t *doubtful, int64_t *largest, size_t i, size_t t, int n_rows, int n_cols, int from, int to,
                 int random) {
    const double *b = r->b + i * r->rank, *a = r->a + t * TILE;
    const Type type = TYPES[to];
    double sum[ROWS][TILE];
    for (int q = 0; q < n_rows; q++)
        for (int j = 0; j < n_cols; j++) sum[q][j] = 0;
    for (size_t k = 0; k < r->rank; k++)
        for (int q = 0; q < n_rows; q++) {
            double factor = b[q * r->rank + k];
            for (int j = 0; j < n_cols; j++) sum[q][j] = __builtin_fma(factor, a[k * r->cols + j], sum[q][j]);
        }
    for (int q = 0; q < n_rows; q++) {
        size_t at = (i + q) * r->cols + t * TILE;
        double x[TILE], distance[TILE];
        int64_t far = 0, unsure = 0;
        for (int j = 0; j < n_cols; j++) {
            x[j] = wide(r->w, at + j, from) + r->s * sum[q][j];
            distance[j] = fabs(wide(r->stored, at + j, to) - x[j]);
        }
        if (random)
            for (int j = 0; j < n_cols; j++) unsure |= at_random(x[j], r->bits[at + j], type) == wide(r->stored, at + j, to) ? 0 : 1;
        else
            for (int j = 0; j < n_cols; j++) unsure |= distance[j] <= half_ulp(fabs(x[j]), type) ? 0 : 1;
        for (int j = 0; j < n_cols; j++) far = int_of(distance[j]) > far ? int_of(distance[j]) : far;
        *largest = far > *largest ? far : *largest;
        if (!unsure) continue;
        for (int j = 0; j < n_cols; j++)
            if (!(random ? is_right_at_random : is_right)(r, i + q, t * TILE + j, wide(r->w, at + j, from),
                                                          wide(r->stored, at + j, to), x[j], type))
                doubtful[i + q] = 1;
    }
}

INLINE double judge(const Rows *r, uint8_t *doubtful, int from, int to, int random) {
    int64_t largest = 0;
    for (size_t i = 0; i < r->rows; i += ROWS) {
        int n_rows = r->rows - i < ROWS ? (int)(r->rows - i) : ROWS;
        for (size_t t = 0; t * TILE < r->cols; t++) {
            size_t left = r->cols - t * TILE;
            if (n_rows == ROWS && left >= TILE) tile(r, doubtful, &largest, i, t, ROWS, TILE, from, to, random);
            else tile(r, doubtful, &largest, i, t, n_rows, left < TILE ? (int)left : TILE, from, to, random);
        }
    }
    return double_of(largest);
}

#define VARIANT(name, from, to) \
    CLONES EXPORT double suture_judge_##name(const Rows *r, uint8_t *doubtful) { return judge(r, doubtful, from, to, 0); }

VARIANT(f32_f32, F32, F32)
VARIANT(f32_bf16, F32, BF16)
VARIANT(f32_f16, F32, F16)
VARIANT(bf16_f32, BF16, F32)
VARIANT(bf16_bf16, BF16, BF16)
VARIANT(bf16_f16, BF16, F16)
VARIANT(f16_f32, F16, F32)
VARIANT(f16_bf16, F16, BF16)
VARIANT(f16_f16, F16, F16)

#define AT_RANDOM(name, from, to) \
    CLONES EXPORT double suture_judge_random_##name(const Rows *r, uint8_t *doubtful) { \
        return judge(r, doubtful, from, to, 1); }

AT_RANDOM(f32_bf16, F32, BF16)
AT_RANDOM(f32_f16, F32, F16)
AT_RANDOM(bf16_bf16, BF16, BF16)
AT_RANDOM(bf16_f16, BF16, F16)
AT_RANDOM(f16_bf16, F16, BF16)
AT_RANDOM(f16_f16, F16, F16)
