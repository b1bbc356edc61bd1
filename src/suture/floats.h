/* Stored values of 16 and 32 bits <-> float, the same on every machine: rounded to nearest, ties to even. */
#ifndef SUTURE_FLOATS_H
#define SUTURE_FLOATS_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))
/* Compiled for several instruction sets, of which the loader takes the widest that the CPU has. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

enum { F32 = 0, BF16 = 1, F16 = 2 };

INLINE uint32_t bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
INLINE float value(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

INLINE float from_bf16(uint16_t h) { return value((uint32_t)h << 16); }

INLINE uint16_t to_bf16(float x) {
    uint32_t u = bits(x), rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16, nan = ((u >> 16) & 0x8000) | 0x7FC0;
    return (uint16_t)((u & 0x7FFFFFFF) > 0x7F800000 ? nan : rounded);
}

INLINE float from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7FFF);
    float normal = value((rest << 13) + (112u << 23));                     /* exponent bias 15 to 127 */
    float small = value((rest << 13) + (113u << 23)) - value(113u << 23);  /* subnormal: exact */
    float special = value((rest << 13) | 0x7F800000u);
    float x = rest >= 0x7C00 ? special : rest < 0x0400 ? small : normal;
    return value(bits(x) | sign);
}

INLINE uint16_t to_f16(float x) {
    uint32_t u = bits(x), sign = (u >> 16) & 0x8000, rest = u & 0x7FFFFFFF;
    uint32_t normal = (rest - (112u << 23) + 0xFFF + ((rest >> 13) & 1)) >> 13;
    uint32_t small = bits(value(rest) + 0.5f) - (126u << 23);  /* the sum rounds at 2^-24, the step of subnormals */
    uint32_t out = rest < (113u << 23) ? small : normal;
    out = rest >= 0x477FF000u ? 0x7C00u : out;  /* 65520 and more */
    return (uint16_t)(sign | (rest > 0x7F800000u ? 0x7E00u : out));
}

INLINE float load(const void *p, size_t at, int type) {
    return type == F32 ? ((const float *)p)[at] : type == BF16 ? from_bf16(((const uint16_t *)p)[at])
                                                               : from_f16(((const uint16_t *)p)[at]);
}

INLINE void store(void *p, size_t at, float x, int type) {
    if (type == F32) ((float *)p)[at] = x;
    else ((uint16_t *)p)[at] = type == BF16 ? to_bf16(x) : to_f16(x);
}

#endif
