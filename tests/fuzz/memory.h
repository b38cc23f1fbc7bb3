/* Memory of an exact size for the fuzzers, so that the sanitizers see every byte beyond it. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void *memory_of(int64_t size) {
    void *memory = aligned_alloc(64, (size_t)(size + 63) / 64 * 64);
    if (!memory)
        abort();
    memset(memory, 0xa5, (size_t)size); /* what is not written must not be read */
    return memory;
}
