//! AVX-512 for many tokens: codes are unpacked once for all of them and two tiles share every broadcast of
//! activations.

use std::arch::x86_64::*;

use super::avx512::in_order;
use super::unpack512::Unpack;
use super::Batch;
use crate::tiles::{Geometry, CHUNK, CHUNK_BYTES, TILE};

/// Tokens that are multiplied at a time with codes unpacked for all of them.
const MANY: usize = 10;

/// A vector in memory: aligned, because one that lies across two cache lines takes twice the time.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u32; TILE]);

const NOTHING: Line = Line([0; TILE]);

/// `TILES` tiles times all tokens: the codes of a step are unpacked into the first-level cache once, and every
/// broadcast of activations serves all tiles (two loads a cycle would keep the multipliers at 84 %).
///
/// # Safety
/// AVX-512 BW and VNNI and the path's own; `TILES` whole tiles, a batch of steps of `STEP` for this geometry, and
/// `out` [TILES, n, 16].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn tiles_times<U: Unpack, const STEP: usize, const TILES: usize>(
    tiles: &[u8],
    geometry: &Geometry,
    x: &Batch,
    out: &mut [f32],
) {
    let n = x.n;
    let steps = geometry.width / STEP;
    let mut totals = vec![NOTHING; TILES * n];
    // Sums of groups longer than a step, between steps.
    let mut sums = if steps > 1 { totals.clone() } else { Vec::new() };
    let mut w = [[NOTHING; TILES]; 16];
    let mut p: [*const u8; TILES] = std::array::from_fn(|i| tiles[i * geometry.tile_bytes()..].as_ptr());
    // As even as can be: 13 tokens are 7 and 6.
    let many = n.div_ceil(n.div_ceil(MANY));
    // SAFETY: each p walks over its tile; token indices stay below n.
    unsafe {
        for group in 0..geometry.groups {
            for _ in 0..geometry.planes {
                let scales =
                    p.map(|p| _mm512_cvtph_ps(_mm256_loadu_si256(p.add(geometry.code_bytes()).cast())));
                for step in 0..steps {
                    for (tile, p) in p.iter_mut().enumerate() {
                        for four in w.chunks_exact_mut(4).take(STEP / CHUNK) {
                            let codes = U::plain(_mm512_loadu_si512(p.cast()));
                            for (w, codes) in four.iter_mut().zip(codes) {
                                _mm512_store_si512(w[tile].0.as_mut_ptr().cast(), codes);
                            }
                            *p = p.add(CHUNK_BYTES);
                        }
                    }
                    let part = Part {
                        w: &w,
                        q: x.q.as_ptr().add((group * steps + step) * STEP * n),
                        offsets: (step == 0).then(|| x.offsets.as_ptr().add(group * n)),
                        scales: (step + 1 == steps).then_some(scales),
                        n,
                        sums: sums.as_mut_ptr(),
                        totals: totals.as_mut_ptr(),
                    };
                    for t in (0..n).step_by(many) {
                        match many.min(n - t) {
                            10 => times::<STEP, TILES, 10>(&part, t),
                            9 => times::<STEP, TILES, 9>(&part, t),
                            8 => times::<STEP, TILES, 8>(&part, t),
                            7 => times::<STEP, TILES, 7>(&part, t),
                            6 => times::<STEP, TILES, 6>(&part, t),
                            5 => times::<STEP, TILES, 5>(&part, t),
                            4 => times::<STEP, TILES, 4>(&part, t),
                            3 => times::<STEP, TILES, 3>(&part, t),
                            2 => times::<STEP, TILES, 2>(&part, t),
                            _ => times::<STEP, TILES, 1>(&part, t),
                        }
                    }
                }
                p = p.map(|p| p.add(2 * TILE));
            }
        }
        for (at, (total, out)) in totals.iter().zip(out.chunks_exact_mut(TILE)).enumerate() {
            let total = _mm512_load_ps(total.0.as_ptr().cast());
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mul_ps(total, _mm512_set1_ps(x.scales[at % n])));
        }
    }
}

/// A step of a group for all tokens; sums and totals are [tiles, n].
struct Part<'a, const TILES: usize> {
    w: &'a [[Line; TILES]; 16],
    q: *const i8,
    /// At the group's first step.
    offsets: Option<*const i32>,
    /// At the group's last step.
    scales: Option<[__m512; TILES]>,
    n: usize,
    sums: *mut Line,
    totals: *mut Line,
}

/// Add the step's inputs of the `T` tokens from `t` on.
///
/// # Safety
/// All of the part's pointers are good for `t + T` tokens.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn times<const STEP: usize, const TILES: usize, const T: usize>(part: &Part<'_, TILES>, t: usize) {
    let mut sums = [[_mm512_setzero_si512(); T]; TILES];
    // SAFETY: the caller's promise; t + i is below the tokens.
    unsafe {
        for (tile, sums) in sums.iter_mut().enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = match part.offsets {
                    Some(offsets) => _mm512_set1_epi32(*offsets.add(t + i)),
                    None => _mm512_load_si512(part.sums.add(tile * part.n + t + i).cast()),
                };
            }
        }
        let mut q = part.q.add(t * STEP);
        for w in part.w.iter().take(STEP / 4) {
            let w = w.each_ref().map(|w| _mm512_load_si512(w.0.as_ptr().cast()));
            for i in 0..T {
                let x = _mm512_set1_epi32(q.add(i * STEP).cast::<i32>().read_unaligned());
                for (sums, w) in sums.iter_mut().zip(w) {
                    sums[i] = _mm512_dpbusd_epi32(sums[i], w, x);
                    in_order(&mut sums[i..i + 1]);
                }
            }
            q = q.add(4);
        }
        for (tile, sums) in sums.into_iter().enumerate() {
            for (i, sum) in sums.into_iter().enumerate() {
                let at = tile * part.n + t + i;
                match part.scales {
                    Some(scales) => {
                        let total = part.totals.add(at).cast::<f32>();
                        let sum =
                            _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales[tile], _mm512_load_ps(total));
                        _mm512_store_ps(total, sum);
                    }
                    None => _mm512_store_si512(part.sums.add(at).cast(), sum),
                }
            }
        }
    }
}
