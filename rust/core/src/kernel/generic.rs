//! The portable path: 16-bit lanes that LLVM vectorizes on every CPU.

use super::Activations;
use crate::tiles::{block_scale, Geometry, CHUNK, CHUNK_BYTES, TILE};

/// Chunks summed in 16 bits before widening: each adds at most 4 * 3 * 127 to a lane.
const SHORT: usize = 20;

pub fn matvec(tiles: &[u8], geometry: &Geometry, x: &Activations, out: &mut [f32]) {
    for (tile, out) in tiles.chunks_exact(geometry.tile_bytes()).zip(out.chunks_exact_mut(TILE)) {
        let mut sums = [0f32; TILE];
        for (index, block) in tile.chunks_exact(geometry.block_bytes()).enumerate() {
            let group = index / geometry.planes;
            let q = &x.q[group * geometry.width..(group + 1) * geometry.width];
            let (codes, scales) = block.split_at(geometry.code_bytes());
            let exact = block_sums(codes, q);
            for (lane, sum) in sums.iter_mut().enumerate() {
                let value = (exact[lane] - x.sums[group]) as f32;
                *sum = value.mul_add(block_scale(scales, lane), *sum);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum * x.scale;
        }
    }
}

/// Sums of (T + 1) * q over the inputs of a block, for its 16 rows.
fn block_sums(codes: &[u8], q: &[i8]) -> [i32; TILE] {
    let mut sums = [0i32; TILE];
    for (codes, q) in codes.chunks(SHORT * CHUNK_BYTES).zip(q.chunks(SHORT * CHUNK)) {
        let mut short = [0i16; CHUNK_BYTES];
        for (codes, q) in codes.chunks_exact(CHUNK_BYTES).zip(q.chunks_exact(CHUNK)) {
            for s in 0..4 {
                let q = [q[4 * s] as i16, q[4 * s + 1] as i16, q[4 * s + 2] as i16, q[4 * s + 3] as i16];
                for (i, sum) in short.iter_mut().enumerate() {
                    *sum += ((codes[i] >> (2 * s)) & 3) as i16 * q[i & 3];
                }
            }
        }
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += short[4 * lane..4 * lane + 4].iter().map(|&v| v as i32).sum::<i32>();
        }
    }
    sums
}
