//! AVX-512 for many tokens: codes are unpacked once for all of them and four tiles share every broadcast of
//! activations.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx512::in_order;
use super::unpack512::Unpack;
use super::{starts, Batch, TILES};
use crate::scratch::Line;
use crate::tiles::{Geometry, CHUNK_BYTES, TILE};

/// Tokens that are multiplied at a time: their sums, the codes of four tiles and broadcasts fill the registers.
const MANY: usize = 6;

/// Inputs whose codes are unpacked at a time: 16 KB, a third of the first-level cache. Sums of longer groups go to
/// memory and back that often only.
const SPAN: usize = 256;

const NOTHING: Line = Line([0; TILE]);

/// Steps are of one block (a group of one plane) each; this is where one of them is.
#[derive(Clone, Copy, Default)]
struct Step {
    /// Its activations in the batch, in steps.
    at: usize,
    group: usize,
    /// It begins its block: sums start at the offsets.
    first: bool,
    /// It ends its block: sums are multiplied with the scales.
    last: bool,
}

/// Up to [`TILES`] tiles times all tokens: the codes of some steps are unpacked into the first-level cache once, and
/// every broadcast of activations serves all tiles. Where there are fewer, the first stands in for those missing.
///
/// # Safety
/// AVX-512 BW and VNNI and the path's own; whole tiles, a batch of steps of `STEP` for this geometry, and `out`
/// [tiles, n, 16].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn tiles_times<U: Unpack, const STEP: usize>(
    tiles: &[u8],
    geometry: &Geometry,
    x: &Batch,
    out: &mut [f32],
) {
    let n = x.n;
    let per_block = geometry.width / STEP;
    let total = geometry.groups * geometry.planes * per_block;
    let mut totals = vec![NOTHING; TILES * n];
    // Sums of blocks that a span may end in, between spans.
    let mut sums = if per_block > 1 { totals.clone() } else { Vec::new() };
    let mut w = [const { MaybeUninit::<[Line; TILES]>::uninit() }; SPAN / 4];
    let mut scales = [[NOTHING; TILES]; SPAN / 32];
    let mut steps = [Step::default(); SPAN / 32];
    let mut p: [*const u8; TILES] = starts(tiles, geometry.tile_bytes());
    // As even as can be: 16 tokens are 8 and 8.
    let many = n.div_ceil(n.div_ceil(MANY));
    // SAFETY: each p walks over its tile, `total` steps long; token indices stay below n.
    unsafe {
        let mut next = 0;
        while next < total {
            let count = (total - next).min(SPAN / STEP);
            for i in 0..count {
                let (block, step) = ((next + i) / per_block, (next + i) % per_block);
                let group = block / geometry.planes;
                let (first, last) = (step == 0, step + 1 == per_block);
                steps[i] = Step { at: group * per_block + step, group, first, last };
                let w = &mut w[i * (STEP / 4)..][..STEP / 4];
                for (tile, p) in p.iter_mut().enumerate() {
                    for four in w.chunks_exact_mut(4) {
                        _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(x.ahead).cast());
                        let codes = U::plain(_mm512_loadu_si512(p.cast()));
                        for (w, codes) in four.iter_mut().zip(codes) {
                            _mm512_store_si512(w.as_mut_ptr().cast::<Line>().add(tile).cast(), codes);
                        }
                        *p = p.add(CHUNK_BYTES);
                    }
                    if last {
                        let values = _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()));
                        _mm512_store_ps(scales[i][tile].0.as_mut_ptr().cast(), values);
                        *p = p.add(2 * TILE);
                    }
                }
            }
            next += count;
            let part = Part {
                steps: &steps[..count],
                w: w.as_ptr().cast(),
                scales: scales.as_ptr(),
                q: x.q.as_ptr(),
                offsets: x.offsets.as_ptr(),
                n,
                sums: sums.as_mut_ptr(),
                totals: totals.as_mut_ptr(),
            };
            for t in (0..n).step_by(many) {
                match many.min(n - t) {
                    6 => times::<STEP, 6>(&part, t),
                    5 => times::<STEP, 5>(&part, t),
                    4 => times::<STEP, 4>(&part, t),
                    3 => times::<STEP, 3>(&part, t),
                    2 => times::<STEP, 2>(&part, t),
                    _ => times::<STEP, 1>(&part, t),
                }
            }
        }
        for (at, (total, out)) in totals.iter().zip(out.chunks_exact_mut(TILE)).enumerate() {
            let total = _mm512_load_ps(total.0.as_ptr().cast());
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mul_ps(total, _mm512_set1_ps(x.scales[at % n])));
        }
    }
}

