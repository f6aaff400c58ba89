/* Pixel kernels: bit for bit what Pillow computes, several times as fast. Called by core/native.py through ctypes.

   Images are uint8, height x width x channels, rows packed unless a stride is given. Every kernel has a twin made of
   numpy and Pillow in core/geometry.py or core/colour.py that says what it means; the tests hold the two equal.
   Loops are written so that a compiler turns them into vector code by itself: flat, counted, without branches. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BITS 22 /* fixed-point bits of a resampling weight: 32 - 8 for the pixel - 2 for overshoot */
#define ROWS 32 /* rows that are resampled side by side */
#define CHUNK 256

static inline uint8_t clip8(int value) { return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value; }

static inline int luma(int r, int g, int b) { return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16; }

/* ---------------------------------------------------------------- resampling */
static double kernel(double x, int bicubic) {
    x = fabs(x);
    if (!bicubic) return x < 1.0 ? 1.0 - x : 0.0;
    if (x < 1.0) return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
    return 0.0;
}

typedef struct {
    int taps;     /* room for each output position */
    int *first;   /* first input position */
    int *count;   /* how many inputs count */
    int *weights; /* fixed point, output positions x taps */
} Weights;

/* Weights of an antialiased resize: the kernel widens with the reduction and its sum is made 1. */
static int weigh(Weights *w, int from, int to, int bicubic) {
    double scale = (double)from / to, widen = scale < 1.0 ? 1.0 : scale, support = (bicubic ? 2.0 : 1.0) * widen;
    w->taps = (int)ceil(support) * 2 + 1;
    double *k = malloc(sizeof(double) * w->taps);
    w->first = malloc(sizeof(int) * to);
    w->count = malloc(sizeof(int) * to);
    w->weights = malloc(sizeof(int) * (size_t)to * w->taps);
    if (!k || !w->first || !w->count || !w->weights) {
        free(k);
        return 1;
    }
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
    free(k);
    return 0;
}

static void release(Weights *w) {
    free(w->first);
    free(w->count);
    free(w->weights);
}

