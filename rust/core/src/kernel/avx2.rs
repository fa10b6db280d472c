//! AVX2: a chunk is two halves of 8 rows that share the activation broadcasts. One 16-bit shift by 4 and four
//! ANDs give codes with factors 1 and 4 in two 16-bit accumulators, which hold 128 inputs before widening:
//! 64 additions of at most 508 to the first, or 16 of 2032 to the second, stay below 32,768 (activations are
//! within +-127).

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Activations, Batch};
use crate::tiles::{Geometry, CHUNK, CHUNK_BYTES, TILE};

/// Chunks summed in 16 bits: a chunk adds twice 508 to the first accumulator and twice 2032 to the second.
const SHORT: usize = 8;

pub fn available() -> bool {
    super::vectorize::has_avx2()
}

pub fn matvec(tiles: &[u8], geometry: &Geometry, x: &Activations, out: &mut [f32], streams: usize) {
    let count = out.len() / TILE;
    assert!(tiles.len() >= count * geometry.tile_bytes() && (tiles.as_ptr() as usize).is_multiple_of(32));
    assert!(x.q.len() >= geometry.padded_cols() && x.offsets.len() >= geometry.groups);
    // SAFETY: dispatch checked the CPU (`available`); the lengths above cover the tiles, the activations and the
    // output; every tile is below `count`. Blocks are multiples of 32 bytes, so loads are aligned.
    unsafe {
        match geometry.width / CHUNK {
            2 => tiles_in_streams::<2>(tiles.as_ptr(), count, geometry, x, out.as_mut_ptr(), streams),
            4 => tiles_in_streams::<4>(tiles.as_ptr(), count, geometry, x, out.as_mut_ptr(), streams),
            8 => tiles_in_streams::<8>(tiles.as_ptr(), count, geometry, x, out.as_mut_ptr(), streams),
            16 => tiles_in_streams::<16>(tiles.as_ptr(), count, geometry, x, out.as_mut_ptr(), streams),
            _ => tiles_in_streams::<0>(tiles.as_ptr(), count, geometry, x, out.as_mut_ptr(), streams),
        }
    }
}

/// All tiles, one or two at a time: far-apart ones side by side keep more reads in flight.
///
/// # Safety
/// See [`matvec`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tiles_in_streams<const CHUNKS: usize>(
    p: *const u8,
    count: usize,
    geometry: &Geometry,
    x: &Activations,
    y: *mut f32,
    streams: usize,
) {
    let size = geometry.tile_bytes();
    let far = if streams >= 2 { count / 2 } else { 0 };
    // SAFETY: every tile is below `count`.
    unsafe {
        for tile in 0..far {
            let both = [tile, tile + far];
            tiles_of::<2, CHUNKS>(both.map(|t| p.add(t * size)), geometry, x, both.map(|t| y.add(t * TILE)));
        }
        for tile in 2 * far..count {
            tiles_of::<1, CHUNKS>([p.add(tile * size)], geometry, x, [y.add(tile * TILE)]);
        }
    }
}

/// Sums of a half tile's rows in 16 bits, two lanes a row; `b` carries the factor 4.
#[derive(Clone, Copy)]
struct Short {
    a: __m256i,
    b: __m256i,
}

/// Both halves of a tile.
type Pair = [Short; 2];

#[inline]
#[target_feature(enable = "avx2")]
fn zero() -> Pair {
    let z = _mm256_setzero_si256();
    [Short { a: z, b: z }; 2]
}

/// Add one chunk: 64 bytes of codes at `p`, 16 activations at `x`. In assembly, because LLVM would move all
/// broadcasts of a group to its front and spill them.
///
/// # Safety
/// AVX2; 64 aligned bytes at `p` and 16 bytes at `x` can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn chunk(sums: &mut Pair, p: *const u8, x: *const i8) {
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

