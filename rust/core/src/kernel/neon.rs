//! NEON with the dot-product instruction. UNTESTED: compiled for aarch64, but never run on one by its authors;
//! the tests beside it compare it with the oracle wherever a machine has it.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Activations, Batch};
use crate::tiles::{Geometry, CHUNK, CHUNK_BYTES, SCALE_BYTES, TILE};

pub fn available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod")
}

/// Exact sums of 16 rows, four in each vector.
type Sums = [int32x4_t; 4];

/// `sum` + products of the bytes of `codes` with the four of `x` that `lane` names.
macro_rules! dot {
    ($sum:expr, $codes:expr, $x:expr, $lane:literal) => {{
        let mut sum: int32x4_t = $sum;
        // SAFETY: registers only; the caller's CPU has the instruction.
        unsafe {
            asm!(
                concat!("sdot {s:v}.4s, {w:v}.16b, {x:v}.4b[", $lane, "]"),
                s = inout(vreg) sum,
                w = in(vreg) $codes,
                x = in(vreg_low16) $x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }};
}

/// Add one chunk: 64 bytes of codes at `p`, 16 activations at `x`.
///
/// # Safety
/// NEON and dot products; 64 bytes at `p` and 16 at `x` can be read.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn chunk(sums: &mut Sums, p: *const u8, x: *const i8) {
    let mask = vdupq_n_u8(3);
    // SAFETY: the caller's promise.
    let x = unsafe { vld1q_s8(x) };
    for (i, sum) in sums.iter_mut().enumerate() {
        // SAFETY: 16 i + 16 <= 64.
        let w = unsafe { vld1q_u8(p.add(16 * i)) };
        *sum = dot!(*sum, vandq_u8(w, mask), x, "0");
        *sum = dot!(*sum, vandq_u8(vshrq_n_u8::<2>(w), mask), x, "1");
        *sum = dot!(*sum, vandq_u8(vshrq_n_u8::<4>(w), mask), x, "2");
        *sum = dot!(*sum, vshrq_n_u8::<6>(w), x, "3");
    }
}

/// A block's exact sums from `offset` on, scaled and added to the totals.
///
/// # Safety
/// The block's codes and scales can be read at `p`, its activations at `q(k)` for every chunk k.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn block(
    totals: &mut [f32],
    p: *const u8,
    chunks: usize,
    q: impl Fn(usize) -> *const i8,
    offset: i32,
) {
    let mut sums = [vdupq_n_s32(offset); 4];
    for k in 0..chunks {
        // SAFETY: k < chunks.
        unsafe { chunk(&mut sums, p.add(k * CHUNK_BYTES), q(k)) };
    }
    // SAFETY: the scales follow the codes.
    let bytes = unsafe { std::slice::from_raw_parts(p.add(chunks * CHUNK_BYTES), SCALE_BYTES) };
    let scales = crate::tiles::block_scales(bytes);
    for (i, sum) in sums.into_iter().enumerate() {
        // SAFETY: four floats at 4 i of 16.
        unsafe {
            let at = totals.as_mut_ptr().add(4 * i);
            let scales = vld1q_f32(scales.as_ptr().add(4 * i));
            vst1q_f32(at, vfmaq_f32(vld1q_f32(at), vcvtq_f32_s32(sum), scales));
        }
    }
}

pub fn matvec(tiles: &[u8], geometry: &Geometry, x: &Activations, out: &mut [f32]) {
    assert!(tiles.len() >= out.len() / TILE * geometry.tile_bytes());
    assert!(x.q.len() >= geometry.padded_cols() && x.offsets.len() >= geometry.groups);
    let chunks = geometry.width / CHUNK;
    for (tile, out) in tiles.chunks_exact(geometry.tile_bytes()).zip(out.chunks_exact_mut(TILE)) {
        out.fill(0.0);
        for (index, bytes) in tile.chunks_exact(geometry.block_bytes()).enumerate() {
            let group = index / geometry.planes;
            let q = &x.q[group * geometry.width..(group + 1) * geometry.width];
            // SAFETY: dispatch checked the CPU; `bytes` is a whole block and `q` its activations.
            unsafe { block(out, bytes.as_ptr(), chunks, |k| q.as_ptr().add(k * CHUNK), x.offsets[group]) };
        }
        out.iter_mut().for_each(|y| *y *= x.scale);
    }
}

pub fn matmul(tile: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    assert!(tile.len() >= geometry.tile_bytes() && out.len() == x.n * TILE);
    assert!(x.q.len() >= geometry.padded_cols() * x.n && x.offsets.len() >= geometry.groups * x.n);
    let chunks = geometry.width / CHUNK;
    let (steps, per_step) = (geometry.width / x.step.max(1), x.step / CHUNK);
    out.fill(0.0);
    for (index, bytes) in tile.chunks_exact(geometry.block_bytes()).enumerate() {
        let group = index / geometry.planes;
        for (t, out) in out.chunks_exact_mut(TILE).enumerate() {
            let q = |k: usize| {
                let at = ((group * steps + k / per_step) * x.n + t) * x.step + k % per_step * CHUNK;
                x.q[at..at + CHUNK].as_ptr()
            };
            // SAFETY: as in `matvec`; every pointer comes from a checked slice of 16.
            unsafe { block(out, bytes.as_ptr(), chunks, q, x.offsets[group * x.n + t]) };
        }
    }
    for (out, scale) in out.chunks_exact_mut(TILE).zip(&x.scales) {
        out.iter_mut().for_each(|y| *y *= scale);
    }
}