typedef uint8_t Sixteen __attribute__((vector_size(16)));
/* A tile of 16 x 16 bytes with rows and columns exchanged: four rounds of interleaving the two halves. */
static void exchange(const uint8_t *in, long in_stride, uint8_t *out, long out_stride) {
    Sixteen x[16], y[16];
    for (int i = 0; i < 16; i++) memcpy(&x[i], in + i * in_stride, 16);
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 8; i++) {
            Sixteen a = x[i], b = x[i + 8];
            y[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            y[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        memcpy(x, y, sizeof x);
    }
    for (int i = 0; i < 16; i++) memcpy(out + i * out_stride, &x[i], 16);
}

/* out[column][row] = in[row][column] */
static void transpose(const uint8_t *in, long in_stride, int rows, int columns, uint8_t *out, long out_stride) {
    int whole_rows = rows / 16 * 16, whole_columns = columns / 16 * 16;
    for (int r = 0; r < whole_rows; r += 16)
        for (int c = 0; c < whole_columns; c += 16)
            exchange(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
    for (int r = 0; r < rows; r++)
        for (int c = r < whole_rows ? whole_columns : 0; c < columns; c++) out[c * out_stride + r] = in[r * in_stride + c];
}

/* Weighted sum of ROWS samples side by side; the next sample of each is `step` bytes on. */
static inline void combine(const uint8_t *restrict in, int step, const int *restrict weights, int count,
                           uint8_t *restrict out) {
    int sum[ROWS];
    for (int r = 0; r < ROWS; r++) sum[r] = 1 << (BITS - 1);
    for (int j = 0; j < count; j++, in += step)
        for (int r = 0; r < ROWS; r++) sum[r] += weights[j] * in[r];
    for (int r = 0; r < ROWS; r++) out[r] = clip8(sum[r] >> BITS);
}

/* ROWS rows at once: their samples of one column lie side by side, so each tap is one short vector product. */
static void along_rows(const uint8_t *in, long stride, int rows, int width, int channels, uint8_t *out, int to,
                       const Weights *w, uint8_t *columns, uint8_t *results) {
    for (int y = 0; y < rows; y += ROWS) {
        int n = rows - y < ROWS ? rows - y : ROWS;
        transpose(in + y * stride, stride, n, width * channels, columns, ROWS);
        for (int x = 0; x < to; x++)
            for (int c = 0; c < channels; c++)
                combine(columns + ((size_t)w->first[x] * channels + c) * ROWS, channels * ROWS,
                        w->weights + (size_t)x * w->taps, w->count[x], results + ((size_t)x * channels + c) * ROWS);
        transpose(results, ROWS, to * channels, n, out + (size_t)y * to * channels, (long)to * channels);
    }
}

static void along_columns(const uint8_t *in, long stride, int length, uint8_t *restrict out, int to, const Weights *w,
                          int *restrict sum) {
    for (int y = 0; y < to; y++, out += length) {
        const uint8_t *row = in + w->first[y] * stride;
        const int *k = w->weights + (size_t)y * w->taps;
        for (int i = 0; i < length; i++) sum[i] = 1 << (BITS - 1);
        for (int j = 0; j < w->count[y]; j++, row += stride)
            for (int i = 0; i < length; i++) sum[i] += k[j] * row[i];
        for (int i = 0; i < length; i++) out[i] = clip8(sum[i] >> BITS);
    }
}

/* `in`: height x width x channels with `stride` bytes from row to row; `out`: to_height x to_width x channels.
   Between the two passes values are bytes, so their order counts: as in Pillow 13, columns first where the height
   shrinks by more than twice what the width does. */
int resample(const uint8_t *in, long stride, int height, int width, int channels, uint8_t *out, int to_height,
             int to_width, int bicubic) {
    int down_first = height > to_height && height - to_height > 2 * (width - to_width);
    int rows = down_first ? to_height : height, longest = width > to_width ? width : to_width;
    Weights across = {0}, down = {0};
    uint8_t *half = malloc((size_t)rows * (down_first ? width : to_width) * channels);
    uint8_t *columns = calloc((size_t)width * channels, ROWS), *results = malloc((size_t)to_width * channels * ROWS);
    int *sum = malloc(sizeof(int) * (size_t)longest * channels);
    int failed = !half || !columns || !results || !sum || weigh(&across, width, to_width, bicubic) ||
                 weigh(&down, height, to_height, bicubic);
    if (!failed && down_first) {
        along_columns(in, stride, width * channels, half, to_height, &down, sum);
        along_rows(half, (long)width * channels, rows, width, channels, out, to_width, &across, columns, results);
    } else if (!failed) {
        along_rows(in, stride, rows, width, channels, half, to_width, &across, columns, results);
        along_columns(half, (long)to_width * channels, to_width * channels, out, to_height, &down, sum);
    }
    free(half);
    free(columns);
    free(results);
    free(sum);
    release(&across);
    release(&down);
    return failed;
}

/* ---------------------------------------------------------------- blur */
/* One box of radius `radius` with fractional edges: weight `whole` inside, `edge` just outside, both of 2^24. */
static void box_row(const uint8_t *restrict in, uint8_t *restrict out, uint32_t *restrict sum, long n, int step,
                    int radius, uint32_t whole, uint32_t edge) {
    long far = (long)step * (radius + 1);
    for (long i = 0; i < n; i++) sum[i] = in[i];
    for (int k = 1; k <= radius; k++)
        for (long i = 0; i < n; i++) sum[i] += in[i - (long)k * step] + in[i + (long)k * step];
    for (long i = 0; i < n; i++)
        out[i] = (uint8_t)((sum[i] * whole + (uint32_t)(in[i - far] + in[i + far]) * edge + (1u << 23)) >> 24);
}

/* Three boxes along the rows and three along the columns, in place; edges repeat. Pillow's GaussianBlur. */
int blur(uint8_t *image, int height, int width, int channels, int radius, uint32_t whole, uint32_t edge) {
    long row = (long)width * channels, pad = (long)(radius + 1) * channels;
    uint8_t *padded = malloc(row + 2 * pad), *result = malloc(row);
    uint32_t *sum = malloc(sizeof(uint32_t) * row);
    uint8_t *copy = malloc((size_t)row * (height + 2 * (radius + 1)));
    int failed = !padded || !result || !sum || !copy;
    if (!failed) {
        for (int y = 0; y < height; y++) {
            uint8_t *line = image + y * row;
            for (int pass = 0; pass < 3; pass++) {
                memcpy(padded + pad, line, row);
                for (long i = 0; i < pad; i++) {
                    padded[i] = line[i % channels];
                    padded[pad + row + i] = line[row - channels + i % channels];
                }
                box_row(padded + pad, line, sum, row, channels, radius, whole, edge);
            }
        }
        for (int pass = 0; pass < 3; pass++) {
            for (int y = -radius - 1; y <= height + radius; y++) {
                int source = y < 0 ? 0 : y >= height ? height - 1 : y;
                memcpy(copy + (size_t)(y + radius + 1) * row, image + source * row, row);
            }
            for (int y = 0; y < height; y++)
                box_row(copy + (size_t)(y + radius + 1) * row, image + y * row, sum, row, (int)row, radius, whole, edge);
        }
    }
    free(padded);
    free(result);
    free(sum);
    free(copy);
    return failed;
}

/* ---------------------------------------------------------------- colour, three channels */
/* Towards (factor < 1) or away from (factor > 1) a grey: in1 + factor * (in2 - in1), cut to a byte. */
static inline uint8_t blended(int grey, int value, float factor) {
    float x = (float)grey + factor * (float)(value - grey);
    return (uint8_t)(int)(x < 0.0f ? 0.0f : x > 255.0f ? 255.0f : x);
}

void blend(const uint8_t *in, uint8_t *out, long bytes, int grey, float factor) {
    for (long i = 0; i < bytes; i++) out[i] = blended(grey, in[i], factor);
}

/* Sum of the luma of `pixels` RGB pixels. */
int64_t luma_sum(const uint8_t *in, long pixels) {
    int64_t total = 0;
    for (long start = 0; start < pixels; start += 4096) {
        long end = start + 4096 < pixels ? start + 4096 : pixels;
        int part = 0;
        for (long i = start; i < end; i++) part += luma(in[3 * i], in[3 * i + 1], in[3 * i + 2]);
        total += part;
    }
    return total;
}

/* factor 0 is grey, 1 the image itself, more than 1 more colour than it has. */
void saturation(const uint8_t *in, uint8_t *out, long pixels, float factor) {
    for (long i = 0; i < 3 * pixels; i += 3) {
        int grey = luma(in[i], in[i + 1], in[i + 2]);
        for (int c = 0; c < 3; c++) out[i + c] = blended(grey, in[i + c], factor);
    }
}

/* What a hue takes from each channel, as a share of the saturation, after `shift` of 256 steps around the circle. */
static void hue_shares(float share[3][256], int shift) {
    for (int h = 0; h < 256; h++) {
        double six = ((h + shift) & 255) * 6.0 / 255.0;
        float down = (float)(six - floor(six)), up = 1.0f - down;
        int sector = (int)six % 6;
        float r[6] = {0, down, 1, 1, up, 0}, g[6] = {up, 0, 0, down, 1, 1}, b[6] = {1, 1, up, 0, 0, down};
        share[0][h] = r[sector];
        share[1][h] = g[sector];
        share[2][h] = b[sector];
    }
}

/* Hue, saturation (as a fraction) and value of `n` pixels; the roundings are those of Pillow's conversion. */
static void to_hsv(const uint8_t *restrict in, int n, int *restrict angle, float *restrict depth, int *restrict value) {
    for (int i = 0; i < n; i++) {
        int r = in[3 * i], g = in[3 * i + 1], b = in[3 * i + 2];
        int high = r > g ? r : g, low = r < g ? r : g;
        high = high > b ? high : b;
        low = low < b ? low : b;
        int add = r == high ? b : g == high ? r : g, take = r == high ? g : g == high ? b : r;
        float range = (float)(high > low ? high - low : 1);
        float up = (float)(high - add) / range, down = (float)(high - take) / range;
        double base = r == high ? 0.0 : g == high ? 2.0 : 4.0;
        float turn = (float)(base + up - down);
        double part = turn / 6.0 + 1.0;
        float h = (float)(part >= 1.0 ? part - 1.0 : part);
        angle[i] = high > low ? (int)(h * 255.0) : 0;
        depth[i] = (float)(int)(255.0f * (float)(high - low) / (float)(high > 0 ? high : 1)) / 255.0f;
        value[i] = high;
    }
}

/* Through HSV in bytes: the hue moves by `shift` of 256 steps. */
void hue(const uint8_t *in, uint8_t *out, long pixels, int shift) {
    float share[3][256], depth[CHUNK];
    int angle[CHUNK], value[CHUNK];
    uint8_t plane[3][CHUNK];
    hue_shares(share, shift);
    for (long start = 0; start < pixels; start += CHUNK) {
        int n = (int)(pixels - start < CHUNK ? pixels - start : CHUNK);
        to_hsv(in + 3 * start, n, angle, depth, value);
        for (int c = 0; c < 3; c++)
            for (int i = 0; i < n; i++)
                plane[c][i] = (uint8_t)(int)((float)value[i] * (1.0f - depth[i] * share[c][angle[i]]) + 0.5f);
        for (int i = 0; i < n; i++)
            for (int c = 0; c < 3; c++) out[3 * (start + i) + c] = plane[c][i];
    }
}

/* ---------------------------------------------------------------- to the model */
void mirror(const uint8_t *restrict in, uint8_t *restrict out, int height, int width, int channels) {
    for (int y = 0; y < height; y++) {
        const uint8_t *source = in + ((long)y + 1) * width * channels;
        uint8_t *target = out + (long)y * width * channels;
        if (channels == 3)
            for (int x = 0; x < width; x++, target += 3) {
                source -= 3;
                target[0] = source[0];
                target[1] = source[1];
                target[2] = source[2];
            }
        else
            for (int x = 0; x < width; x++, target += channels) memcpy(target, source -= channels, channels);
    }
}

/* `out`: channels x pixels floats, looked up in channels x 256 values. */
void normalise(const uint8_t *in, float *out, long pixels, int channels, const float *values) {
    for (int c = 0; c < channels; c++, out += pixels, values += 256)
        for (long i = 0; i < pixels; i++) out[i] = values[in[i * channels + c]];
}
