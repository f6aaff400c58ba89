/* Antialiased resizing, bit for bit Pillow's: two passes of fixed-point weights with bytes in between.

   Its result is in lines: each row is `channels` stretches of `width` bytes, one a channel, so that everything that
   follows walks over neighbouring bytes. The rows pass takes ROWS rows at once: their samples of one column lie side by
   side, so each weight is one short vector product; the two exchanges of rows and columns that this needs also sort
   the channels. */

#pragma once

#include "scratch.h"

#include <math.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define BITS 22 /* fixed-point bits of a resampling weight: 32 - 8 for the pixel - 2 for overshoot */
#define ROWS 32 /* samples that are combined side by side */

static inline uint8_t clip8(int value) { return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value; }

static double kernel(double x, int bicubic) {
    x = fabs(x);
    if (!bicubic) return x < 1.0 ? 1.0 - x : 0.0;
    if (x < 1.0) return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
    return 0.0;
}

typedef struct {
    int taps;     /* places for the weights of an output position */
    int *first;   /* first input position */
    int *count;   /* how many inputs count */
    int *weights; /* fixed point, output positions x taps */
} Weights;

/* Weights of an antialiased resize: the kernel widens with the reduction and its sum is made 1. */
static int weigh(Weights *w, int from, int to, int bicubic, Scratch *scratch) {
    double scale = (double)from / to, widen = scale < 1.0 ? 1.0 : scale, support = (bicubic ? 2.0 : 1.0) * widen;
    w->taps = (int)ceil(support) * 2 + 1;
    double *k = take(scratch, sizeof(double) * w->taps);
    w->first = take(scratch, sizeof(int) * to);
    w->count = take(scratch, sizeof(int) * to);
    w->weights = take(scratch, sizeof(int) * (size_t)to * w->taps);
    if (!w->weights) return 1;
    for (int i = 0; i < to; i++) {
        double centre = (i + 0.5) * scale, inverse = 1.0 / widen, sum = 0.0;
        int low = (int)(centre - support + 0.5), high = (int)(centre + support + 0.5);
        if (low < 0) low = 0;
        if (high > from) high = from;
        for (int j = 0; j < high - low; j++) sum += k[j] = kernel((j + low - centre + 0.5) * inverse, bicubic);
        for (int j = 0; j < high - low; j++) {
            double share = (sum != 0.0 ? k[j] / sum : k[j]) * (1 << BITS);
            w->weights[(size_t)i * w->taps + j] = (int)(share < 0 ? share - 0.5 : share + 0.5);
        }
        w->first[i] = low;
        w->count[i] = high - low;
    }
    return 0;
}

/* ---------------------------------------------------------------- rows and columns exchanged */
#define INTERLEAVED                                                                             \
    for (int round = 0; round < 4; round++) { /* of the two halves, four times: a transpose */ \
        for (int i = 0; i < 8; i++) {                                                           \
            y[2 * i] = LOW(x[i], x[i + 8]);                                                     \
            y[2 * i + 1] = HIGH(x[i], x[i + 8]);                                                \
        }                                                                                       \
        memcpy(x, y, sizeof x);                                                                 \
    }
#if defined(__clang__) || (__GNUC__ >= 12 && !defined(TRY_SHUFFLE))
#define SHUFFLED(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else /* GCC before 12 has it by another name, which clang does not know */
#define SHUFFLED(type, a, b, ...) __builtin_shuffle(a, b, (type){__VA_ARGS__})
#endif
typedef uint8_t Sixteen __attribute__((vector_size(16)));
#define LOW(a, b) SHUFFLED(Sixteen, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b) SHUFFLED(Sixteen, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
/* A tile of 16 x 16 bytes. */
static void exchange16(const uint8_t *in, long in_stride, uint8_t *out, long out_stride) {
    Sixteen x[16], y[16];
    for (int i = 0; i < 16; i++) memcpy(&x[i], in + i * in_stride, 16);
    INTERLEAVED
    for (int i = 0; i < 16; i++) memcpy(out + i * out_stride, &x[i], 16);
}
#undef LOW
#undef HIGH

