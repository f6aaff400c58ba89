/* Memory for one call, lent by the caller: it stays where it is between calls, so that no page is faulted in twice. */

#pragma once

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t *at;
    size_t left;
} Scratch;

/* `bytes` of it, aligned for vectors; NULL where it is too small. */
static void *take(Scratch *scratch, size_t bytes) {
    uint8_t *start = scratch->at;
    size_t used = (bytes + (-(uintptr_t)(start + bytes) & 63));
    if (!start || used > scratch->left) {
        scratch->at = NULL;
        return NULL;
    }
    scratch->at += used;
    scratch->left -= used;
    return start;
}
