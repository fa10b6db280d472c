//! AVX2 and AVX-VNNI, one token: a chunk is two halves of 8 rows that share the activation broadcasts. One 16-bit
//! shift by 4 and four ANDs give codes with factors 1 and 4, which go to two sums; [`Dot`] says how they are
//! multiplied.

use std::arch::x86_64::*;

use super::dot256::{Dot, Sums};
use super::{Activations, Reading};
use crate::tiles::{Geometry, CHUNK, CHUNK_BYTES, TILE};

pub fn matvec<D: Dot>(tiles: &[u8], geometry: &Geometry, x: &Activations, out: &mut [f32], reading: Reading) {
    let count = out.len() / TILE;
    assert!(tiles.len() >= count * geometry.tile_bytes() && (tiles.as_ptr() as usize).is_multiple_of(32));
    assert!(x.q.len() >= geometry.padded_cols() && x.offsets.len() >= geometry.groups);
    assert!(x.halves.len() >= geometry.groups);
    assert!(D::available());
    // SAFETY: dispatch checked the CPU (`available`); the lengths above cover the tiles, the activations and the
    // output; every tile is below `count`. Blocks are multiples of 32 bytes, so loads are aligned.
    unsafe {
        match geometry.width / CHUNK {
            2 => tiles_in_streams::<D, 2>(tiles.as_ptr(), count, geometry, x, out.as_mut_ptr(), reading),
            4 => tiles_in_streams::<D, 4>(tiles.as_ptr(), count, geometry, x, out.as_mut_ptr(), reading),
            8 => tiles_in_streams::<D, 8>(tiles.as_ptr(), count, geometry, x, out.as_mut_ptr(), reading),
            16 => tiles_in_streams::<D, 16>(tiles.as_ptr(), count, geometry, x, out.as_mut_ptr(), reading),
            _ => tiles_in_streams::<D, 0>(tiles.as_ptr(), count, geometry, x, out.as_mut_ptr(), reading),
        }
    }
}

/// All tiles, one, two or four at a time: far-apart ones side by side keep more reads in flight.
///
/// # Safety
/// See [`matvec`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tiles_in_streams<D: Dot, const CHUNKS: usize>(
    p: *const u8,
    count: usize,
    geometry: &Geometry,
    x: &Activations,
    y: *mut f32,
    reading: Reading,
) {
    let size = geometry.tile_bytes();
    // SAFETY: every tile is below `count`.
    reading.walk(count, |at| unsafe {
        let tile = |i: usize| p.add(at[i] * size);
        let to = |i: usize| y.add(at[i] * TILE);
        let ahead = reading.ahead;
        match at.len() {
            4 => tiles_of::<D, 4, CHUNKS>(
                std::array::from_fn(tile),
                geometry,
                x,
                std::array::from_fn(to),
                ahead,
            ),
            2 => tiles_of::<D, 2, CHUNKS>(
                std::array::from_fn(tile),
                geometry,
                x,
                std::array::from_fn(to),
                ahead,
            ),
            _ => tiles_of::<D, 1, CHUNKS>([tile(0)], geometry, x, [to(0)], ahead),
        }
    });
}

#[inline]
#[target_feature(enable = "avx2")]
pub fn zero() -> Sums {
    let z = _mm256_setzero_si256();
    Sums { a: z, b: z }
}

/// Exact sums of the 16 rows of a block over its chunks, at most [`Dot::SHORT`], starting at `offset`.
///
/// # Safety
/// As for [`Dot::chunk`], for `chunks` chunks.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn short_block<D: Dot>(
    p: *const u8,
    q: *const i8,
    chunks: usize,
    offset: [__m256i; 2],
    ahead: usize,
) -> [__m256i; 2] {
    let (mut even, mut odd) = ([zero(); 2], [zero(); 2]);
    let mut exact = offset;
    // SAFETY: k is below chunks; asking for a line beyond the tiles is harmless; the CPU, as for the chunks.
    unsafe {
        let add = |sums: &mut [Sums; 2], k: usize| {
            let p = p.add(k * CHUNK_BYTES);
            if ahead > 0 {
                _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(ahead).cast());
            }
            D::chunk(sums, p, q.add(k * CHUNK));
        };
        let mut k = 0;
        // 32-bit sums in two sets in turn, so that no product waits for the one before it. Each has a name: sums
        // picked by number would lie in memory.
        if D::SHORT > 8 {
            while k + 1 < chunks {
                add(&mut even, k);
                add(&mut odd, k + 1);
                k += 2;
            }
        }
        while k < chunks {
            add(&mut even, k);
            k += 1;
        }
        for half in 0..2 {
            exact[half] = _mm256_add_epi32(exact[half], D::exact(even[half]));
            if D::SHORT > 8 {
                exact[half] = _mm256_add_epi32(exact[half], D::exact(odd[half]));
            }
        }
    }
    exact
}

