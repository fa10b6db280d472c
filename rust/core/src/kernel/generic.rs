//! The portable path: 16-bit lanes that LLVM vectorizes on every CPU.

use super::{vectorized, Activations, Batch};
use crate::tiles::{block_scales, Geometry, CHUNK, CHUNK_BYTES, TILE};

/// Chunks summed in 16 bits before widening: each adds at most 4 * 3 * 127 to a lane.
const SHORT: usize = 20;

vectorized! {
    pub fn matvec(tiles: &[u8], geometry: &Geometry, x: &Activations, out: &mut [f32]) = matvec_inlined;
}

#[inline(always)]
fn matvec_inlined(tiles: &[u8], geometry: &Geometry, x: &Activations, out: &mut [f32]) {
    for (tile, out) in tiles.chunks_exact(geometry.tile_bytes()).zip(out.chunks_exact_mut(TILE)) {
        let mut sums = [0f32; TILE];
        for (index, block) in tile.chunks_exact(geometry.block_bytes()).enumerate() {
            let group = index / geometry.planes;
            let q = &x.q[group * geometry.width..(group + 1) * geometry.width];
            let (codes, scales) = block.split_at(geometry.code_bytes());
            let exact = block_sums(codes, q);
            let scales = block_scales(scales);
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = ((exact[lane] + x.offsets[group]) as f32).mul_add(scales[lane], *sum);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum * x.scale;
        }
    }
}

/// Codes of 16 rows times the same four activations, in lanes that vectorize.
#[inline(always)]
fn add_products(sums: &mut [i16; CHUNK_BYTES], w: &[i16; CHUNK_BYTES], q: &[i8]) {
    let mut repeated = [0i16; TILE];
    for (i, r) in repeated.iter_mut().enumerate() {
        *r = q[i % 4] as i16;
    }
    for (sums, w) in sums.chunks_exact_mut(TILE).zip(w.chunks_exact(TILE)) {
        for ((sum, &w), &q) in sums.iter_mut().zip(w).zip(&repeated) {
            *sum += w * q;
        }
    }
}

/// Sums of (T + 1) * q over the inputs of a block, for its 16 rows.
#[inline(always)]
fn block_sums(codes: &[u8], q: &[i8]) -> [i32; TILE] {
    let mut sums = [0i32; TILE];
    for (codes, q) in codes.chunks(SHORT * CHUNK_BYTES).zip(q.chunks(SHORT * CHUNK)) {
        let mut short = [0i16; CHUNK_BYTES];
        for (codes, q) in codes.chunks_exact(CHUNK_BYTES).zip(q.chunks_exact(CHUNK)) {
            for s in 0..4 {
                let mut w = [0i16; CHUNK_BYTES];
                for (w, &byte) in w.iter_mut().zip(codes) {
                    *w = ((byte >> (2 * s)) & 3) as i16;
                }
                add_products(&mut short, &w, &q[4 * s..4 * s + 4]);
            }
        }
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += short[4 * lane..4 * lane + 4].iter().map(|&v| v as i32).sum::<i32>();
        }
    }
    sums
}

vectorized! {
    pub fn matmul(tile: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) = matmul_inlined;
}

#[inline(always)]
fn matmul_inlined(tile: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    let steps = geometry.width / x.step.max(1);
    let n = x.n;
    let mut exact = vec![0i32; n * TILE];
    // Codes of a step as 16-bit lanes: for each 4 inputs, those of 16 rows.
    let mut w = [[0i16; CHUNK_BYTES]; 16];
    out.fill(0.0);
    for (index, block) in tile.chunks_exact(geometry.block_bytes()).enumerate() {
        let group = index / geometry.planes;
        let (codes, scales) = block.split_at(geometry.code_bytes());
        exact.fill(0);
        for step in 0..steps {
            let chunks = x.step / CHUNK;
            let codes = &codes[step * chunks * CHUNK_BYTES..][..chunks * CHUNK_BYTES];
            for (quads, codes) in w.chunks_exact_mut(4).zip(codes.chunks_exact(CHUNK_BYTES)) {
                for (s, quad) in quads.iter_mut().enumerate() {
                    for (w, &byte) in quad.iter_mut().zip(codes) {
                        *w = ((byte >> (2 * s)) & 3) as i16;
                    }
                }
            }
            let q = &x.q[(group * steps + step) * x.step * n..][..x.step * n];
            for (q, exact) in q.chunks_exact(x.step).zip(exact.chunks_exact_mut(TILE)) {
                let mut short = [0i16; CHUNK_BYTES];
                for (w, q) in w.iter().zip(q.chunks_exact(4)) {
                    add_products(&mut short, w, q);
                }
                for (lane, exact) in exact.iter_mut().enumerate() {
                    *exact += short[4 * lane..4 * lane + 4].iter().map(|&v| v as i32).sum::<i32>();
                }
            }
        }
        let scale = block_scales(scales);
        for (t, (exact, out)) in exact.chunks_exact(TILE).zip(out.chunks_exact_mut(TILE)).enumerate() {
            let offset = x.offsets[group * n + t];
            for lane in 0..TILE {
                out[lane] = ((exact[lane] + offset) as f32).mul_add(scale[lane], out[lane]);
            }
        }
    }
    for (out, scale) in out.chunks_exact_mut(TILE).zip(&x.scales) {
        out.iter_mut().for_each(|y| *y *= scale);
    }
}
