/* Shared by the fuzzers: memory of an exact size, so that the sanitizers see every byte beyond it, and
 * the choice of an instruction set. */
#include <sanitizer/asan_interface.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "dynenc.h"

/* Memory is used again soon, as fresh pages take longer than all else. */
const char *__asan_default_options(void) { return "quarantine_size_mb=8:malloc_context_size=4"; }

static void *memory_of(int64_t size) {
    void *memory = aligned_alloc(64, (size_t)(size + 63) / 64 * 64);
    if (!memory)
        abort();
    memset(memory, 0xa5, (size_t)size); /* what is not written must not be read */
    return memory;
}

/* As memory_of, but the same memory at each call, of which only the beginning is overwritten. */
static void *workspace_of(int64_t size) {
    enum { OVERWRITTEN = 1 << 13 };
    static char *kept;
    static int64_t room;
    if (room < size) {
        if (kept)
            __asan_unpoison_memory_region(kept, (size_t)room);
        free(kept);
        room = size < 1 << 20 ? 1 << 20 : 2 * size;
        kept = memory_of(room);
    }
    __asan_unpoison_memory_region(kept, (size_t)size);
    __asan_poison_memory_region(kept + size, (size_t)(room - size));
    memset(kept, 0xa5, (size_t)(size < OVERWRITTEN ? size : OVERWRITTEN));
    return kept;
}

/* An instruction set of this processor by a byte; the portable one, which takes long, by 1 of 16. */
static int32_t path_of(uint8_t byte) {
    int32_t found[DYNENC_PATHS], count = 0;
    for (int32_t path = 1; path < DYNENC_PATHS; path++)
        if (dynenc_has_path(path))
            found[count++] = path;
    return byte % 16 && count ? found[byte / 16 % count] : DYNENC_PORTABLE;
}
