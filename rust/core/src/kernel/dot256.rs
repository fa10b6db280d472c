//! The 256-bit multiply-add that a path is made of: AVX2's pair of 16-bit instructions, or AVX-VNNI's one.
//!
//! The inner step is assembly, because LLVM would move all broadcasts of a group to its front and spill them;
//! and because it is, AVX-VNNI needs no target feature that would keep it from being inlined into code for AVX2.

use std::arch::asm;
use std::arch::x86_64::*;

/// Sums of half a tile's rows (8 of them) over packed codes; `b` carries the factor 4.
#[derive(Clone, Copy)]
pub struct Sums {
    pub a: __m256i,
    pub b: __m256i,
}

/// How bytes of codes (0 to 3, or four times that) are multiplied with int8 activations and summed.
///
/// # Safety
/// All methods need AVX2 and what [`Dot::available`] says; pointers must be readable as said beside them.
pub trait Dot {
    /// Chunks of packed codes that [`Sums`] hold before [`Dot::exact`] must be taken.
    const SHORT: usize;

    fn available() -> bool;

    /// Add one chunk to both halves of a tile: 64 aligned bytes of codes at `p`, 16 activations at `x`.
    unsafe fn chunk(sums: &mut [Sums; 2], p: *const u8, x: *const i8);

    /// The first chunk of a block of at most 128 inputs: sums that start at minus the activations' sum, which
    /// lies at `offset` (as [`Activations::offsets`]) and at `halves` (as [`Activations::halves`]).
    unsafe fn first(p: *const u8, x: *const i8, offset: *const i32, halves: *const i32) -> [Sums; 2];

    /// Add half a chunk whose codes were taken out of their bytes (the second and fourth times 4): 16 activations
    /// at `x`.
    unsafe fn half_chunk(sums: &mut Sums, codes: [__m256i; 4], x: *const i8);

    /// As [`Dot::half_chunk`], with sums that start as those of [`Dot::first`].
    unsafe fn half_first(codes: [__m256i; 4], x: *const i8, offset: *const i32, halves: *const i32) -> Sums;

    /// `sum` + codes `w` times the four activations in every lane of `x`.
    unsafe fn dot(sum: __m256i, w: __m256i, x: __m256i) -> __m256i;

    /// A sum of [`Dot::dot`] over at most 64 inputs of unpacked codes as int32, one lane a row.
    unsafe fn widen(sum: __m256i) -> __m256i;

    /// Sums of packed codes as int32, one lane a row, the factor taken out.
    unsafe fn exact(sums: Sums) -> __m256i;
}

/// AVX2: `vpmaddubsw` and `vpaddw`, two 16-bit lanes a row. Activations are within +-127, so a chunk adds at
/// most twice 508 to the first sum and twice 2032 to the second: after 8 chunks 8,128 and 32,512. [`Dot::exact`]
/// adds a quarter of the second to the first, which may have started at up to 16,256 (minus the sum of 128
/// activations, all in one lane): at most 8,128 + 16,256 + 8,128 = 32,512, below 32,768 too.
pub struct Maddubs;

/// AVX-VNNI: `vpdpbusd`, one 32-bit lane a row; a chunk adds at most 4 * 2032.
pub struct Vnni;

impl Dot for Maddubs {
    const SHORT: usize = 8;

