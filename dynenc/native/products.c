/* The hot loops of products.h for every instruction set of this processor's family. */
#include "pixels.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define EACH_OF_4(DO) DO(0) DO(1) DO(2) DO(3)
#define EACH_OF_8(DO) EACH_OF_4(DO) DO(4) DO(5) DO(6) DO(7)
#define EACH_OF_12(DO) EACH_OF_8(DO) DO(8) DO(9) DO(10) DO(11)

static ALWAYS_INLINE int32_t four(const void *p) {
    int32_t bytes;
    memcpy(&bytes, p, 4);
    return bytes;
}

/* Any processor: vectors as the compiler makes them. */
#define PATH(name) name##_portable
#define TARGET
#define LANES 4
#define LARGE 4
#define SMALL 4
typedef struct {
    int32_t lanes[4];
} Sums;
typedef struct {
    int16_t lanes[8];
} Shorts;
#define VEC Sums
#define SHORTS Shorts
#define BIAS 0
#define EACH for (int lane = 0; lane < 8; lane++)
static ALWAYS_INLINE Sums load_sums_portable(const int32_t *p) {
    Sums sums;
    memcpy(&sums, p, sizeof sums);
    return sums;
}
static ALWAYS_INLINE Shorts load_portable(const int16_t *p) {
    Shorts shorts;
    memcpy(&shorts, p, sizeof shorts);
    return shorts;
}
static ALWAYS_INLINE void dot_portable(Sums *a, Sums *b, const uint8_t *x, const int8_t *w) {
    for (int lane = 0; lane < 4; lane++)
        for (int k = 0; k < 4; k++) {
            a->lanes[lane] += w[4 * lane + k] * x[k];
            b->lanes[lane] += w[64 + 4 * lane + k] * x[k];
        }
}
static ALWAYS_INLINE Shorts pack_portable(Sums a, Sums b, int shift) {
    Shorts y;
    EACH y.lanes[lane] = (int16_t)clamp32(
        (lane < 4 ? a.lanes[lane] : b.lanes[lane - 4]) >> shift, INT16_MIN, INT16_MAX);
    return y;
}
static ALWAYS_INLINE Shorts splat_portable(int16_t x) {
    Shorts y;
    EACH y.lanes[lane] = x;
    return y;
}
static ALWAYS_INLINE Shorts scaled_portable(Shorts a, Shorts b) {
    EACH a.lanes[lane] = (int16_t)((a.lanes[lane] * b.lanes[lane] + (1 << 14)) >> 15);
    return a;
}
static ALWAYS_INLINE Shorts add_portable(Shorts a, Shorts b) {
    EACH a.lanes[lane] = (int16_t)clamp32(a.lanes[lane] + b.lanes[lane], INT16_MIN, INT16_MAX);
    return a;
}
static ALWAYS_INLINE Shorts low_portable(Shorts a, Shorts b) {
    EACH a.lanes[lane] = a.lanes[lane] < b.lanes[lane] ? a.lanes[lane] : b.lanes[lane];
    return a;
}
static ALWAYS_INLINE Shorts high_portable(Shorts a, Shorts b) {
    EACH a.lanes[lane] = a.lanes[lane] > b.lanes[lane] ? a.lanes[lane] : b.lanes[lane];
    return a;
}
static ALWAYS_INLINE Shorts negative_portable(Shorts a) {
    EACH a.lanes[lane] = (int16_t)-a.lanes[lane];
    return a;
}
static ALWAYS_INLINE Shorts right_portable(Shorts a, int shift) {
    EACH a.lanes[lane] = (int16_t)(a.lanes[lane] >> shift);
    return a;
}
static ALWAYS_INLINE void store_bytes_portable(uint8_t *p, Shorts a) {
    EACH p[lane] = (uint8_t)(clamp32(a.lanes[lane], -128, 127) + 128);
}
static ALWAYS_INLINE void store_pixels_portable(uint8_t *p, Shorts a) {
    EACH p[lane] = (uint8_t)clamp32(a.lanes[lane], 0, 255);
}
static ALWAYS_INLINE Sums add_pairs_portable(Sums a, int32_t pair, const int16_t *w) {
    int16_t x[2];
    memcpy(x, &pair, sizeof x);
    for (int lane = 0; lane < 4; lane++)
        a.lanes[lane] += x[0] * w[2 * lane] + x[1] * w[2 * lane + 1];
    return a;
}
#define add_pairs add_pairs_portable
#define load_sums load_sums_portable
#define STEP 4
#define WEIGHTS int8_t *
#define load_weights(p) (p)
#define dot(a, b, x, w) dot_portable(&a, &b, (x), (w));
#define pack pack_portable
#define load load_portable
#define splat splat_portable
#define scaled scaled_portable
#define add add_portable
#define low low_portable
#define high high_portable
#define negative negative_portable
#define right right_portable
#define store_bytes store_bytes_portable
#define store_pixels store_pixels_portable
static ALWAYS_INLINE void store_portable(int16_t *p, Shorts a) { memcpy(p, &a, sizeof a); }
#define store store_portable
#include "products.h"
#undef EACH

