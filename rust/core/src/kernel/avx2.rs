//! AVX2 and AVX-VNNI: a chunk is two halves of 8 rows that share the activation broadcasts. One 16-bit shift by
//! 4 and four ANDs give codes with factors 1 and 4, which go to two sums; [`Dot`] says how they are multiplied.

use std::arch::x86_64::*;

use super::dot256::{Dot, Sums};
use super::{Activations, Batch, Reading};
use crate::tiles::{Geometry, CHUNK, CHUNK_BYTES, TILE};

pub fn matvec<D: Dot>(tiles: &[u8], geometry: &Geometry, x: &Activations, out: &mut [f32], reading: Reading) {
    let count = out.len() / TILE;
    assert!(tiles.len() >= count * geometry.tile_bytes() && (tiles.as_ptr() as usize).is_multiple_of(32));
    assert!(x.q.len() >= geometry.padded_cols() && x.offsets.len() >= geometry.groups);
    debug_assert!(D::available());
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
fn zero() -> Sums {
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
    // Long blocks of 32-bit sums in two sets in turn, so that no product waits for the one before it.
    let sets = if D::SHORT > 8 && chunks > 8 { 2 } else { 1 };
    let mut sums = [[zero(); 2]; 2];
    for k in 0..chunks {
        // SAFETY: k < chunks; asking for a line beyond the tiles is harmless.
        unsafe {
            let p = p.add(k * CHUNK_BYTES);
            if ahead > 0 {
                _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(ahead).cast());
            }
            D::chunk(&mut sums[k % sets], p, q.add(k * CHUNK));
        }
    }
    let mut exact = offset;
    for sums in &sums[..sets] {
        for half in 0..2 {
            // SAFETY: the CPU, as for the chunks.
            exact[half] = _mm256_add_epi32(exact[half], unsafe { D::exact(sums[half]) });
        }
    }
    exact
}

/// The 8 scales at `p`.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn scales_at(p: *const u8) -> __m256 {
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
            let offset = [_mm256_set1_epi32(*x.offsets.as_ptr().add(group)); 2];
            for _ in 0..geometry.planes {
                // In turns, so that long groups too are read from all tiles side by side.
                let mut exact = [offset; S];
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

/// Tokens whose sums for 8 rows over packed codes, or for 16 rows over unpacked ones, fit into registers.
const TOKENS: usize = 4;

/// Tokens from which on codes are unpacked into the first-level cache instead of by every few tokens anew.
const MANY: usize = 24;

pub fn matmul<D: Dot>(tile: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    assert!(tile.len() >= geometry.tile_bytes() && out.len() == x.n * TILE);
    assert!(x.q.len() >= geometry.padded_cols() * x.n && x.offsets.len() >= geometry.groups * x.n);
    debug_assert!(D::available());
    // SAFETY: the CPU was checked by dispatch; the lengths above cover the tile, the batch and the output.
    unsafe {
        if x.n >= MANY {
            return tile_times::<D>(tile, geometry, x, out);
        }
        let mut t = 0;
        while t < x.n {
            // As even as can be: 5 tokens are 3 and 2.
            let many = (x.n - t).div_ceil((x.n - t).div_ceil(TOKENS));
            // Two sets of sums in turn in long groups of few tokens, so that no product waits for the one before.
            let long = geometry.width > 64;
            match (x.step, many) {
                (32, 1) => tile_times_few::<D, 32, 1, 1>(tile, geometry, x, t, out),
                (32, 2) => tile_times_few::<D, 32, 1, 2>(tile, geometry, x, t, out),
                (32, 3) => tile_times_few::<D, 32, 1, 3>(tile, geometry, x, t, out),
                (32, _) => tile_times_few::<D, 32, 1, 4>(tile, geometry, x, t, out),
                (_, 1) if long => tile_times_few::<D, 64, 2, 1>(tile, geometry, x, t, out),
                (_, 2) if long => tile_times_few::<D, 64, 2, 2>(tile, geometry, x, t, out),
                (_, 1) => tile_times_few::<D, 64, 1, 1>(tile, geometry, x, t, out),
                (_, 2) => tile_times_few::<D, 64, 1, 2>(tile, geometry, x, t, out),
                (_, 3) => tile_times_few::<D, 64, 1, 3>(tile, geometry, x, t, out),
                _ => tile_times_few::<D, 64, 1, 4>(tile, geometry, x, t, out),
            }
            t += many;
        }
    }
}

/// One tile times the `N` tokens from `first` on, half of its rows after the other; every code is taken out of
/// its byte once for all of them.
///
/// # Safety
/// See [`matmul`]; `STEP` is the batch's, `first + N <= x.n`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_times_few<D: Dot, const STEP: usize, const SETS: usize, const N: usize>(
    tile: &[u8],
    geometry: &Geometry,
    x: &Batch,
    first: usize,
    out: &mut [f32],
) {
    let (n, chunks) = (x.n, geometry.width / CHUNK);
    let steps = geometry.width / STEP;
    let (low, high) = (_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c));
    // SAFETY: p walks over the tile; tokens are below n, steps below those of the batch.
    unsafe {
        for half in 0..2 {
            let mut totals = [_mm256_setzero_ps(); N];
            let mut p = tile.as_ptr();
            for group in 0..geometry.groups {
                for _ in 0..geometry.planes {
                    let mut exact = [_mm256_setzero_si256(); N];
                    for (t, exact) in exact.iter_mut().enumerate() {
                        *exact = _mm256_set1_epi32(*x.offsets.as_ptr().add(group * n + first + t));
                    }
                    let mut sums = [[zero(); N]; SETS];
                    let mut held = 0;
                    for step in 0..steps {
                        let q = x.q.as_ptr().add(((group * steps + step) * n + first) * STEP);
                        macro_rules! one_chunk {
                            ($k:expr, $set:expr) => {{
                                let w = p.add((step * (STEP / CHUNK) + $k) * CHUNK_BYTES + 32 * half);
                                let w = _mm256_loadu_si256(w.cast());
                                let v = _mm256_srli_epi16::<4>(w);
                                let codes = [
                                    _mm256_and_si256(w, low),
                                    _mm256_and_si256(w, high),
                                    _mm256_and_si256(v, low),
                                    _mm256_and_si256(v, high),
                                ];
                                for (t, sums) in sums[$set].iter_mut().enumerate() {
                                    D::half_chunk(sums, codes, q.add(t * STEP + $k * CHUNK));
                                }
                            }};
                        }
                        for k in (0..STEP / CHUNK).step_by(SETS) {
                            one_chunk!(k, 0);
                            if SETS > 1 {
                                one_chunk!(k + 1, SETS - 1);
                            }
                        }
                        held += STEP / CHUNK;
                        // A step is at most 4 chunks.
                        if held + 4 > D::SHORT && step + 1 < steps {
                            for sums in &mut sums {
                                for (exact, sums) in exact.iter_mut().zip(sums) {
                                    *exact = _mm256_add_epi32(*exact, D::exact(*sums));
                                    *sums = zero();
                                }
                            }
                            held = 0;
                        }
                    }
                    let scales = scales_at(p.add(chunks * CHUNK_BYTES + 16 * half));
                    for t in 0..N {
                        let exact = sums
                            .iter()
                            .fold(exact[t], |exact, sums| _mm256_add_epi32(exact, D::exact(sums[t])));
                        totals[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), scales, totals[t]);
                    }
                    p = p.add(chunks * CHUNK_BYTES + 2 * TILE);
                }
            }
            for (t, total) in totals.into_iter().enumerate() {
                let y = out.as_mut_ptr().add((first + t) * TILE + 8 * half);
                let scale = _mm256_set1_ps(*x.scales.as_ptr().add(first + t));
                _mm256_storeu_ps(y, _mm256_mul_ps(total, scale));
            }
        }
    }
}

