/* Instruction sets: includes the file KERNELS, hot loops, once for each of this processor's family.
 *
 * Defined for the loops are:
 *
 * PATH(name)             the name of a function for this instruction set
 * TARGET                 the attribute that allows its instructions
 * LANES                  32-bit lanes of a vector, TILE % (2 * LANES) == 0
 * ROWS                   4 or 8: half as many as there are sums that fit the registers
 * VEC, PAIRS, WEIGHTS    LANES int32; LANES pairs of int16; a pair of int16 for every lane
 * splat(x)               VEC of one int32
 * load_pairs(p)          PAIRS from int16 p[2 * LANES]
 * load_weights(p)        WEIGHTS from a pair of int16 in the int32 *p
 * multiply_add(s, x, w)  s + x[0] * w[0] + x[1] * w[1] in each lane
 * store_units(p, a, b)   units of sums, s >> 10 within 0..MAX_VALUE, to int16 p[2 * LANES], interleaved
 * gather(p, a, b)        int16 a[LANES] and b[LANES] to int16 p[2 * LANES], interleaved
 * store(p, s)            VEC to int32 p[LANES]
 * multiply_add_bytes(s, x, w)  if there is one: s + the sum of the products of 4 uint8 and 4 int8 in
 *                        each lane; x and w are VEC
 * load(p)                VEC of LANES * 4 bytes, with multiply_add_bytes
 * largest_lane(s)        if there is one: the largest int32 of a VEC
 *
 * After them SELECT(path, name) is the function PATH(name) of a path.
 */
#ifndef DYNENC_PATHS_H
#define DYNENC_PATHS_H

#include "internal.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Any processor: vectors as the compiler makes them. */
#define PATH(name) name##_portable
#define TARGET
#define LANES 4
#define ROWS 4
typedef int32_t Lanes __attribute__((vector_size(16)));
typedef struct {
    Lanes even, odd;
} LanePairs;
#define VEC Lanes
#define PAIRS LanePairs
#define WEIGHTS LanePairs
static ALWAYS_INLINE Lanes splat_portable(int32_t x) { return (Lanes){x, x, x, x}; }
static ALWAYS_INLINE LanePairs load_pairs_portable(const int16_t *p) {
    return (LanePairs){{p[0], p[2], p[4], p[6]}, {p[1], p[3], p[5], p[7]}};
}
static ALWAYS_INLINE LanePairs load_weights_portable(const int32_t *p) {
    const int32_t odd = *p >> 16, even = (int16_t)(*p & 0xffff);
    return (LanePairs){splat_portable(even), splat_portable(odd)};
}
static ALWAYS_INLINE void store_units_portable(int16_t *p, Lanes a, Lanes b) {
    for (int lane = 0; lane < 4; lane++) {
        p[2 * lane] = (int16_t)clamp32(a[lane] >> 10, 0, MAX_VALUE);
        p[2 * lane + 1] = (int16_t)clamp32(b[lane] >> 10, 0, MAX_VALUE);
    }
}
static ALWAYS_INLINE void gather_portable(int16_t *p, const int16_t *a, const int16_t *b) {
    for (int lane = 0; lane < 4; lane++) {
        p[2 * lane] = a[lane];
        p[2 * lane + 1] = b[lane];
    }
}
#define splat splat_portable
#define load_pairs load_pairs_portable
#define load_weights load_weights_portable
#define multiply_add(s, x, w) ((s) + (x).even * (w).even + (x).odd * (w).odd)
#define store_units store_units_portable
#define gather gather_portable
#define store(p, s) memcpy((p), &(s), 16)
#include KERNELS
#include "undefine.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define PATH(name) name##_sse2
#define TARGET
#define LANES 4
#define ROWS 4
#define VEC __m128i
#define PAIRS __m128i
#define WEIGHTS __m128i
#define splat _mm_set1_epi32
#define load_pairs(p) _mm_loadu_si128((const __m128i *)(p))
#define load_weights(p) _mm_set1_epi32(*(p))
#define multiply_add(s, x, w) _mm_add_epi32((s), _mm_madd_epi16((x), (w)))
/* bits 10 to 25 of a sum are its unit, as int16, before it is clamped */
static ALWAYS_INLINE void store_units_sse2(int16_t *p, __m128i a, __m128i b) {
    const __m128i units = _mm_or_si128(_mm_srli_epi32(_mm_slli_epi32(a, 6), 16),
                                       _mm_and_si128(_mm_slli_epi32(b, 6), _mm_set1_epi32(-65536)));
    const __m128i positive = _mm_max_epi16(units, _mm_setzero_si128());
    _mm_storeu_si128((__m128i *)p, _mm_min_epi16(positive, _mm_set1_epi16(MAX_VALUE)));
}
#define store_units store_units_sse2
#define gather(p, a, b)                                                    \
    _mm_storeu_si128((__m128i *)(p),                                       \
                     _mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i *)(a)), \
                                        _mm_loadl_epi64((const __m128i *)(b))))