/// 16-bit sums widened, the factor taken out: int32, one lane a row.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(s: Short) -> __m256i {
    let both = _mm256_add_epi16(s.a, _mm256_srai_epi16::<2>(s.b));
    _mm256_madd_epi16(both, _mm256_set1_epi16(1))
}

/// Exact sums of the 16 rows of a block over its chunks, at most [`SHORT`], starting at `offset`.
///
/// # Safety
/// As for [`chunk`], for `chunks` chunks.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn short_block(p: *const u8, q: *const i8, chunks: usize, offset: [__m256i; 2]) -> [__m256i; 2] {
    let mut sums = zero();
    for k in 0..chunks {
        // SAFETY: k < chunks.
        unsafe { chunk(&mut sums, p.add(k * CHUNK_BYTES), q.add(k * CHUNK)) };
    }
    [0, 1].map(|half| _mm256_add_epi32(offset[half], widen(sums[half])))
}

/// Add a block's sums, scaled, to the totals of its rows.
///
/// # Safety
/// The 16 scales can be read at `p`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_scaled(totals: &mut [__m256; 2], exact: [__m256i; 2], p: *const u8) {
    for half in 0..2 {
        // SAFETY: 16 half floats lie at p.
        let scales = unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.add(16 * half).cast())) };
        totals[half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact[half]), scales, totals[half]);
    }
}

/// `S` tiles, each its own stream; groups of `CHUNKS` chunks (0: any number).
///
/// # Safety
/// See [`matvec`]: a tile at each `p`, 16 floats at each `y`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tiles_of<const S: usize, const CHUNKS: usize>(
    mut p: [*const u8; S],
    geometry: &Geometry,
    x: &Activations,
    y: [*mut f32; S],
) {
    let chunks = if CHUNKS > 0 { CHUNKS } else { geometry.width / CHUNK };
    let mut totals = [[_mm256_setzero_ps(); 2]; S];
    // SAFETY: pointers walk over their tiles and over the padded activations.
    unsafe {
        for group in 0..geometry.groups {
            let q = x.q.as_ptr().add(group * chunks * CHUNK);
            let offset = [_mm256_set1_epi32(*x.offsets.as_ptr().add(group)); 2];
            for _ in 0..geometry.planes {
                for (p, totals) in p.iter_mut().zip(&mut totals) {
                    let mut exact = offset;
                    let mut k = 0;
                    while k < chunks {
                        let many = if CHUNKS > 0 { CHUNKS.min(SHORT) } else { (chunks - k).min(SHORT) };
                        exact = if many == SHORT {
                            short_block(p.add(k * CHUNK_BYTES), q.add(k * CHUNK), SHORT, exact)
                        } else {
                            short_block(p.add(k * CHUNK_BYTES), q.add(k * CHUNK), many, exact)
                        };
                        k += many;
                    }
                    add_scaled(totals, exact, p.add(chunks * CHUNK_BYTES));
                    *p = p.add(chunks * CHUNK_BYTES + 2 * TILE);
                }
            }
        }
        let scale = _mm256_set1_ps(x.scale);
        for (y, totals) in y.into_iter().zip(totals) {
            _mm256_storeu_ps(y, _mm256_mul_ps(totals[0], scale));
            _mm256_storeu_ps(y.add(8), _mm256_mul_ps(totals[1], scale));
        }
    }
}

/// Tokens whose 16-bit sums for 16 rows fit into registers.
const TOKENS: usize = 4;

pub fn matmul(tile: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    assert!(tile.len() >= geometry.tile_bytes() && out.len() == x.n * TILE);
    assert!(x.q.len() >= geometry.padded_cols() * x.n && x.offsets.len() >= geometry.groups * x.n);
    // SAFETY: the CPU was checked by dispatch; the lengths above cover the tile, the batch and the output.
    unsafe { tile_times(tile, geometry, x, out) }
}