/// Some steps for all tokens; codes are [steps, STEP / 4, tiles], scales [steps, tiles], sums and totals [tiles, n].
struct Part<'a> {
    steps: &'a [Step],
    w: *const [Line; TILES],
    scales: *const [Line; TILES],
    q: *const i8,
    offsets: *const i32,
    n: usize,
    sums: *mut Line,
    totals: *mut Line,
}

/// Add the steps' inputs of the `T` tokens from `t` on.
///
/// # Safety
/// All of the part's pointers are good for its steps and for `t + T` tokens; `sums` where a block goes on before
/// the first step or after the last.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn times<const STEP: usize, const T: usize>(part: &Part<'_>, t: usize) {
    let mut sums = [[_mm512_setzero_si512(); T]; TILES];
    let n = part.n;
    // SAFETY: the caller's promise; t + i is below the tokens.
    unsafe {
        if !part.steps[0].first {
            for (tile, sums) in sums.iter_mut().enumerate() {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_load_si512(part.sums.add(tile * n + t + i).cast());
                }
            }
        }
        for (index, step) in part.steps.iter().enumerate() {
            if step.first {
                for i in 0..T {
                    let offset = _mm512_set1_epi32(*part.offsets.add(step.group * n + t + i));
                    sums.iter_mut().for_each(|sums| sums[i] = offset);
                }
            }
            let q = part.q.add((step.at * n + t) * STEP);
            let w = part.w.add(index * (STEP / 4));
            // Written out: the end of a short loop is often guessed wrong.
            macro_rules! four {
                ($($k:literal)*) => {$(
                    add::<STEP, T>(&mut sums, w.add($k), q.add(4 * $k));
                )*};
            }
            four!(0 1 2 3 4 5 6 7);
            if STEP == 64 {
                four!(8 9 10 11 12 13 14 15);
            }
            if step.last {
                for (tile, sums) in sums.iter().enumerate() {
                    let scales = _mm512_load_ps((*part.scales.add(index))[tile].0.as_ptr().cast());
                    for (i, &sum) in sums.iter().enumerate() {
                        let total = part.totals.add(tile * n + t + i).cast::<f32>();
                        let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales, _mm512_load_ps(total));
                        _mm512_store_ps(total, sum);
                    }
                }
            }
        }
        if part.steps.last().is_some_and(|step| !step.last) {
            for (tile, sums) in sums.into_iter().enumerate() {
                for (i, sum) in sums.into_iter().enumerate() {
                    _mm512_store_si512(part.sums.add(tile * n + t + i).cast(), sum);
                }
            }
        }
    }
}

/// Add four inputs: of every tile the codes at `w`, of `T` tokens the activations at `q` and every `STEP` from there.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add<const STEP: usize, const T: usize>(
    sums: &mut [[__m512i; T]; TILES],
    w: *const [Line; TILES],
    q: *const i8,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let codes: [__m512i; TILES] =
            std::array::from_fn(|tile| _mm512_load_si512((*w)[tile].0.as_ptr().cast()));
        for i in 0..T {
            let x = _mm512_set1_epi32(q.add(i * STEP).cast::<i32>().read_unaligned());
            for (sums, codes) in sums.iter_mut().zip(codes) {
                sums[i] = _mm512_dpbusd_epi32(sums[i], codes, x);
                in_order(&mut sums[i..i + 1]);
            }
        }
    }
}