#if defined(__x86_64__)
#include <immintrin.h>

#define PATH(name) name##_sse2
#define TARGET
#define LANES 4
#define LARGE 4
#define SMALL 4
#define VEC __m128i
#define SHORTS __m128i
#define BIAS 0
/* of four inputs of an output, the first and the third, and the second and the fourth, as int16 */
typedef struct {
    __m128i a_even, a_odd, b_even, b_odd;
} Weights128;
static ALWAYS_INLINE __m128i even_sse2(__m128i bytes) {
    return _mm_srai_epi16(_mm_slli_epi16(bytes, 8), 8);
}
static ALWAYS_INLINE Weights128 load_weights_sse2(const int8_t *p) {
    const __m128i a = _mm_loadu_si128((const __m128i *)p);
    const __m128i b = _mm_loadu_si128((const __m128i *)(p + 64));
    return (Weights128){even_sse2(a), _mm_srai_epi16(a, 8), even_sse2(b), _mm_srai_epi16(b, 8)};
}
static ALWAYS_INLINE __m128i scaled_sse2(__m128i a, __m128i b) {
    const __m128i low = _mm_srli_epi16(_mm_mullo_epi16(a, b), 14); /* rounded by the mean with 0 */
    return _mm_add_epi16(_mm_slli_epi16(_mm_mulhi_epi16(a, b), 1),
                         _mm_avg_epu16(low, _mm_setzero_si128()));
}
static ALWAYS_INLINE __m128i pack_sse2(__m128i a, __m128i b, int shift) {
    const __m128i count = _mm_cvtsi32_si128(shift);
    return _mm_packs_epi32(_mm_sra_epi32(a, count), _mm_sra_epi32(b, count));
}
#define STEP 4
#define WEIGHTS Weights128
#define load_weights load_weights_sse2
#define dot(a, b, x, w)                                                          \
    {                                                                            \
        const __m128i inputs = _mm_set1_epi32(four(x));                          \
        const __m128i even = _mm_and_si128(inputs, _mm_set1_epi16(255));         \
        const __m128i odd = _mm_srli_epi16(inputs, 8);                           \
        a = _mm_add_epi32(a, _mm_madd_epi16(even, w.a_even));                    \
        b = _mm_add_epi32(b, _mm_madd_epi16(even, w.b_even));                    \
        a = _mm_add_epi32(a, _mm_madd_epi16(odd, w.a_odd));                      \
        b = _mm_add_epi32(b, _mm_madd_epi16(odd, w.b_odd));                      \
    }
#define add_pairs(a, pair, p) _mm_add_epi32((a), _mm_madd_epi16(_mm_set1_epi32(pair), load(p)))
#define pack pack_sse2
#define load_sums(p) _mm_loadu_si128((const __m128i *)(p))
#define load(p) _mm_loadu_si128((const __m128i *)(p))
#define store(p, v) _mm_storeu_si128((__m128i *)(p), (v))
#define splat _mm_set1_epi16
#define scaled scaled_sse2
#define add _mm_adds_epi16
#define low _mm_min_epi16
#define high _mm_max_epi16
#define negative(a) _mm_sub_epi16(_mm_setzero_si128(), (a))
#define right(a, shift) _mm_sra_epi16((a), _mm_cvtsi32_si128(shift))
#define store_bytes(p, v)                 \
    _mm_storel_epi64((__m128i *)(p),      \
                     _mm_xor_si128(_mm_set1_epi8(-128), _mm_packs_epi16((v), (v))))
#define store_pixels(p, v) _mm_storel_epi64((__m128i *)(p), _mm_packus_epi16((v), (v)))
#include "products.h"

