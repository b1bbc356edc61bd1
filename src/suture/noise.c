/* Random bits by Threefry-4x32 with 20 rounds: see noise.py for which value gets which.
 *
 * LANES blocks side by side; their first words, their second words … are the bits of 4 · LANES consecutive values. Lanes do
 * not meet, so that compilers make vectors of them.
 */
#include "floats.h"

#define LANES 16
#define GROUP (4 * LANES)

INLINE uint32_t turn(uint32_t x, int n) { return (x << n) | (x >> (32 - n)); }

#define MIX(a, b, m, n) (x0 += a, a = turn(a, m) ^ x0, x2 += b, b = turn(b, n) ^ x2)
#define EVEN_ROUNDS MIX(x1, x3, 10, 26), MIX(x3, x1, 11, 21), MIX(x1, x3, 13, 27), MIX(x3, x1, 23, 5)
#define ODD_ROUNDS MIX(x1, x3, 6, 20), MIX(x3, x1, 17, 11), MIX(x1, x3, 25, 10), MIX(x3, x1, 18, 20)
#define ADD_KEY(s) (x0 += k[s % 5], x1 += k[(s + 1) % 5], x2 += k[(s + 2) % 5], x3 += k[(s + 3) % 5] + s)

/* The LANES blocks from number `block` on. */
INLINE void blocks(const uint32_t *key, uint64_t block, uint32_t *restrict out) {
    const uint32_t k[5] = {key[0], key[1], key[2], key[3], 0x1BD11BDA ^ key[0] ^ key[1] ^ key[2] ^ key[3]};
    uint32_t low = (uint32_t)block, high = (uint32_t)(block >> 32);  /* a multiple of LANES: no carry */
    for (uint32_t lane = 0; lane < LANES; lane++) {
        uint32_t x0 = low + lane + k[0], x1 = high + k[1], x2 = k[2], x3 = k[3];
        EVEN_ROUNDS, ADD_KEY(1);
        ODD_ROUNDS, ADD_KEY(2);
        EVEN_ROUNDS, ADD_KEY(3);
        ODD_ROUNDS, ADD_KEY(4);
        EVEN_ROUNDS, ADD_KEY(5);
        out[lane] = x0, out[LANES + lane] = x1, out[2 * LANES + lane] = x2, out[3 * LANES + lane] = x3;
    }
}

/* The bits of the n values from number `first` on. */
CLONES EXPORT void suture_noise(const uint32_t *key, uint64_t first, size_t n, uint32_t *out) {
    for (size_t done = 0; done < n;) {
        uint64_t value = first + done, block = value / GROUP * LANES;
        size_t skip = value % GROUP, left = n - done, here = GROUP - skip < left ? GROUP - skip : left;
        if (here == GROUP) {
            blocks(key, block, out + done);
        } else {
            uint32_t group[GROUP];
            blocks(key, block, group);
            memcpy(out + done, group + skip, here * sizeof *out);
        }
        done += here;
    }
}