#ifdef __AVX2__
typedef uint8_t Both __attribute__((vector_size(32)));
#define LOW(a, b)                                                                                                    \
    SHUFFLED(Both, a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 16, 48, 17, 49, 18, 50, 19, 51, 20, \
             52, 21, 53, 22, 54, 23, 55)
#define HIGH(a, b)                                                                                                    \
    SHUFFLED(Both, a, b, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 24, 56, 25, 57, 26, 58, 27, 59, \
             28, 60, 29, 61, 30, 62, 31, 63)
/* A tile of 32 rows x 16 columns: two of the above in the halves of longer vectors. */
static void exchange32(const uint8_t *in, long in_stride, uint8_t *out, long out_stride) {
    Both x[16], y[16];
    for (int i = 0; i < 16; i++) {
        memcpy(&x[i], in + i * in_stride, 16);
        memcpy((uint8_t *)&x[i] + 16, in + (i + 16) * in_stride, 16);
    }
    INTERLEAVED
    for (int i = 0; i < 16; i++) memcpy(out + i * out_stride, &x[i], 32);
}
#undef LOW
#undef HIGH
#else
static void exchange32(const uint8_t *in, long in_stride, uint8_t *out, long out_stride) {
    exchange16(in, in_stride, out, out_stride);
    exchange16(in + 16 * in_stride, in_stride, out + 16, out_stride);
}
#endif

/* out[column][row] = in[row][column]; the last tiles overlap those before them. */
static void transpose(const uint8_t *in, long in_stride, int rows, int columns, uint8_t *out, long out_stride) {
    int tile = rows >= 32 ? 32 : 16;
    if (rows < tile || columns < 16) {
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) out[c * out_stride + r] = in[r * in_stride + c];
        return;
    }
    for (int row = 0; row < rows; row += tile)
        for (int column = 0; column < columns; column += 16) {
            int r = row + tile > rows ? rows - tile : row, c = column + 16 > columns ? columns - 16 : column;
            const uint8_t *from = in + r * in_stride + c;
            (tile == 32 ? exchange32 : exchange16)(from, in_stride, out + c * out_stride + r, out_stride);
        }
}

/* ---------------------------------------------------------------- the two passes */
/* Weighted sum of n samples side by side; the next of each is `step` bytes on. Inlined, so that numbers unroll. */
static inline __attribute__((always_inline)) void sums(const uint8_t *restrict in, long step,
                                                       const int *restrict weights, int count, uint8_t *restrict out,
                                                       int n) {
    int sum[ROWS];
    for (int r = 0; r < n; r++) sum[r] = 1 << (BITS - 1);
    for (int j = 0; j < count; j++, in += step)
        for (int r = 0; r < n; r++) sum[r] += weights[j] * in[r];
    for (int r = 0; r < n; r++) out[r] = clip8(sum[r] >> BITS);
}

/* The same for ROWS samples. */
static inline __attribute__((always_inline)) void row_sums(const uint8_t *restrict in, long step,
                                                           const int *restrict weights, int count,
                                                           uint8_t *restrict out) {
#ifdef __AVX2__ /* a compiler would widen the bytes in two steps */
    __m256i sum[4], weight;
    for (int k = 0; k < 4; k++) sum[k] = _mm256_set1_epi32(1 << (BITS - 1));
    for (int j = 0; j < count; j++, in += step) {
        weight = _mm256_set1_epi32(weights[j]);
        for (int k = 0; k < 4; k++) {
            __m256i samples = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(in + 8 * k)));
            sum[k] = _mm256_add_epi32(sum[k], _mm256_mullo_epi32(weight, samples));
        }
    }
    for (int k = 0; k < 4; k++) sum[k] = _mm256_srai_epi32(sum[k], BITS);
    sum[0] = _mm256_packus_epi16(_mm256_packs_epi32(sum[0], sum[1]), _mm256_packs_epi32(sum[2], sum[3]));
    sum[0] = _mm256_permutevar8x32_epi32(sum[0], _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)out, sum[0]);
#else
    sums(in, step, weights, count, out, ROWS);
#endif
}