#define PATH(name) name##_avx2
#define TARGET __attribute__((target("avx2")))
#define LANES 8
#define LARGE 4
#define SMALL 4
#define VEC __m256i
#define SHORTS __m256i
#define BIAS 0
typedef struct {
    __m256i a0, b0, a1, b1;
} Weights256;
TARGET static ALWAYS_INLINE Weights256 load_weights_avx2(const int8_t *p) {
    return (Weights256){_mm256_loadu_si256((const __m256i *)p),
                        _mm256_loadu_si256((const __m256i *)(p + 64)),
                        _mm256_loadu_si256((const __m256i *)(p + 128)),
                        _mm256_loadu_si256((const __m256i *)(p + 192))};
}
/* the products of uint8 and int8 in sums of four, which fit 16 bits: QUAD */
TARGET static ALWAYS_INLINE __m256i eights_avx2(__m256i x0, __m256i w0, __m256i x1, __m256i w1) {
    const __m256i fours =
        _mm256_add_epi16(_mm256_maddubs_epi16(x0, w0), _mm256_maddubs_epi16(x1, w1));
    return _mm256_madd_epi16(fours, _mm256_set1_epi16(1));
}
TARGET static ALWAYS_INLINE __m256i pack_avx2(__m256i a, __m256i b, int shift) {
    const __m128i count = _mm_cvtsi32_si128(shift);
    return _mm256_packs_epi32(_mm256_sra_epi32(a, count), _mm256_sra_epi32(b, count));
}
TARGET static ALWAYS_INLINE __m128i low_half_avx2(__m256i packed) {
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
#define STEP 8
#define WEIGHTS Weights256
#define load_weights load_weights_avx2
#define dot(a, b, x, w)                                                 \
    {                                                                   \
        const __m256i x0 = _mm256_set1_epi32(four(x));                  \
        const __m256i x1 = _mm256_set1_epi32(four((x) + 4));            \
        a = _mm256_add_epi32(a, eights_avx2(x0, w.a0, x1, w.a1));       \
        b = _mm256_add_epi32(b, eights_avx2(x0, w.b0, x1, w.b1));       \
    }
#define add_pairs(a, pair, p)                                                        \
    _mm256_add_epi32((a), _mm256_madd_epi16(_mm256_set1_epi32(pair), load(p)))
#define pack pack_avx2
#define load_sums(p) _mm256_loadu_si256((const __m256i *)(p))
#define load(p) _mm256_loadu_si256((const __m256i *)(p))
#define store(p, v) _mm256_storeu_si256((__m256i *)(p), (v))
#define splat _mm256_set1_epi16
#define scaled _mm256_mulhrs_epi16
#define add _mm256_adds_epi16
#define low _mm256_min_epi16
#define high _mm256_max_epi16
#define negative(a) _mm256_sub_epi16(_mm256_setzero_si256(), (a))
#define right(a, shift) _mm256_sra_epi16((a), _mm_cvtsi32_si128(shift))
#define store_bytes(p, v)                                                          \
    _mm_storeu_si128((__m128i *)(p), _mm_xor_si128(_mm_set1_epi8(-128),            \
                                                   low_half_avx2(_mm256_packs_epi16((v), (v)))))
#define store_pixels(p, v) \
    _mm_storeu_si128((__m128i *)(p), low_half_avx2(_mm256_packus_epi16((v), (v))))
#include "products.h"

#define PATH(name) name##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define LANES 16
#define LARGE 12
#define SMALL 8
#define VEC __m512i
#define SHORTS __m512i
#define BIAS 0
typedef struct {
    __m512i a, b;
} Weights512;
TARGET static ALWAYS_INLINE Weights512 load_weights_avx512(const int8_t *p) {
    return (Weights512){_mm512_loadu_si512(p), _mm512_loadu_si512(p + 64)};
}
TARGET static ALWAYS_INLINE __m512i pack_avx512(__m512i a, __m512i b, int shift) {
    const __m128i count = _mm_cvtsi32_si128(shift);
    return _mm512_packs_epi32(_mm512_sra_epi32(a, count), _mm512_sra_epi32(b, count));
}
#define STEP 4
#define WEIGHTS Weights512
#define load_weights load_weights_avx512
#define dot(s, r, x, w)                                           \
    {                                                             \
        const __m512i inputs = _mm512_set1_epi32(four(x));        \
        __asm__("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(inputs), "v"(w.a)); \
        __asm__("vpdpbusd %2, %1, %0" : "+v"(r) : "v"(inputs), "v"(w.b)); \
    }
#define add_pairs(a, pair, p)                                                        \
    _mm512_add_epi32((a), _mm512_madd_epi16(_mm512_set1_epi32(pair), load(p)))
#define pack pack_avx512
#define load_sums(p) _mm512_loadu_si512(p)
#define load(p) _mm512_loadu_si512(p)
#define store(p, v) _mm512_storeu_si512((p), (v))
#define splat _mm512_set1_epi16
#define scaled _mm512_mulhrs_epi16
#define add _mm512_adds_epi16
#define low _mm512_min_epi16
#define high _mm512_max_epi16
#define negative(a) _mm512_sub_epi16(_mm512_setzero_si512(), (a))
#define right(a, shift) _mm512_sra_epi16((a), _mm_cvtsi32_si128(shift))
#define store_bytes(p, v)                 \
    _mm256_storeu_si256((__m256i *)(p),   \
                        _mm256_xor_si256(_mm256_set1_epi8(-128), _mm512_cvtsepi16_epi8(v)))
#define store_pixels(p, v)              \
    _mm256_storeu_si256((__m256i *)(p), \
                        _mm512_cvtusepi16_epi8(_mm512_max_epi16((v), _mm512_setzero_si512())))
#include "products.h"
#endif

#if defined(__aarch64__)
#include <arm_neon.h>

static ALWAYS_INLINE int32x4_t add_pairs_neon(int32x4_t sums, int16x8_t x, int16x8_t w) {
    return vaddq_s32(sums, vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(w)),
                                      vmull_high_s16(x, w)));
}

#define PATH(name) name##_neon
#define TARGET
#define LARGE 4
#define SMALL 4
typedef struct {
    int8x16_t a0, b0, a1, b1;
} WeightsNeon;
static ALWAYS_INLINE WeightsNeon load_weights_neon(const int8_t *p) {
    return (WeightsNeon){vld1q_s8(p), vld1q_s8(p + 64), vld1q_s8(p + 128), vld1q_s8(p + 192)};
}
static ALWAYS_INLINE int8x16_t inputs_neon(const uint8_t *x) {
    return veorq_s8(vdupq_n_s8(-128), vreinterpretq_s8_s32(vdupq_n_s32(four(x))));
}
/* sums of two products of int8, and of four, fit 16 bits: QUAD */
static ALWAYS_INLINE int16x8_t pairs_neon(int8x16_t w, int8x16_t x) {
    return vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x));
}
#define STEP 8
#define WEIGHTS WeightsNeon
#define load_weights load_weights_neon
#define dot(a, b, x, w)                                                             \
    {                                                                               \
        const int8x16_t x0 = inputs_neon(x), x1 = inputs_neon((x) + 4);             \
        a = vpadalq_s16(a, vaddq_s16(pairs_neon(w.a0, x0), pairs_neon(w.a1, x1)));  \
        b = vpadalq_s16(b, vaddq_s16(pairs_neon(w.b0, x0), pairs_neon(w.b1, x1)));  \
    }