#define store(p, s) _mm_storeu_si128((__m128i *)(p), (s))
#include KERNELS
#include "undefine.h"

#define PATH(name) name##_avx2
#define TARGET __attribute__((target("avx2")))
#define LANES 8
#define ROWS 4
#define VEC __m256i
#define PAIRS __m256i
#define WEIGHTS __m256i
#define splat _mm256_set1_epi32
#define load_pairs(p) _mm256_loadu_si256((const __m256i *)(p))
#define load_weights(p) _mm256_set1_epi32(*(p))
#define multiply_add(s, x, w) _mm256_add_epi32((s), _mm256_madd_epi16((x), (w)))
TARGET static ALWAYS_INLINE void store_units_avx2(int16_t *p, __m256i a, __m256i b) {
    const __m256i units =
        _mm256_blend_epi16(_mm256_srli_epi32(a, 10), _mm256_slli_epi32(b, 6), 0xaa);
    const __m256i positive = _mm256_max_epi16(units, _mm256_setzero_si256());
    _mm256_storeu_si256((__m256i *)p, _mm256_min_epi16(positive, _mm256_set1_epi16(MAX_VALUE)));
}
#define store_units store_units_avx2
#define widen_avx2(p) _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p)))
#define gather(p, a, b)                    \
    _mm256_storeu_si256((__m256i *)(p),    \
                        _mm256_or_si256(widen_avx2(a), _mm256_slli_epi32(widen_avx2(b), 16)))
#define store(p, s) _mm256_storeu_si256((__m256i *)(p), (s))
#include KERNELS
#include "undefine.h"

#define PATH(name) name##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define LANES 16
#define ROWS 8
#define VEC __m512i
#define PAIRS __m512i
#define WEIGHTS __m512i
#define splat _mm512_set1_epi32
#define load_pairs(p) _mm512_loadu_si512(p)
#define load_weights(p) _mm512_set1_epi32(*(p))
/* assembly, as GCC copies sums before and after its intrinsics for these */
TARGET static ALWAYS_INLINE __m512i multiply_add_avx512(__m512i s, __m512i x, __m512i w) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(s) : "v"(x), "v"(w));
    return s;
}
TARGET static ALWAYS_INLINE __m512i multiply_add_bytes_avx512(__m512i s, __m512i x, __m512i w) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(x), "v"(w));
    return s;
}
#define multiply_add multiply_add_avx512
#define multiply_add_bytes multiply_add_bytes_avx512
#define load(p) _mm512_loadu_si512(p)
TARGET static ALWAYS_INLINE void store_units_avx512(int16_t *p, __m512i a, __m512i b) {
    const __m512i units = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a, 10),
                                                  _mm512_slli_epi32(b, 6));
    const __m512i positive = _mm512_max_epi16(units, _mm512_setzero_si512());
    _mm512_storeu_si512(p, _mm512_min_epi16(positive, _mm512_set1_epi16(MAX_VALUE)));
}
#define store_units store_units_avx512
#define largest_lane _mm512_reduce_max_epi32
#define widen_avx512(p) _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p)))
#define gather(p, a, b)       \
    _mm512_storeu_si512((p), \
                        _mm512_or_si512(widen_avx512(a), _mm512_slli_epi32(widen_avx512(b), 16)))