static inline void combine(const uint8_t *restrict in, long step, const int *restrict weights, int count,
                           uint8_t *restrict out) {
    switch (count) {
        case 2: row_sums(in, step, weights, 2, out); break;
        case 3: row_sums(in, step, weights, 3, out); break;
        case 4: row_sums(in, step, weights, 4, out); break;
        case 5: row_sums(in, step, weights, 5, out); break;
        case 6: row_sums(in, step, weights, 6, out); break;
        default: row_sums(in, step, weights, count, out);
    }
}

/* Pixels (channels side by side) into lines of `to` pixels. The last band of rows overlaps the one before it. */
static void along_rows(const uint8_t *in, long stride, int rows, int width, int channels, uint8_t *out, int to,
                       const Weights *w, uint8_t *columns, uint8_t *results) {
    int band = rows < ROWS ? rows : ROWS;
    for (int start = 0; start < rows; start += ROWS) {
        int y = start + band > rows ? rows - band : start;
        transpose(in + y * stride, stride, band, width * channels, columns, ROWS);
        for (int x = 0; x < to; x++)
            for (int c = 0; c < channels; c++)
                combine(columns + ((size_t)w->first[x] * channels + c) * ROWS, (long)channels * ROWS,
                        w->weights + (size_t)x * w->taps, w->count[x], results + ((size_t)c * to + x) * ROWS);
        transpose(results, ROWS, to * channels, band, out + (size_t)y * to * channels, (long)to * channels);
    }
}

static void along_columns(const uint8_t *in, long stride, int length, uint8_t *restrict out, int to,
                          const Weights *w) {
    for (int y = 0; y < to; y++, out += length) {
        const uint8_t *row = in + w->first[y] * stride;
        const int *weights = w->weights + (size_t)y * w->taps;
        if (length < ROWS) sums(row, stride, weights, w->count[y], out, length);
        for (int i = 0; length >= ROWS && i < length; i += ROWS) { /* the last block overlaps the one before it */
            int start = i + ROWS > length ? length - ROWS : i;
            combine(row + start, stride, weights, w->count[y], out + start);
        }
    }
}

/* The same size: only the channels are sorted. */
static void into_lines(const uint8_t *in, long stride, int height, int width, int channels, uint8_t *out) {
    for (int y = 0; y < height; y++, in += stride, out += (size_t)width * channels)
        if (channels == 3)
            for (int x = 0; x < width; x++) {
                out[x] = in[3 * x];
                out[width + x] = in[3 * x + 1];
                out[2 * width + x] = in[3 * x + 2];
            }
        else
            for (int c = 0; c < channels; c++)
                for (int x = 0; x < width; x++) out[c * width + x] = in[x * channels + c];
}

/* `in`: height x width x channels with `stride` bytes from row to row; `out`: lines of to_height x to_width pixels.
   Between the two passes values are bytes, so their order counts: as in Pillow 13, columns first where the height
   shrinks by more than twice what the width does. Returns 1 where the scratch memory is too small. */
static int resample(const uint8_t *in, long stride, int height, int width, int channels, uint8_t *out, int to_height,
                    int to_width, int bicubic, Scratch scratch) {
    if (height == to_height && width == to_width) {
        into_lines(in, stride, height, width, channels, out);
        return 0;
    }
    int down_first = height > to_height && height - to_height > 2 * (width - to_width);
    int rows = down_first ? to_height : height;
    Weights across, down;
    uint8_t *half = take(&scratch, (size_t)rows * (down_first ? width : to_width) * channels);
    uint8_t *columns = take(&scratch, (size_t)width * channels * ROWS);
    uint8_t *results = take(&scratch, (size_t)to_width * channels * ROWS);
    if (weigh(&across, width, to_width, bicubic, &scratch)) return 1;
    if (weigh(&down, height, to_height, bicubic, &scratch)) return 1;
    if (down_first) {
        along_columns(in, stride, width * channels, half, to_height, &down);
        along_rows(half, (long)width * channels, rows, width, channels, out, to_width, &across, columns, results);
    } else {
        along_rows(in, stride, rows, width, channels, half, to_width, &across, columns, results);
        along_columns(half, (long)to_width * channels, to_width * channels, out, to_height, &down);
    }
    return 0;
}
