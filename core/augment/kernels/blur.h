/* Pillow's GaussianBlur: three boxes with fractional edges along the rows, three along the columns, edges repeat. */

#pragma once

#include "scratch.h"

#include <string.h>

typedef struct {
    int radius;
    uint32_t whole, edge; /* weights inside and just outside, parts of 2^24 */
} Box;

/* Inlined with a number for the radius, the sum of a box takes 16 bits and stays in registers. */
static inline __attribute__((always_inline)) void near(const uint8_t *restrict in, uint8_t *restrict out, long n,
                                                       long step, int radius, Box box) {
    for (long i = 0; i < n; i++) {
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
    long row = (long)width * channels, size = row * height, room = row * (height + 2 * pad), stretch = width + 2 * pad;
    uint8_t *from = take(&scratch, room), *to = take(&scratch, room);
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
