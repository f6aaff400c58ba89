/* Colours of one line (channels one after the other), in place, with the roundings of Pillow and torchvision. */

#pragma once

#include <stdint.h>
#ifdef __AVX512VBMI__
#include <immintrin.h>
#endif

#define PIECE 256 /* pixels whose hue is turned at a time */

static inline int luma(int r, int g, int b) { return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16; }

/* Towards (factor < 1) or away from (factor > 1) a grey: in1 + factor * (in2 - in1), cut to a byte. */
static inline uint8_t blended(int grey, int value, float factor) {
    float x = (float)grey + factor * (float)(value - grey);
    return (uint8_t)(int)(x < 0.0f ? 0.0f : x > 255.0f ? 255.0f : x);
}

static inline uint8_t inverted(uint8_t value, int threshold) { return value < threshold ? value : (uint8_t)~value; }

/* Each byte replaced by what the table has for it. */
static void look_up(uint8_t *row, int n, const uint8_t *table) {
    int i = 0;
#ifdef __AVX512VBMI__
    __m512i part[4];
    for (int k = 0; k < 4; k++) part[k] = _mm512_loadu_si512(table + 64 * k);
    for (; i + 64 <= n; i += 64) {
        __m512i x = _mm512_loadu_si512(row + i);
        __m512i low = _mm512_permutex2var_epi8(part[0], x, part[1]);
        __m512i high = _mm512_permutex2var_epi8(part[2], x, part[3]);
        _mm512_storeu_si512(row + i, _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high));
    }
#endif
    for (; i < n; i++) row[i] = table[row[i]];
}

/* Sum of the luma of `width` pixels; of the values themselves where there are not three channels. */
static int64_t luma_sum(const uint8_t *row, int width, int channels) {
    int64_t total = 0;
    for (int start = 0; start < width; start += 4096) {
        const uint8_t *r = row + start, *g = r + width, *b = g + width;
        int n = width - start < 4096 ? width - start : 4096, part = 0;
        if (channels == 3)
            for (int i = 0; i < n; i++) part += luma(r[i], g[i], b[i]);
        else
            for (int i = 0; i < n; i++) part += r[i];
        total += part;
    }
    return total;
}

/* factor 0 is grey, 1 the pixels themselves, more than 1 more colour than they have. */
static void saturation(uint8_t *restrict r, uint8_t *restrict g, uint8_t *restrict b, int n, float factor) {
    for (int i = 0; i < n; i++) {
        int grey = luma(r[i], g[i], b[i]);
        r[i] = blended(grey, r[i], factor);
        g[i] = blended(grey, g[i], factor);
        b[i] = blended(grey, b[i], factor);
    }
}

/* A whole number from 0 to 255, divided by 255 as division in single precision rounds it. */
static inline float part_of_255(float x) {
    const float high = 257.0f / 65536.0f, low = (float)(1.0 / 255.0 - 257.0 / 65536.0); /* x * high is exact */
    return x * high + x * low;
}

static inline float part_of_85(int x) {
    const float high = 771.0f / 65536.0f, low = (float)(1.0 / 85.0 - 771.0 / 65536.0);
    return (float)x * high + (float)x * low;
}

/* What is left of a value where a channel loses `parts` of 85 of the saturation; more than 85 count as 85. */
static inline uint8_t less(float value, float depth, int parts) {
    int share = parts < 0 ? 0 : parts > 85 ? 85 : parts;
    return (uint8_t)(int)(value * (1.0f - depth * part_of_85(share)) + 0.5f);
}

/* Hue (0 to 254), saturation (a fraction) and value of at most PIECE pixels, as Pillow's conversion rounds them.
   Pillow computes the hue in double precision. Here it is single, and equal for every pixel there can be: it depends on
   which channel is the highest and on two differences of bytes, and the tests go through all of them. */
static void to_hsv(const uint8_t *restrict r, const uint8_t *restrict g, const uint8_t *restrict b, int n,
                   int *restrict angle, float *restrict depth, float *restrict value) {
    for (int i = 0; i < n; i++) {
        int red = r[i], green = g[i], blue = b[i];
        int high = red > green ? red : green, low = red < green ? red : green;
        high = high > blue ? high : blue;
        low = low < blue ? low : blue;
        int range = high - low, middle = red + green + blue - high - low;
        /* the channel after the highest on the circle red, green, blue, and the one before it */
        int after = red == high ? green : green == high ? blue : red;
        int before = red == high ? blue : green == high ? red : green;
        float base = red == high ? 0.0f : green == high ? 2.0f : 4.0f;
        float q = (float)(high - middle) / (float)(range > 1 ? range : 1);
        float up = (base + 1.0f) - q, down = (base - 1.0f) + q, turn = after >= before ? up : down;
        float h = turn / 6.0f, lifted = h + 1.0f;
        h = turn < 0.0f ? lifted : h;
        angle[i] = (int)(h * 255.0f); /* whatever it is where all are equal: nothing is taken of no saturation */
        depth[i] = part_of_255((float)(int)(255.0f * (float)range / (float)(high > 1 ? high : 1)));
        value[i] = (float)high;
    }
}

/* Through HSV in bytes, as Pillow goes: the hue moves by `shift` of 256 steps. */
static void hue(uint8_t *restrict r, uint8_t *restrict g, uint8_t *restrict b, int length, int shift) {
    int angle[PIECE];
    float depth[PIECE], value[PIECE];
    for (int start = 0; start < length; start += PIECE, r += PIECE, g += PIECE, b += PIECE) {
        int n = length - start < PIECE ? length - start : PIECE;
        to_hsv(r, g, b, n, angle, depth, value);
        for (int i = 0; i < n; i++) {
            int six = ((angle[i] + shift) & 255) * 2; /* parts of 85 of a sector; 510 is 0 */
            six = six == 510 ? 0 : six;
            int red = six - 85 < 425 - six ? six - 85 : 425 - six;
            int green = six - 255 > 85 - six ? six - 255 : 85 - six;
            int blue = six - 425 > 255 - six ? six - 425 : 255 - six;
            r[i] = less(value[i], depth[i], red);
            g[i] = less(value[i], depth[i], green);
            b[i] = less(value[i], depth[i], blue);
        }
    }
}
