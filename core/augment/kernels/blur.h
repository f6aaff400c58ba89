/* Pillow's GaussianBlur: three boxes with fractional edges along the rows, three along the columns, edges repeat. */

#pragma once

#include "scratch.h"

#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef struct {
    int radius;
    uint32_t whole, edge; /* weights inside and just outside, parts of 2^24 */
} Box;

#ifdef __AVX2__
/* What the loop in `near` computes, 32 bytes at a time for as many as go; returns how many it did. The product of a
   16-bit sum and a 24-bit weight is that of the weight's upper 12 bits, moved up, and its lower 12. */
static inline __attribute__((always_inline)) long blocks(const uint8_t *restrict in, uint8_t *restrict out, long n,
                                                         long step, int radius, Box box) {
    const __m256i zero = _mm256_setzero_si256(), ones = _mm256_set1_epi8(1), half = _mm256_set1_epi32(1 << 23);
    const __m256i upper = _mm256_set1_epi32((int)(box.whole >> 12 | box.edge >> 12 << 16));
    const __m256i lower = _mm256_set1_epi32((int)((box.whole & 4095) | (box.edge & 4095) << 16));
    long i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(in + i)), b, sum[2], rim[2], part[4];
        sum[0] = _mm256_unpacklo_epi8(a, zero);
        sum[1] = _mm256_unpackhi_epi8(a, zero);
        for (int k = 1; k <= radius + 1; k++) {
            a = _mm256_loadu_si256((const __m256i *)(in + i - k * step));
            b = _mm256_loadu_si256((const __m256i *)(in + i + k * step));
            rim[0] = _mm256_maddubs_epi16(_mm256_unpacklo_epi8(a, b), ones);
            rim[1] = _mm256_maddubs_epi16(_mm256_unpackhi_epi8(a, b), ones);
            for (int h = 0; h < 2 && k <= radius; h++) sum[h] = _mm256_add_epi16(sum[h], rim[h]);
        }
        for (int h = 0; h < 2; h++) {
            part[2 * h] = _mm256_unpacklo_epi16(sum[h], rim[h]);
            part[2 * h + 1] = _mm256_unpackhi_epi16(sum[h], rim[h]);
        }
        for (int q = 0; q < 4; q++) {
            a = _mm256_slli_epi32(_mm256_madd_epi16(part[q], upper), 12);
            b = _mm256_add_epi32(_mm256_madd_epi16(part[q], lower), half);
            part[q] = _mm256_srli_epi32(_mm256_add_epi32(a, b), 24);
        }
        a = _mm256_packus_epi16(_mm256_packus_epi32(part[0], part[1]), _mm256_packus_epi32(part[2], part[3]));
        _mm256_storeu_si256((__m256i *)(out + i), a);
    }
    return i;
}
#else
#define blocks(in, out, n, step, radius, box) 0
#endif

/* Inlined with a number for the radius, the sum of a box takes 16 bits and stays in registers. */
static inline __attribute__((always_inline)) void near(const uint8_t *restrict in, uint8_t *restrict out, long n,
                                                       long step, int radius, Box box) {
    for (long i = blocks(in, out, n, step, radius, box); i < n; i++) {
        uint16_t sum = in[i], rim = (uint16_t)(in[i - (radius + 1) * step] + in[i + (radius + 1) * step]);
        for (int k = 1; k <= radius; k++) sum = (uint16_t)(sum + in[i - k * step] + in[i + k * step]);
        out[i] = (uint8_t)((sum * box.whole + rim * box.edge + (1u << 23)) >> 24);
    }
}

static void far(const uint8_t *restrict in, uint8_t *restrict out, uint32_t *restrict sum, long n, long step, Box box) {
    long rim = step * (box.radius + 1);
    for (long i = 0; i < n; i++) sum[i] = in[i];
    for (int k = 1; k <= box.radius; k++)
        for (long i = 0; i < n; i++) sum[i] += in[i - k * step] + in[i + k * step];
    for (long i = 0; i < n; i++)
        out[i] = (uint8_t)((sum[i] * box.whole + (uint32_t)(in[i - rim] + in[i + rim]) * box.edge + (1u << 23)) >> 24);
}

/* One box over n bytes whose neighbours are `step` bytes away; `in` has (radius + 1) * step bytes more at both ends. */
static void filter(const uint8_t *in, uint8_t *out, uint32_t *sum, long n, long step, Box box) {
    switch (box.radius) {
        case 0: near(in, out, n, step, 0, box); break;
        case 1: near(in, out, n, step, 1, box); break;
        case 2: near(in, out, n, step, 2, box); break;
        default: far(in, out, sum, n, step, box);
    }
}

/* The ends of n bytes repeated on both sides, `pad` times what is `step` bytes long. */
static void extend(uint8_t *start, long n, long step, int pad) {
    for (int k = 1; k <= pad; k++) {
        memcpy(start - k * step, start, step);
        memcpy(start + n + (k - 1) * step, start + n - step, step);
    }
}

/* Lines of height x width pixels, in place. Returns 1 where the scratch memory is too small. */
static int blur(uint8_t *image, int height, int width, int channels, Box box, Scratch scratch) {
    int pad = box.radius + 1;
    long row = (long)width * channels, size = row * height, padded = row * (height + 2 * pad), stretch = width + 2 * pad;
    uint8_t *from = take(&scratch, padded), *to = take(&scratch, padded);
    uint8_t *a = take(&scratch, stretch), *b = take(&scratch, stretch);
    uint32_t *sum = take(&scratch, sizeof(uint32_t) * (box.radius > 2 ? size : 1));
    if (!sum) return 1;
    from += pad * row, to += pad * row, a += pad, b += pad;
    for (long start = 0; start < size; start += width) { /* a channel of a row */
        memcpy(a, image + start, width);
        extend(a, width, 1, pad);
        filter(a, b, sum, width, 1, box);
        extend(b, width, 1, pad);
        filter(b, a, sum, width, 1, box);
        extend(a, width, 1, pad);
        filter(a, from + start, sum, width, 1, box);
    }
    extend(from, size, row, pad);
    filter(from, to, sum, size, row, box);
    extend(to, size, row, pad);
    filter(to, from, sum, size, row, box);
    extend(from, size, row, pad);
    filter(from, image, sum, size, row, box);
    return 0;
}