#include "neon.h"
#include "products.h"

#if defined(__clang__)
#define DOT_PRODUCTS "dotprod"
#else
#define DOT_PRODUCTS "arch=armv8.2-a+dotprod"
#endif
#define PATH(name) name##_neon_dot
#define TARGET __attribute__((target(DOT_PRODUCTS)))
#define LARGE 8
#define SMALL 4
typedef struct {
    int8x16_t a[4], b[4];
} WeightsNeonDot;
static ALWAYS_INLINE WeightsNeonDot load_weights_neon_dot(const int8_t *p) {
    WeightsNeonDot w;
    for (int k = 0; k < 4; k++) {
        w.a[k] = vld1q_s8(p + 128 * k);
        w.b[k] = vld1q_s8(p + 128 * k + 64);
    }
    return w;
}
#define STEP 16
#define WEIGHTS WeightsNeonDot
#define load_weights load_weights_neon_dot
#define dot(s, r, x, w)                                                                   \
    {                                                                                     \
        const int8x16_t inputs =                                                          \
            veorq_s8(vdupq_n_s8(-128), vreinterpretq_s8_u8(vld1q_u8(x)));                 \
        s = vdotq_laneq_s32(s, w.a[0], inputs, 0), r = vdotq_laneq_s32(r, w.b[0], inputs, 0); \
        s = vdotq_laneq_s32(s, w.a[1], inputs, 1), r = vdotq_laneq_s32(r, w.b[1], inputs, 1); \
        s = vdotq_laneq_s32(s, w.a[2], inputs, 2), r = vdotq_laneq_s32(r, w.b[2], inputs, 2); \
        s = vdotq_laneq_s32(s, w.a[3], inputs, 3), r = vdotq_laneq_s32(r, w.b[3], inputs, 3); \
    }