/// One tile times all tokens: the codes of a step are unpacked once, into the first-level cache.
///
/// # Safety
/// See [`matmul`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_times<D: Dot>(tile: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    let (n, steps, quads) = (x.n, geometry.width / x.step, x.step / 4);
    let mut exact = vec![0i32; n * TILE];
    let mut w = [[_mm256_setzero_si256(); 2]; 16];
    let mask = _mm256_set1_epi8(3);
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
                            4 => step_of::<D, 4>(&w[..quads], q, x.step, &mut sums),
                            3 => step_of::<D, 3>(&w[..quads], q, x.step, &mut sums),
                            2 => step_of::<D, 2>(&w[..quads], q, x.step, &mut sums),
                            _ => step_of::<D, 1>(&w[..quads], q, x.step, &mut sums),
                        }
                        for (i, sums) in sums.iter().enumerate().take(many) {
                            let first = _mm256_set1_epi32(*x.offsets.as_ptr().add(group * n + t + i));
                            for (half, sum) in sums.iter().enumerate() {
                                let at = exact.as_mut_ptr().add((t + i) * TILE + 8 * half).cast();
                                let before = if step == 0 { first } else { _mm256_loadu_si256(at) };
                                let sum = _mm256_add_epi32(before, D::widen(*sum));
                                if step + 1 < steps {
                                    _mm256_storeu_si256(at, sum);
                                    continue;
                                }
                                // The group's scales follow its codes, which p has just passed.
                                let scales = scales_at(p.add(16 * half));
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

/// Add a step's inputs of `MANY` tokens: at most 16 additions of 2 * 2 * 127 to a 16-bit lane.
///
/// # Safety
/// `MANY * step` activations can be read at `q`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn step_of<D: Dot, const MANY: usize>(
    w: &[[__m256i; 2]],
    q: *const i8,
    step: usize,
    sums: &mut [[__m256i; 2]; TOKENS],
) {
    for (k, w) in w.iter().enumerate() {
        for (i, sums) in sums.iter_mut().enumerate().take(MANY) {
            // SAFETY: 4 k + 3 < step and i < MANY.
            unsafe {
                let x = _mm256_set1_epi32(q.add(i * step + 4 * k).cast::<i32>().read_unaligned());
                for half in 0..2 {
                    sums[half] = D::dot(sums[half], w[half], x);
                }
            }
        }
    }
}