/// One tile times all tokens: the codes of a step are unpacked once, into the first-level cache.
///
/// # Safety
/// See [`matmul`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_times(tile: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    let (n, steps, quads) = (x.n, geometry.width / x.step, x.step / 4);
    let mut exact = vec![0i32; n * TILE];
    let mut w = [[_mm256_setzero_si256(); 2]; 16];
    let mask = _mm256_set1_epi8(3);
    let one = _mm256_set1_epi16(1);
    let mut p = tile.as_ptr();
    out.fill(0.0);
    // SAFETY: p walks over the tile; token indices stay below n, quads below 16.
    unsafe {
        for group in 0..geometry.groups {
            for _ in 0..geometry.planes {
                for step in 0..steps {
                    for four in w.chunks_exact_mut(4).take(quads / 4) {
                        for half in 0..2 {
                            let codes = _mm256_loadu_si256(p.add(32 * half).cast());
                            four[0][half] = _mm256_and_si256(codes, mask);
                            four[1][half] = _mm256_and_si256(_mm256_srli_epi16::<2>(codes), mask);
                            four[2][half] = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask);
                            four[3][half] = _mm256_and_si256(_mm256_srli_epi16::<6>(codes), mask);
                        }
                        p = p.add(CHUNK_BYTES);
                    }
                    let q = x.q.as_ptr().add((group * steps + step) * x.step * n);
                    let mut t = 0;
                    while t < n {
                        let many = (n - t).min(TOKENS);
                        let mut sums = [[_mm256_setzero_si256(); 2]; TOKENS];
                        let q = q.add(t * x.step);
                        match many {
                            4 => step_of::<4>(&w[..quads], q, x.step, &mut sums),
                            3 => step_of::<3>(&w[..quads], q, x.step, &mut sums),
                            2 => step_of::<2>(&w[..quads], q, x.step, &mut sums),
                            _ => step_of::<1>(&w[..quads], q, x.step, &mut sums),
                        }
                        for (i, sums) in sums.iter().enumerate().take(many) {
                            let first = _mm256_set1_epi32(*x.offsets.as_ptr().add(group * n + t + i));
                            for (half, sum) in sums.iter().enumerate() {
                                let at = exact.as_mut_ptr().add((t + i) * TILE + 8 * half).cast();
                                let before = if step == 0 { first } else { _mm256_loadu_si256(at) };
                                let sum = _mm256_add_epi32(before, _mm256_madd_epi16(*sum, one));
                                if step + 1 < steps {
                                    _mm256_storeu_si256(at, sum);
                                    continue;
                                }
                                // The group's scales follow its codes, which p has just passed.
                                let scales = _mm256_cvtph_ps(_mm_loadu_si128(p.add(16 * half).cast()));
                                let y = out.as_mut_ptr().add((t + i) * TILE + 8 * half);
                                let total =
                                    _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scales, _mm256_loadu_ps(y));
                                _mm256_storeu_ps(y, total);
                            }
                        }
                        t += many;
                    }
                }
                p = p.add(2 * TILE);
            }
        }
    }
    for (out, scale) in out.chunks_exact_mut(TILE).zip(&x.scales) {
        out.iter_mut().for_each(|y| *y *= scale);
    }
}

/// Add a step's inputs of `MANY` tokens: at most 16 additions of 2 * 2 * 127 to each 16-bit lane.
///
/// # Safety
/// `MANY * step` activations can be read at `q`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn step_of<const MANY: usize>(
    w: &[[__m256i; 2]],
    q: *const i8,
    step: usize,
    sums: &mut [[__m256i; 2]; TOKENS],
) {
    for (k, w) in w.iter().enumerate() {
        for (i, sums) in sums.iter_mut().enumerate().take(MANY) {
            // SAFETY: 4 k + 3 < step and i < MANY.
            let x = _mm256_set1_epi32(unsafe { q.add(i * step + 4 * k).cast::<i32>().read_unaligned() });
            for half in 0..2 {
                sums[half] = _mm256_add_epi16(sums[half], _mm256_maddubs_epi16(w[half], x));
            }
        }
    }
}
