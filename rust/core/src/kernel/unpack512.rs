//! How 64 bytes of packed codes become four vectors of codes: one instruction each, in one of two ways.

use std::arch::asm;
use std::arch::x86_64::*;

/// # Safety
/// All methods need AVX-512 F, BW and VNNI and what [`Unpack::available`] says.
pub trait Unpack {
    fn available() -> bool;

    /// The constants of the four codes.
    unsafe fn constants() -> [__m512i; 4];

    /// The codes that `constant` is for; those of the last three are times 4, 16 and 64 if [`Unpack::SHIFTED`].
    unsafe fn codes(w: __m512i, constant: __m512i) -> __m512i;

    /// Whether codes stay where they are in their bytes.
    const SHIFTED: bool;

    /// All four, 0 to 2 in every byte.
    unsafe fn plain(w: __m512i) -> [__m512i; 4];
}

/// Masks: codes stay where they are in their bytes, so their sums carry the factors 1, 4, 16 and 64.
pub struct Mask;

/// GFNI's product of each byte with an 8 x 8 matrix of bits moves codes to the low bits. It runs on one port
/// of an Intel core beside `vpdpbusd` on the other, so it costs what a mask does and needs no sums of its own.
pub struct Affine;

impl Unpack for Mask {
    const SHIFTED: bool = true;

    fn available() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni")
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn constants() -> [__m512i; 4] {
        [0x03i8, 0x0c, 0x30, 0xc0u8 as i8].map(|mask| _mm512_set1_epi8(mask))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn codes(w: __m512i, constant: __m512i) -> __m512i {
        _mm512_and_si512(w, constant)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn plain(w: __m512i) -> [__m512i; 4] {
        let mask = _mm512_set1_epi8(3);
        [w, _mm512_srli_epi16::<2>(w), _mm512_srli_epi16::<4>(w), _mm512_srli_epi16::<6>(w)]
            .map(|w| _mm512_and_si512(w, mask))
    }
}

impl Unpack for Affine {
    const SHIFTED: bool = false;

    fn available() -> bool {
        Mask::available() && is_x86_feature_detected!("gfni")
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn constants() -> [__m512i; 4] {
        // Byte 7 - i of the matrix says which bits make bit i: bits 2s and 2s + 1 become bits 0 and 1.
        [0, 2, 4, 6].map(|s| _mm512_set1_epi64((1i64 << (56 + s)) | (2i64 << (48 + s))))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn codes(w: __m512i, constant: __m512i) -> __m512i {
        let out;
        // SAFETY: registers only. In assembly, so that the callers need not be compiled for GFNI.
        unsafe {
            asm!(
                "vgf2p8affineqb {out}, {w}, {m}, 0",
                out = lateout(zmm_reg) out,
                w = in(zmm_reg) w,
                m = in(zmm_reg) constant,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        out
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn plain(w: __m512i) -> [__m512i; 4] {
        // SAFETY: the caller's promise.
        unsafe { Self::constants().map(|constant| Self::codes(w, constant)) }
    }
}
