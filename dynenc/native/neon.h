/* What the two NEON paths of products.c have in common. */
#define LANES 4
#define VEC int32x4_t
#define SHORTS int16x8_t
#define BIAS 1
#define add_pairs(a, pair, p) add_pairs_neon((a), vreinterpretq_s16_s32(vdupq_n_s32(pair)), load(p))
#define pack(a, b, shift)                                       \
    vcombine_s16(vqmovn_s32(vshlq_s32((a), vdupq_n_s32(-(shift)))), \
                 vqmovn_s32(vshlq_s32((b), vdupq_n_s32(-(shift)))))
#define load_sums vld1q_s32
#define load vld1q_s16
#define store vst1q_s16
#define splat vdupq_n_s16
#define scaled vqrdmulhq_s16
#define add vqaddq_s16
#define low vminq_s16
#define high vmaxq_s16
#define negative vnegq_s16
#define right(a, shift) vshlq_s16((a), vdupq_n_s16((int16_t)-(shift)))
#define store_bytes(p, v) \
    vst1_u8((p), veor_u8(vdup_n_u8(128), vreinterpret_u8_s8(vqmovn_s16(v))))
#define store_pixels(p, v) vst1_u8((p), vqmovun_s16(v))
