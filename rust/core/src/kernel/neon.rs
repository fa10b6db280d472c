//! NEON with the dot-product instruction. Its authors have run it under emulation (`make test-aarch64`), not on a
//! processor: compared with the oracle bit for bit, but never timed.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Activations, Batch};
use crate::tiles::{Geometry, CHUNK, CHUNK_BYTES, SCALE_BYTES, TILE};

pub fn available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod")
}

/// Exact sums of 16 rows, four in each vector.
type Sums = [int32x4_t; 4];

/// Tokens that share the unpacking of a byte: their 16 sums, four activations, codes and mask fit 32 registers.
const TOKENS: usize = 4;

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

/// Add one chunk to the sums of `N` tokens: 64 bytes of codes at `p`, each token's 16 activations at `x`.
///
/// # Safety
/// NEON and dot products; 64 bytes at `p` and 16 at each of `x` can be read.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn chunk<const N: usize>(sums: &mut [Sums; N], p: *const u8, x: [*const i8; N]) {
    let mask = vdupq_n_u8(3);
    // SAFETY: the caller's promise.
    let x = x.map(|x| unsafe { vld1q_s8(x) });
    for i in 0..4 {
        // SAFETY: 16 i + 16 <= 64.
        let w = unsafe { vld1q_u8(p.add(16 * i)) };
        macro_rules! code {
            ($codes:expr, $lane:literal) => {
                let codes = $codes;
                for (sums, &x) in sums.iter_mut().zip(&x) {
                    sums[i] = dot!(sums[i], codes, x, $lane);
                }
            };
        }
        code!(vandq_u8(w, mask), "0");
        code!(vandq_u8(vshrq_n_u8::<2>(w), mask), "1");
        code!(vandq_u8(vshrq_n_u8::<4>(w), mask), "2");
        code!(vshrq_n_u8::<6>(w), "3");
    }
}

/// The exact sums of a block for `N` tokens, each from its offset on, scaled and added to the token's totals.
///
/// # Safety
/// NEON and dot products; the block's codes and scales can be read at `p`, 16 floats at each of `totals`, and a
/// token's 16 activations at `q(k, token)` for every chunk k.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn block<const N: usize>(
    totals: [*mut f32; N],
    p: *const u8,
    chunks: usize,
    q: impl Fn(usize, usize) -> *const i8,
    offsets: [i32; N],
) {
    let mut sums = offsets.map(|offset| [vdupq_n_s32(offset); 4]);
    for k in 0..chunks {
        // SAFETY: k < chunks.
        unsafe { chunk(&mut sums, p.add(k * CHUNK_BYTES), std::array::from_fn(|t| q(k, t))) };
    }
    // SAFETY: the scales follow the codes.
    let bytes = unsafe { std::slice::from_raw_parts(p.add(chunks * CHUNK_BYTES), SCALE_BYTES) };
    let scales = crate::tiles::block_scales(bytes);
    for (sums, totals) in sums.into_iter().zip(totals) {
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: four floats at 4 i of 16.
            unsafe {
                let at = totals.add(4 * i);
                let scales = vld1q_f32(scales.as_ptr().add(4 * i));
                vst1q_f32(at, vfmaq_f32(vld1q_f32(at), vcvtq_f32_s32(sum), scales));
            }
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
            let q = |k: usize, _| q[k * CHUNK..][..CHUNK].as_ptr();
            // SAFETY: dispatch checked the CPU; `bytes` is a whole block, `out` 16 floats, `q` checks its slices.
            unsafe { block([out.as_mut_ptr()], bytes.as_ptr(), chunks, q, [x.offsets[group]]) };
        }
        out.iter_mut().for_each(|y| *y *= x.scale);
    }
}

pub fn matmul(tile: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    assert!(tile.len() >= geometry.tile_bytes() && out.len() == x.n * TILE);
    assert!(x.q.len() >= geometry.padded_cols() * x.n && x.offsets.len() >= geometry.groups * x.n);
    out.fill(0.0);
    for (group, bytes) in tile.chunks_exact(geometry.block_bytes() * geometry.planes).enumerate() {
        let mut first = 0;
        for part in out.chunks_mut(TOKENS * TILE) {
            match part.len() / TILE {
                4 => tokens::<4>(bytes, geometry, x, group, first, part),
                3 => tokens::<3>(bytes, geometry, x, group, first, part),
                2 => tokens::<2>(bytes, geometry, x, group, first, part),
                _ => tokens::<1>(bytes, geometry, x, group, first, part),
            }
            first += TOKENS;
        }
    }
    for (out, scale) in out.chunks_exact_mut(TILE).zip(&x.scales) {
        out.iter_mut().for_each(|y| *y *= scale);
    }
}

/// Add a group's blocks, all planes, to the totals of the tokens from `first` on: `out` is [N, 16].
fn tokens<const N: usize>(
    blocks: &[u8],
    geometry: &Geometry,
    x: &Batch,
    group: usize,
    first: usize,
    out: &mut [f32],
) {
    let chunks = geometry.width / CHUNK;
    let (steps, per_step) = (geometry.width / x.step.max(1), x.step / CHUNK);
    let q = |k: usize, token: usize| {
        let at = ((group * steps + k / per_step) * x.n + first + token) * x.step + k % per_step * CHUNK;
        x.q[at..at + CHUNK].as_ptr()
    };
    let offsets = std::array::from_fn(|t| x.offsets[group * x.n + first + t]);
    let mut out = out.chunks_exact_mut(TILE);
    let out: [*mut f32; N] = std::array::from_fn(|_| out.next().expect("16 floats a token").as_mut_ptr());
    for bytes in blocks.chunks_exact(geometry.block_bytes()) {
        // SAFETY: dispatch checked the CPU; `bytes` is a whole block, `out` 16 floats each, `q` checks its slices.
        unsafe { block(out, bytes.as_ptr(), chunks, q, offsets) };
    }
}
