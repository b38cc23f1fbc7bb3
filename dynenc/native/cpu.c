/* What this processor can do. */
#include "internal.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* Whether the CPU has AVX2, or with `wide` AVX-512 F, BW, VL and VNNI, and the system saves the
 * registers. */
static int32_t has_avx(int32_t wide) {
    uint32_t a, b, c, d, saved, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1))
        return 0;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    const uint32_t needed = wide ? 0xe6 : 0x06;
    if ((saved & needed) != needed || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    return wide ? (b >> 16 & b >> 30 & b >> 31 & c >> 11 & 1) != 0 : (b >> 5 & 1) != 0;
}
#endif

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static int32_t has_dot_products(void) { return getauxval(AT_HWCAP) >> 20 & 1; }
#elif defined(__aarch64__)
/* all processors of this maker have them */
static int32_t has_dot_products(void) {
#if defined(__APPLE__)
    return 1;
#else
    return 0;
#endif
}
#endif

static int32_t find_path(int32_t path) {
    switch (path) {
    case DYNENC_PORTABLE:
        return 1;
#if defined(__x86_64__)
    case DYNENC_SSE2:
        return 1;
    case DYNENC_AVX2:
        return has_avx(0);
    case DYNENC_AVX512:
        return has_avx(1);
#endif
#if defined(__aarch64__)
    case DYNENC_NEON:
        return 1;
    case DYNENC_NEON_DOT:
        return has_dot_products();
#endif
#if defined(__wasm_simd128__)
    case DYNENC_SIMD128:
        return 1;
#endif
    default:
        return 0;
    }
}

int32_t dynenc_has_path(int32_t path) {
    static _Atomic int8_t found[DYNENC_PATHS]; /* asking takes long in a virtual machine */
    if (path < 0 || path >= DYNENC_PATHS)
        return 0;
    if (!found[path])
        found[path] = find_path(path) ? 1 : -1;
    return found[path] > 0;
}