#define store(p, s) _mm512_storeu_si512((p), (s))
#include KERNELS
#include "undefine.h"
#endif

#if defined(__aarch64__)
#include <arm_neon.h>

#define PATH(name) name##_neon
#define TARGET
#define LANES 4
#define ROWS 8
#define VEC int32x4_t
#define PAIRS int16x4x2_t
#define WEIGHTS int16x4_t
static ALWAYS_INLINE int16x4_t unit_neon(int32x4_t s) {
    const int32x4_t positive = vmaxq_s32(vshrq_n_s32(s, 10), vdupq_n_s32(0));
    return vmovn_s32(vminq_s32(positive, vdupq_n_s32(MAX_VALUE)));
}
static ALWAYS_INLINE void store_units_neon(int16_t *p, int32x4_t a, int32x4_t b) {
    const int16x4x2_t pairs = {{unit_neon(a), unit_neon(b)}};
    vst2_s16(p, pairs);
}
static ALWAYS_INLINE void gather_neon(int16_t *p, const int16_t *a, const int16_t *b) {
    const int16x4x2_t pairs = {{vld1_s16(a), vld1_s16(b)}};
    vst2_s16(p, pairs);
}
#define splat vdupq_n_s32
#define load_pairs(p) vld2_s16(p)
#define load_weights(p) vreinterpret_s16_s32(vdup_n_s32(*(p)))
#define multiply_add(s, x, w) \
    vmlal_lane_s16(vmlal_lane_s16((s), (x).val[0], (w), 0), (x).val[1], (w), 1)
#define gather gather_neon
#define store(p, s) vst1q_s32((p), (s))
#define store_units store_units_neon
#include KERNELS
#include "undefine.h"
#endif

#if defined(__wasm_simd128__)
#include <wasm_simd128.h>

#define PATH(name) name##_simd128
#define TARGET
#define LANES 4
#define ROWS 4
#define VEC v128_t
#define PAIRS v128_t
#define WEIGHTS v128_t
#define splat wasm_i32x4_splat
#define load_pairs wasm_v128_load
#define load_weights wasm_v128_load32_splat
#define multiply_add(s, x, w) wasm_i32x4_add((s), wasm_i32x4_dot_i16x8((x), (w)))
#define unit_simd128(s)                                                          \
    wasm_i32x4_min(wasm_i32x4_max(wasm_i32x4_shr((s), 10), wasm_i32x4_splat(0)), \
                   wasm_i32x4_splat(MAX_VALUE))
#define interleave_simd128(a, b) wasm_i16x8_shuffle((a), (b), 0, 8, 1, 9, 2, 10, 3, 11)
#define gather(p, a, b) \
    wasm_v128_store((p), interleave_simd128(wasm_v128_load64_zero(a), wasm_v128_load64_zero(b)))
#define store wasm_v128_store
#define store_units(p, a, b) \
    wasm_v128_store((p),     \
                    wasm_v128_or(unit_simd128(a), wasm_i32x4_shl(unit_simd128(b), 16)))
#include KERNELS
#include "undefine.h"
#endif

#if defined(__x86_64__)
#define SELECT(path, name)                    \
    ((path) == DYNENC_AVX512   ? name##_avx512 \
     : (path) == DYNENC_AVX2   ? name##_avx2   \
     : (path) == DYNENC_SSE2   ? name##_sse2   \
                               : name##_portable)
#elif defined(__aarch64__)
#define SELECT(path, name) ((path) >= DYNENC_NEON ? name##_neon : name##_portable)
#elif defined(__wasm_simd128__)
#define SELECT(path, name) ((path) == DYNENC_SIMD128 ? name##_simd128 : name##_portable)
#else
#define SELECT(path, name) name##_portable
#endif

#endif