/// Exact sums of the 16 rows of a whole block of `CHUNKS` chunks, 8 at most, less the activations' sum.
///
/// # Safety
/// As for [`Dot::chunk`], for that many chunks, and for [`Dot::first`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn whole_block<D: Dot, const CHUNKS: usize>(
    p: *const u8,
    q: *const i8,
    offset: *const i32,
    halves: *const i32,
    ahead: usize,
) -> [__m256i; 2] {
    // SAFETY: the caller's promise; asking for a line beyond the tiles is harmless.
    unsafe {
        let ask = |k: usize| {
            if ahead > 0 {
                _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(k * CHUNK_BYTES + ahead).cast());
            }
        };
        ask(0);
        let mut sums = D::first(p, q, offset, halves);
        for k in 1..CHUNKS {
            ask(k);
            D::chunk(&mut sums, p.add(k * CHUNK_BYTES), q.add(k * CHUNK));
        }
        [D::exact(sums[0]), D::exact(sums[1])]
    }
}

/// The 8 scales at `p`.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn scales_at(p: *const u8) -> __m256 {
    // SAFETY: 8 half floats lie at p.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
}

/// Chunks of a tile that are read in a row, at most, before the next tile has its turn.
const TURN: usize = 32;

/// `S` tiles, each its own stream; groups of `CHUNKS` chunks (0: any number).
///
/// # Safety
/// See [`matvec`]: a tile at each `p`, 16 floats at each `y`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tiles_of<D: Dot, const S: usize, const CHUNKS: usize>(
    mut p: [*const u8; S],
    geometry: &Geometry,
    x: &Activations,
    y: [*mut f32; S],
    ahead: usize,
) {
    let chunks = if CHUNKS > 0 { CHUNKS } else { geometry.width / CHUNK };
    let turn = D::SHORT.min(TURN);
    let mut totals = [[_mm256_setzero_ps(); 2]; S];
    // SAFETY: pointers walk over their tiles and over the padded activations.
    unsafe {
        for group in 0..geometry.groups {
            let q = x.q.as_ptr().add(group * chunks * CHUNK);
            let (offset, halves) = (x.offsets.as_ptr().add(group), x.halves.as_ptr().add(group));
            for _ in 0..geometry.planes {
                let mut exact = [[_mm256_setzero_si256(); 2]; S];
                if 0 < CHUNKS && CHUNKS <= 8 {
                    for (p, exact) in p.iter().zip(&mut exact) {
                        *exact = whole_block::<D, CHUNKS>(*p, q, offset, halves, ahead);
                    }
                } else {
                    // In turns, so that long groups too are read from all tiles side by side.
                    exact = [[_mm256_set1_epi32(*offset); 2]; S];
                    let mut k = 0;
                    while k < chunks {
                        let many = if CHUNKS > 0 { CHUNKS.min(turn) } else { (chunks - k).min(turn) };
                        for (p, exact) in p.iter().zip(&mut exact) {
                            let (p, q) = (p.add(k * CHUNK_BYTES), q.add(k * CHUNK));
                            *exact = if many == turn {
                                short_block::<D>(p, q, turn, *exact, ahead)
                            } else {
                                short_block::<D>(p, q, many, *exact, ahead)
                            };
                        }
                        k += many;
                    }
                }
                for ((p, totals), exact) in p.iter_mut().zip(&mut totals).zip(exact) {
                    let scales = p.add(chunks * CHUNK_BYTES);
                    for half in 0..2 {
                        let sum = _mm256_cvtepi32_ps(exact[half]);
                        totals[half] = _mm256_fmadd_ps(sum, scales_at(scales.add(16 * half)), totals[half]);
                    }
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
