/* Codes of four bits, two in a byte, the first one in the upper half -> stored values, rounded once.
 *
 *   out[i - first] = round(map[code[i]] * absmax[i / size])          i = first ... last - 1
 *
 * The product is in float32. Of a block, the 16 products are made once and looked up. `codes` begins with the byte that
 * holds code `first`, `absmax` with the scale of the block that holds it.
 */
#include "../../floats.h"

INLINE void four_bits(const uint8_t *codes, const float *map, const float *absmax, void *out, size_t first, size_t last,
                      size_t size, int to) {
    size_t byte0 = first / 2, block0 = first / size;
    for (size_t i = first; i < last;) {
        size_t block = i / size, end = (block + 1) * size < last ? (block + 1) * size : last;
        float wide[16], scale = absmax[block - block0];
        uint16_t narrow[16];
        for (int c = 0; c < 16; c++) wide[c] = map[c] * scale;
        if (to != F32) for (int c = 0; c < 16; c++) store(narrow, c, wide[c], to);
        #define PUT(i, code) if (to == F32) ((float *)out)[(i) - first] = wide[code]; \
                             else ((uint16_t *)out)[(i) - first] = narrow[code];
        if (i % 2) { PUT(i, codes[i / 2 - byte0] & 15) i++; }
        for (; i + 1 < end; i += 2) {
            uint8_t pair = codes[i / 2 - byte0];
            PUT(i, pair >> 4)
            PUT(i + 1, pair & 15)
        }
        if (i < end) { PUT(i, codes[i / 2 - byte0] >> 4) i++; }
    }
}

#define FOUR_BITS(name, to) \
    EXPORT void suture_four_bits_##name(const uint8_t *codes, const float *map, const float *absmax, void *out, \
                                        size_t first, size_t last, size_t size) { \
        four_bits(codes, map, absmax, out, first, last, size, to); }

FOUR_BITS(f32, F32)
FOUR_BITS(bf16, BF16)
FOUR_BITS(f16, F16)
