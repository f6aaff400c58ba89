/* One view of an image in one call: crop, resize, colours, blur, mirror, and bytes or normalised floats at the end.

   Bit for bit what Pillow computes, several times as fast; called by core/augment/native.py through ctypes. Images are
   uint8, height x width x channels, rows packed unless a stride is given. geometry.py and colour.py say with numpy and
   Pillow what each operation means; the tests hold the two equal. In between a view is lines (resample.h), so that
   loops are flat, counted and without branches, and a compiler turns them into vector code by itself.

   Operations on pixels that follow one another are done line by line while the line is in the nearest cache, and with
   them the mean that a contrast waits for, or the last step to bytes or floats. */

#include "blur.h"
#include "colour.h"
#include "floats.h"
#include "resample.h"

enum { BLEND, CONTRAST, SATURATION, HUE, INVERT, BLUR }; /* as in native.py */

typedef struct {
    int32_t kind;
    int32_t number;       /* BLEND: grey; HUE: shift; INVERT: threshold; BLUR: radius */
    float factor;         /* BLEND, CONTRAST, SATURATION */
    uint32_t whole, edge; /* BLUR */
} Operation;

typedef struct {
    uint8_t *lines;
    int height, width, channels;
} Image;

typedef struct {
    int mirrored;
    uint8_t *bytes;        /* height x width x channels, or */
    float *floats;         /* channels x height x width, looked up in */
    const float *values;   /* channels x 256 */
    const uint8_t *planes; /* of the values, channels x 4 x 256 */
} Result;

static int by_byte(Operation op) { return op.kind == BLEND || op.kind == INVERT; }

/* What an operation makes of each byte. */
static void tabulate(Operation op, uint8_t *table) {
    for (int i = 0; i < 256; i++)
        table[i] = op.kind == BLEND ? blended(op.number, i, op.factor) : inverted((uint8_t)i, op.number);
}

static void change(Operation op, const uint8_t *table, uint8_t *line, int width, int channels) {
    uint8_t *green = line + width, *blue = green + width;
    int n = width * channels;
    (void)table;
    switch (op.kind) {
#ifdef __AVX512VBMI__
        case BLEND:
        case INVERT: look_up(line, n, table); break;
#else
        case BLEND:
            for (int i = 0; i < n; i++) line[i] = blended(op.number, line[i], op.factor);
            break;
        case INVERT:
            for (int i = 0; i < n; i++) line[i] = inverted(line[i], op.number);
            break;
#endif
        case SATURATION: saturation(line, green, blue, width, op.factor); break;
        case HUE: hue(line, green, blue, width, op.number); break;
    }
}

static void reverse(uint8_t *line, int width) {
    for (int x = 0; x < width / 2; x++) {
        uint8_t left = line[x];
        line[x] = line[width - 1 - x];
        line[width - 1 - x] = left;
    }
}

static void give_bytes(uint8_t *line, int width, int channels, int mirrored, uint8_t *restrict out) {
    for (int c = 0; mirrored && c < channels; c++) reverse(line + c * width, width);
    if (channels == 3) {
        const uint8_t *green = line + width, *blue = green + width;
        for (int x = 0; x < width; x++) {
            out[3 * x] = line[x];
            out[3 * x + 1] = green[x];
            out[3 * x + 2] = blue[x];
        }
        return;
    }
    for (int c = 0; c < channels; c++, line += width)
        for (int x = 0; x < width; x++) out[x * channels + c] = line[x];
}

/* One walk over the lines: `count` operations on pixels, then what is wanted: the sum of the luma, or the result. */
static int64_t walk(Image image, const Operation *ops, const uint8_t *tables, int count, int want_luma,
                    const Result *result) {
    int64_t total = 0;
    size_t plane = (size_t)image.height * image.width;
    for (int y = 0; y < image.height; y++) {
        uint8_t *line = image.lines + (size_t)y * image.width * image.channels;
        for (int i = 0; i < count; i++) change(ops[i], tables + 256 * i, line, image.width, image.channels);
        if (want_luma) total += luma_sum(line, image.width, image.channels);
        if (result && result->bytes)
            give_bytes(line, image.width, image.channels, result->mirrored,
                       result->bytes + (size_t)y * image.width * image.channels);
        for (int c = 0; result && result->floats && c < image.channels; c++)
            give_floats(line + c * image.width, image.width, result->mirrored, result->values + 256 * c,
                        result->planes + 1024 * c, result->floats + c * plane + (size_t)y * image.width);
    }
    return total;
}

/* The last operations that look at single bytes become part of the table that makes floats. Returns what is left. */
static int fold(const Operation *ops, const uint8_t *tables, int first, int count, int channels, const float *values,
                float *folded) {
    int left = count;
    while (left > first && by_byte(ops[left - 1])) left--;
    for (int i = 0; i < 256; i++) {
        uint8_t value = (uint8_t)i;
        for (int k = left; k < count; k++) value = tables[256 * k + value];
        for (int c = 0; c < channels; c++) folded[256 * c + i] = values[256 * c + value];
    }
    return left;
}

/* All operations in their order, in as few walks as that allows. Returns 1 where the scratch memory is too small. */
static int carry_out(Image image, Operation *ops, int count, Result result, Scratch scratch) {
    uint8_t *tables = take(&scratch, 256 * (size_t)count);
    float *folded = take(&scratch, sizeof(float) * 256 * image.channels);
    uint8_t *planes = take(&scratch, 1024 * (size_t)image.channels);
    int first = 0;
    if (!planes) return 1;
    for (int i = 0; i < count; i++) {
        if (ops[i].kind == CONTRAST) {
            int64_t total = walk(image, ops + first, tables + 256 * first, i - first, 1, NULL);
            ops[i].kind = BLEND;
            ops[i].number = (int)((double)total / ((double)image.height * image.width) + 0.5);
            first = i;
        } else if (ops[i].kind == BLUR) {
            if (i > first) walk(image, ops + first, tables + 256 * first, i - first, 0, NULL);
            Box box = {ops[i].number, ops[i].whole, ops[i].edge};
            if (blur(image.lines, image.height, image.width, image.channels, box, scratch)) return 1;
            first = i + 1;
        }
        if (by_byte(ops[i])) tabulate(ops[i], tables + 256 * i);
    }
    int end = count;
    if (result.floats) {
        end = fold(ops, tables, first, count, image.channels, result.values, folded);
        for (int c = 0; c < image.channels; c++) split(folded + 256 * c, planes + 1024 * c);
        result.values = folded;
        result.planes = planes;
    }
    walk(image, ops + first, tables + 256 * first, end - first, 0, &result);
    return 0;
}

/* `in`: height x width x channels, resized to to_height x to_width, changed by `count` operations, mirrored if asked;
   given as `bytes`, or as `floats` by `values`. `ops` is overwritten. Returns 1 where `memory` is too small. */
int view(const uint8_t *in, long stride, int height, int width, int channels, int to_height, int to_width, int bicubic,
         int mirrored, Operation *ops, int count, uint8_t *bytes, float *floats, const float *values, uint8_t *memory,
         size_t bytes_of_memory) {
    Scratch scratch = {memory, bytes_of_memory};
    Image image = {take(&scratch, (size_t)to_height * to_width * channels), to_height, to_width, channels};
    if (!image.lines) return 1;
    if (resample(in, stride, height, width, channels, image.lines, to_height, to_width, bicubic, scratch)) return 1;
    return carry_out(image, ops, count, (Result){mirrored, bytes, floats, values, NULL}, scratch);
}
