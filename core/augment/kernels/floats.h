/* Lines to normalised floats: each byte looked up in a table of 256 floats. */

#pragma once

#include <stdint.h>
#include <string.h>
#ifdef __AVX512VBMI__
#include <immintrin.h>
#endif

/* planes[k][i]: byte k of values[i] in memory, so that a float can be looked up as four bytes. */
static void split(const float *values, uint8_t *planes) {
    for (int i = 0; i < 256; i++) {
        uint8_t bytes[4];
        memcpy(bytes, values + i, 4);
        for (int k = 0; k < 4; k++) planes[256 * k + i] = bytes[k];
    }
}

/* `width` floats of a channel of a line, from right to left where mirrored. */
static void give_floats(const uint8_t *line, int width, int mirrored, const float *values, const uint8_t *planes,
                        float *restrict out) {
#ifdef __AVX512VBMI__
    if (width >= 64) {
        __m512i table[16];
        uint8_t places[64]; /* of what comes to lie in the order of the floats once the planes are interleaved */
        for (int i = 0; i < 64; i++) {
            int place = i / 4 % 4 * 16 + i / 16 * 4 + i % 4;
            places[i] = (uint8_t)(mirrored ? 63 - place : place);
        }
        __m512i order = _mm512_loadu_si512(places);
        for (int i = 0; i < 16; i++) table[i] = _mm512_loadu_si512(planes + 64 * i);
        for (int x = 0; x < width; x += 64) { /* the last block overlaps the one before it */
            int start = x + 64 > width ? width - 64 : x;
            __m512i in = _mm512_loadu_si512(line + (mirrored ? width - 64 - start : start)), part[4];
            in = _mm512_permutexvar_epi8(order, in);
            __mmask64 upper = _mm512_movepi8_mask(in);
            for (int k = 0; k < 4; k++)
                part[k] = _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(table[4 * k], in, table[4 * k + 1]),
                                                 _mm512_permutex2var_epi8(table[4 * k + 2], in, table[4 * k + 3]));
            __m512i low01 = _mm512_unpacklo_epi8(part[0], part[1]), high01 = _mm512_unpackhi_epi8(part[0], part[1]);
            __m512i low23 = _mm512_unpacklo_epi8(part[2], part[3]), high23 = _mm512_unpackhi_epi8(part[2], part[3]);
            _mm512_storeu_si512(out + start, _mm512_unpacklo_epi16(low01, low23));
            _mm512_storeu_si512(out + start + 16, _mm512_unpackhi_epi16(low01, low23));
            _mm512_storeu_si512(out + start + 32, _mm512_unpacklo_epi16(high01, high23));
            _mm512_storeu_si512(out + start + 48, _mm512_unpackhi_epi16(high01, high23));
        }
        return;
    }
#endif
    (void)planes;
    if (mirrored)
        for (int x = 0; x < width; x++) out[x] = values[line[width - 1 - x]];
    else
        for (int x = 0; x < width; x++) out[x] = values[line[x]];
}