#include "neon.h"
#include "products.h"
#endif

#if defined(__wasm_simd128__)
#include <wasm_simd128.h>

#define PATH(name) name##_simd128
#define TARGET
#define LANES 4
#define LARGE 4
#define SMALL 4
#define VEC v128_t
#define SHORTS v128_t
#define BIAS 0
/* as those of SSE2 */
typedef struct {
    v128_t a_even, a_odd, b_even, b_odd;
} WeightsWasm;
static ALWAYS_INLINE v128_t even_simd128(v128_t bytes) {
    return wasm_i16x8_shr(wasm_i16x8_shl(bytes, 8), 8);
}
static ALWAYS_INLINE WeightsWasm load_weights_simd128(const int8_t *p) {
    const v128_t a = wasm_v128_load(p), b = wasm_v128_load(p + 64);
    return (WeightsWasm){even_simd128(a), wasm_i16x8_shr(a, 8), even_simd128(b),
                         wasm_i16x8_shr(b, 8)};
}
#define STEP 4
#define WEIGHTS WeightsWasm
#define load_weights load_weights_simd128
#define dot(a, b, x, w)                                               \
    {                                                                 \
        const v128_t inputs = wasm_i32x4_splat(four(x));               \
        const v128_t even = wasm_v128_and(inputs, wasm_i16x8_splat(255)); \
        const v128_t odd = wasm_u16x8_shr(inputs, 8);                 \
        a = wasm_i32x4_add(a, wasm_i32x4_dot_i16x8(even, w.a_even));  \
        b = wasm_i32x4_add(b, wasm_i32x4_dot_i16x8(even, w.b_even));  \
        a = wasm_i32x4_add(a, wasm_i32x4_dot_i16x8(odd, w.a_odd));    \
        b = wasm_i32x4_add(b, wasm_i32x4_dot_i16x8(odd, w.b_odd));    \
    }
#define add_pairs(a, pair, p) \
    wasm_i32x4_add((a), wasm_i32x4_dot_i16x8(wasm_i32x4_splat(pair), load(p)))
#define pack(a, b, shift)                                       \
    wasm_i16x8_narrow_i32x4(wasm_i32x4_shr((a), (uint32_t)(shift)), \
                            wasm_i32x4_shr((b), (uint32_t)(shift)))
#define load_sums wasm_v128_load
#define load wasm_v128_load
#define store wasm_v128_store
#define splat wasm_i16x8_splat
#define scaled wasm_i16x8_q15mulr_sat
#define add wasm_i16x8_add_sat
#define low wasm_i16x8_min
#define high wasm_i16x8_max
#define negative wasm_i16x8_neg
#define right(a, shift) wasm_i16x8_shr((a), (uint32_t)(shift))
#define store_bytes(p, v)                                                                  \
    wasm_v128_store64_lane(                                                                \
        (p), wasm_v128_xor(wasm_i8x16_splat(-128), wasm_i8x16_narrow_i16x8((v), (v))), 0)
#define store_pixels(p, v) wasm_v128_store64_lane((p), wasm_u8x16_narrow_i16x8((v), (v)), 0)
#include "products.h"
#endif

PixelKernels dynenc_pixel_kernels(int32_t path) {
    switch (dynenc_has_path(path) ? path : -1) {
    case DYNENC_PORTABLE:
        return (PixelKernels){4, 4, multiply_portable, activate_portable, first_portable};
#if defined(__x86_64__)
    case DYNENC_SSE2:
        return (PixelKernels){4, 4, multiply_sse2, activate_sse2, first_sse2};
    case DYNENC_AVX2:
        return (PixelKernels){4, 4, multiply_avx2, activate_avx2, first_avx2};
    case DYNENC_AVX512:
        return (PixelKernels){12, 8, multiply_avx512, activate_avx512, first_avx512};
#endif
#if defined(__aarch64__)
    case DYNENC_NEON:
        return (PixelKernels){4, 4, multiply_neon, activate_neon, first_neon};
    case DYNENC_NEON_DOT:
        return (PixelKernels){8, 4, multiply_neon_dot, activate_neon_dot, first_neon_dot};
#endif
#if defined(__wasm_simd128__)
    case DYNENC_SIMD128:
        return (PixelKernels){4, 4, multiply_simd128, activate_simd128, first_simd128};
#endif
    default:
        return (PixelKernels){0, 0, NULL, NULL, NULL};
    }
}