    fn available() -> bool {
        super::vectorize::has_avx2()
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn chunk(sums: &mut [Sums; 2], p: *const u8, x: *const i8) {
        let [s, t] = sums;
        // SAFETY: reads only what the caller promised; writes only the registers named.
        unsafe {
            asm!(
                "vmovdqa {w}, [{p}]",
                "vmovdqa {v}, [{p} + 32]",
                "vpbroadcastd {x0}, dword ptr [{x}]",
                "vpbroadcastd {x1}, dword ptr [{x} + 4]",
                "vpand {m}, {w}, {m0}",
                "vpand {n}, {v}, {m0}",
                "vpmaddubsw {m}, {m}, {x0}",
                "vpmaddubsw {n}, {n}, {x0}",
                "vpaddw {a0}, {a0}, {m}",
                "vpaddw {a1}, {a1}, {n}",
                "vpand {m}, {w}, {m1}",
                "vpand {n}, {v}, {m1}",
                "vpsrlw {w}, {w}, 4",
                "vpsrlw {v}, {v}, 4",
                "vpmaddubsw {m}, {m}, {x1}",
                "vpmaddubsw {n}, {n}, {x1}",
                "vpbroadcastd {x0}, dword ptr [{x} + 8]",
                "vpbroadcastd {x1}, dword ptr [{x} + 12]",
                "vpaddw {b0}, {b0}, {m}",
                "vpaddw {b1}, {b1}, {n}",
                "vpand {m}, {w}, {m0}",
                "vpand {n}, {v}, {m0}",
                "vpand {w}, {w}, {m1}",
                "vpand {v}, {v}, {m1}",
                "vpmaddubsw {m}, {m}, {x0}",
                "vpmaddubsw {n}, {n}, {x0}",
                "vpmaddubsw {w}, {w}, {x1}",
                "vpmaddubsw {v}, {v}, {x1}",
                "vpaddw {a0}, {a0}, {m}",
                "vpaddw {a1}, {a1}, {n}",
                "vpaddw {b0}, {b0}, {w}",
                "vpaddw {b1}, {b1}, {v}",
                p = in(reg) p,
                x = in(reg) x,
                m0 = in(ymm_reg) _mm256_set1_epi8(0x03),
                m1 = in(ymm_reg) _mm256_set1_epi8(0x0c),
                a0 = inout(ymm_reg) s.a,
                b0 = inout(ymm_reg) s.b,
                a1 = inout(ymm_reg) t.a,
                b1 = inout(ymm_reg) t.b,
                w = out(ymm_reg) _,
                v = out(ymm_reg) _,
                m = out(ymm_reg) _,
                n = out(ymm_reg) _,
                x0 = out(ymm_reg) _,
                x1 = out(ymm_reg) _,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
    }

    /// Two additions of each half less than [`Dot::chunk`] and what starts and ends its sums: those with the
    /// factor 4 start as products.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn first(p: *const u8, x: *const i8, _: *const i32, halves: *const i32) -> [Sums; 2] {
        let (a0, a1, b0, b1);
        // SAFETY: reads only what the caller promised; writes only the registers named.
        unsafe {
            asm!(
                "vmovdqa {w}, [{p}]",
                "vmovdqa {v}, [{p} + 32]",
                "vpbroadcastd {a0}, dword ptr [{halves}]",
                "vpbroadcastd {x0}, dword ptr [{x}]",
                "vpbroadcastd {x1}, dword ptr [{x} + 4]",
                "vpand {m}, {w}, {m0}",
                "vpand {n}, {v}, {m0}",
                "vpmaddubsw {m}, {m}, {x0}",
                "vpmaddubsw {n}, {n}, {x0}",
                "vpaddw {a1}, {a0}, {n}",
                "vpaddw {a0}, {a0}, {m}",
                "vpand {b0}, {w}, {m1}",
                "vpand {b1}, {v}, {m1}",
                "vpsrlw {w}, {w}, 4",
                "vpsrlw {v}, {v}, 4",
                "vpmaddubsw {b0}, {b0}, {x1}",
                "vpmaddubsw {b1}, {b1}, {x1}",
                "vpbroadcastd {x0}, dword ptr [{x} + 8]",
                "vpbroadcastd {x1}, dword ptr [{x} + 12]",
                "vpand {m}, {w}, {m0}",
                "vpand {n}, {v}, {m0}",
                "vpand {w}, {w}, {m1}",
                "vpand {v}, {v}, {m1}",
                "vpmaddubsw {m}, {m}, {x0}",
                "vpmaddubsw {n}, {n}, {x0}",
                "vpmaddubsw {w}, {w}, {x1}",
                "vpmaddubsw {v}, {v}, {x1}",
                "vpaddw {a0}, {a0}, {m}",
                "vpaddw {a1}, {a1}, {n}",
                "vpaddw {b0}, {b0}, {w}",
                "vpaddw {b1}, {b1}, {v}",
                p = in(reg) p,
                x = in(reg) x,
                halves = in(reg) halves,
                m0 = in(ymm_reg) _mm256_set1_epi8(0x03),
                m1 = in(ymm_reg) _mm256_set1_epi8(0x0c),
                a0 = out(ymm_reg) a0,
                b0 = out(ymm_reg) b0,
                a1 = out(ymm_reg) a1,
                b1 = out(ymm_reg) b1,
                w = out(ymm_reg) _,
                v = out(ymm_reg) _,
                m = out(ymm_reg) _,
                n = out(ymm_reg) _,
                x0 = out(ymm_reg) _,
                x1 = out(ymm_reg) _,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        [Sums { a: a0, b: b0 }, Sums { a: a1, b: b1 }]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn half_chunk(sums: &mut Sums, codes: [__m256i; 4], x: *const i8) {
        // SAFETY: reads only what the caller promised; writes only the registers named.
        unsafe {
            asm!(
                "vpbroadcastd {t}, dword ptr [{x}]",
                "vpmaddubsw {t}, {c0}, {t}",
                "vpaddw {a}, {a}, {t}",
                "vpbroadcastd {t}, dword ptr [{x} + 4]",
                "vpmaddubsw {t}, {c1}, {t}",
                "vpaddw {b}, {b}, {t}",
                "vpbroadcastd {t}, dword ptr [{x} + 8]",
                "vpmaddubsw {t}, {c2}, {t}",
                "vpaddw {a}, {a}, {t}",
                "vpbroadcastd {t}, dword ptr [{x} + 12]",
                "vpmaddubsw {t}, {c3}, {t}",
                "vpaddw {b}, {b}, {t}",
                x = in(reg) x,
                c0 = in(ymm_reg) codes[0],
                c1 = in(ymm_reg) codes[1],
                c2 = in(ymm_reg) codes[2],
                c3 = in(ymm_reg) codes[3],
                a = inout(ymm_reg) sums.a,
                b = inout(ymm_reg) sums.b,
                t = out(ymm_reg) _,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn half_first(codes: [__m256i; 4], x: *const i8, _: *const i32, halves: *const i32) -> Sums {
        let (a, b);
        // SAFETY: reads only what the caller promised; writes only the registers named.
        unsafe {
            asm!(
                "vpbroadcastd {a}, dword ptr [{halves}]",
                "vpbroadcastd {t}, dword ptr [{x}]",
                "vpmaddubsw {t}, {c0}, {t}",
                "vpaddw {a}, {a}, {t}",
                "vpbroadcastd {t}, dword ptr [{x} + 4]",
                "vpmaddubsw {b}, {c1}, {t}",
                "vpbroadcastd {t}, dword ptr [{x} + 8]",
                "vpmaddubsw {t}, {c2}, {t}",
                "vpaddw {a}, {a}, {t}",
                "vpbroadcastd {t}, dword ptr [{x} + 12]",
                "vpmaddubsw {t}, {c3}, {t}",
                "vpaddw {b}, {b}, {t}",
                x = in(reg) x,
                halves = in(reg) halves,
                c0 = in(ymm_reg) codes[0],
                c1 = in(ymm_reg) codes[1],
                c2 = in(ymm_reg) codes[2],
                c3 = in(ymm_reg) codes[3],
                a = out(ymm_reg) a,
                b = out(ymm_reg) b,
                t = out(ymm_reg) _,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        Sums { a, b }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn dot(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn widen(sum: __m256i) -> __m256i {
        _mm256_madd_epi16(sum, _mm256_set1_epi16(1))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn exact(sums: Sums) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { Self::widen(_mm256_add_epi16(sums.a, _mm256_srai_epi16::<2>(sums.b))) }
    }
}

impl Dot for Vnni {
    const SHORT: usize = 1024;

    fn available() -> bool {
        super::vectorize::has_avx2() && is_x86_feature_detected!("avxvnni")
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn chunk(sums: &mut [Sums; 2], p: *const u8, x: *const i8) {
        let [s, t] = sums;
        // SAFETY: reads only what the caller promised; writes only the registers named.
        unsafe {
            asm!(
                "vmovdqa {w}, [{p}]",
                "vmovdqa {v}, [{p} + 32]",
                "vpbroadcastd {x0}, dword ptr [{x}]",
                "vpbroadcastd {x1}, dword ptr [{x} + 4]",
                "vpand {m}, {w}, {m0}",
                "vpand {n}, {v}, {m0}",
                "{{vex}} vpdpbusd {a0}, {m}, {x0}",
                "{{vex}} vpdpbusd {a1}, {n}, {x0}",
                "vpand {m}, {w}, {m1}",
                "vpand {n}, {v}, {m1}",
                "vpsrlw {w}, {w}, 4",
                "vpsrlw {v}, {v}, 4",
                "{{vex}} vpdpbusd {b0}, {m}, {x1}",
                "{{vex}} vpdpbusd {b1}, {n}, {x1}",
                "vpbroadcastd {x0}, dword ptr [{x} + 8]",
                "vpbroadcastd {x1}, dword ptr [{x} + 12]",
                "vpand {m}, {w}, {m0}",
                "vpand {n}, {v}, {m0}",
                "vpand {w}, {w}, {m1}",
                "vpand {v}, {v}, {m1}",
                "{{vex}} vpdpbusd {a0}, {m}, {x0}",
                "{{vex}} vpdpbusd {a1}, {n}, {x0}",
                "{{vex}} vpdpbusd {b0}, {w}, {x1}",
                "{{vex}} vpdpbusd {b1}, {v}, {x1}",
                p = in(reg) p,
                x = in(reg) x,
                m0 = in(ymm_reg) _mm256_set1_epi8(0x03),
                m1 = in(ymm_reg) _mm256_set1_epi8(0x0c),
                a0 = inout(ymm_reg) s.a,
                b0 = inout(ymm_reg) s.b,
                a1 = inout(ymm_reg) t.a,
                b1 = inout(ymm_reg) t.b,
                w = out(ymm_reg) _,
                v = out(ymm_reg) _,
                m = out(ymm_reg) _,
                n = out(ymm_reg) _,
                x0 = out(ymm_reg) _,
                x1 = out(ymm_reg) _,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn first(p: *const u8, x: *const i8, offset: *const i32, _: *const i32) -> [Sums; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let start = Sums { a: _mm256_set1_epi32(*offset), b: _mm256_setzero_si256() };
            let mut sums = [start; 2];
            Self::chunk(&mut sums, p, x);
            sums
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn half_chunk(sums: &mut Sums, codes: [__m256i; 4], x: *const i8) {
        // SAFETY: reads only what the caller promised; writes only the registers named.
        unsafe {
            asm!(
                "vpbroadcastd {t}, dword ptr [{x}]",
                "{{vex}} vpdpbusd {a}, {c0}, {t}",
                "vpbroadcastd {t}, dword ptr [{x} + 4]",
                "{{vex}} vpdpbusd {b}, {c1}, {t}",
                "vpbroadcastd {t}, dword ptr [{x} + 8]",
                "{{vex}} vpdpbusd {a}, {c2}, {t}",
                "vpbroadcastd {t}, dword ptr [{x} + 12]",
                "{{vex}} vpdpbusd {b}, {c3}, {t}",
                x = in(reg) x,
                c0 = in(ymm_reg) codes[0],
                c1 = in(ymm_reg) codes[1],
                c2 = in(ymm_reg) codes[2],
                c3 = in(ymm_reg) codes[3],
                a = inout(ymm_reg) sums.a,
                b = inout(ymm_reg) sums.b,
                t = out(ymm_reg) _,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn half_first(codes: [__m256i; 4], x: *const i8, offset: *const i32, _: *const i32) -> Sums {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = Sums { a: _mm256_set1_epi32(*offset), b: _mm256_setzero_si256() };
            Self::half_chunk(&mut sums, codes, x);
            sums
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn dot(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        let mut sum = sum;
        // SAFETY: registers only; the caller's CPU has the instruction.
        unsafe {
            asm!(
                "{{vex}} vpdpbusd {s}, {w}, {x}",
                s = inout(ymm_reg) sum,
                w = in(ymm_reg) w,
                x = in(ymm_reg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn widen(sum: __m256i) -> __m256i {
        sum
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn exact(sums: Sums) -> __m256i {
        _mm256_add_epi32(sums.a, _mm256_srai_epi32::<2>(sums.b))
    }
}
