//! AVX2 and AVX-VNNI, several tokens: codes are taken out of their bytes once for up to four of them, whose sums
//! stay in registers, or once for all into the first-level cache.

use std::arch::x86_64::*;

use super::avx2_one::{scales_at, zero};
use super::dot256::Dot;
use super::Batch;
use crate::memory::ask_for;
use crate::tiles::{Geometry, CHUNK, CHUNK_BYTES, TILE};

/// Tokens whose sums for 8 rows over packed codes, or for 16 rows over unpacked ones, fit into registers.
const TOKENS: usize = 4;

/// Tokens from which on codes are unpacked into the first-level cache instead of by every few tokens anew.
const MANY: usize = 24;

pub fn matmul<D: Dot>(tile: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    assert!(tile.len() >= geometry.tile_bytes() && out.len() == x.n * TILE);
    assert!(x.q.len() >= geometry.padded_cols() * x.n && x.offsets.len() >= geometry.groups * x.n);
    assert!(x.halves.len() >= geometry.groups * x.n);
    assert!(D::available());
    // SAFETY: the CPU was checked by dispatch; the lengths above cover the tile, the batch and the output.
    unsafe {
        if x.n >= MANY {
            return tile_times::<D>(tile, geometry, x, out);
        }
        let mut t = 0;
        while t < x.n {
            // As even as can be: 5 tokens are 3 and 2.
            let many = (x.n - t).div_ceil((x.n - t).div_ceil(TOKENS));
            // Two sets of sums in turn in long groups of few tokens, so that no 32-bit product waits for the one before.
            let long = geometry.width > 64 && D::SHORT > 8;
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

/// The codes of half a chunk, the second and fourth times 4.
///
/// # Safety
/// 32 bytes can be read at `p`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn codes_at(p: *const u8) -> [__m256i; 4] {
    let (low, high) = (_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c));
    // SAFETY: the caller's promise.
    let w = unsafe { _mm256_loadu_si256(p.cast()) };
    let v = _mm256_srli_epi16::<4>(w);
    [_mm256_and_si256(w, low), _mm256_and_si256(w, high), _mm256_and_si256(v, low), _mm256_and_si256(v, high)]
}

/// Where a group's activations of the first of some tokens lie, [steps, n, STEP] of them, and where their sums start.
#[derive(Clone, Copy)]
struct Tokens {
    q: *const i8,
    n: usize,
    offsets: *const i32,
    halves: *const i32,
    /// Bytes between the codes that are read and those asked for ahead; 0 asks for none.
    ahead: usize,
}

/// Ask for the line `ahead` bytes after `p`.
#[inline(always)]
fn ask(p: *const u8, ahead: usize) {
    if ahead > 0 {
        ask_for(p.wrapping_add(ahead));
    }
}

/// Exact sums of 8 rows of a block for `N` tokens, less the activations' sums. The block is one step long.
///
/// # Safety
/// See [`matmul`]; `p` is at the half's first 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn one_step<D: Dot, const STEP: usize, const N: usize>(
    p: *const u8,
    x: Tokens,
    chunks: usize,
) -> [__m256i; N] {
    let mut sums = [zero(); N];
    // SAFETY: the caller's promise: STEP / CHUNK chunks, and N tokens of STEP activations.
    unsafe {
        ask(p, x.ahead);
        let codes = codes_at(p);
        for (t, sums) in sums.iter_mut().enumerate() {
            *sums = D::half_first(codes, x.q.add(t * STEP), x.offsets.add(t), x.halves.add(t));
        }
        for k in 1..chunks {
            let p = p.add(k * CHUNK_BYTES);
            ask(p, x.ahead);
            let codes = codes_at(p);
            for (t, sums) in sums.iter_mut().enumerate() {
                D::half_chunk(sums, codes, x.q.add(t * STEP + k * CHUNK));
            }
        }
        sums.map(|sums| D::exact(sums))
    }
}

/// The same of a block of any number of steps, in `SETS` sets of sums in turn.
///
/// # Safety
/// See [`one_step`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn some_steps<D: Dot, const STEP: usize, const SETS: usize, const N: usize>(
    p: *const u8,
    x: Tokens,
    steps: usize,
) -> [__m256i; N] {
    let mut exact = [_mm256_setzero_si256(); N];
    let mut sums = [[zero(); N]; SETS];
    let mut held = 0;
    // SAFETY: the caller's promise, for as many steps.
    unsafe {
        for (t, exact) in exact.iter_mut().enumerate() {
            *exact = _mm256_set1_epi32(*x.offsets.add(t));
        }
        for step in 0..steps {
            let q = x.q.add(step * x.n * STEP);
            macro_rules! one_chunk {
                ($k:expr, $set:expr) => {{
                    let p = p.add((step * (STEP / CHUNK) + $k) * CHUNK_BYTES);
                    ask(p, x.ahead);
                    let codes = codes_at(p);
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
        for (t, exact) in exact.iter_mut().enumerate() {
            for sums in &sums {
                *exact = _mm256_add_epi32(*exact, D::exact(sums[t]));
            }
        }
    }
    exact
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
    let block = chunks * CHUNK_BYTES;
    let steps = geometry.width / STEP;
    // SAFETY: p walks over the tile; tokens are below n, steps below those of the batch.
    unsafe {
        for half in 0..2 {
            // The second half reads the lines that the first one asked for.
            let ahead = if half == 0 { x.ahead } else { 0 };
            let mut totals = [_mm256_setzero_ps(); N];
            let mut p = tile.as_ptr();
            for group in 0..geometry.groups {
                let tokens = Tokens {
                    q: x.q.as_ptr().add((group * steps * n + first) * STEP),
                    n,
                    offsets: x.offsets.as_ptr().add(group * n + first),
                    halves: x.halves.as_ptr().add(group * n + first),
                    ahead,
                };
                for _ in 0..geometry.planes {
                    let at = p.add(32 * half);
                    let exact: [__m256i; N] = if SETS == 1 && steps == 1 {
                        one_step::<D, STEP, N>(at, tokens, chunks)
                    } else {
                        some_steps::<D, STEP, SETS, N>(at, tokens, steps)
                    };
                    let scales = scales_at(p.add(block + 16 * half));
                    for (total, exact) in totals.iter_mut().zip(exact) {
                        *total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), scales, *total);
                    }
                    p = p.add(block + 2 * TILE);
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
