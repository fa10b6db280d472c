//! The layout of the kernels: tiles of 16 rows, each one contiguous stream.
//!
//! A tile is its groups in order, a group its planes in order, each a block: 64 bytes for every 16 inputs, then
//! 16 fp16 scales. In the 64 bytes, byte b of the 4-byte lane r holds at bits 2s the code (T + 1) of row r and
//! input 4s + b. Rows beyond the matrix and inputs beyond the row have code 1; such rows have scale 0.

use crate::half::scale_to_f32;
use crate::kernel::vectorized;
use crate::memory;
use crate::packing::{groups_of, row_bytes, Canonical};
use crate::pool;

/// Rows of a tile.
pub const TILE: usize = 16;
/// Inputs whose codes share 64 bytes.
pub const CHUNK: usize = 16;
/// Bytes of such a chunk.
pub const CHUNK_BYTES: usize = 64;
/// Bytes of a block's scales.
pub const SCALE_BYTES: usize = 2 * TILE;
/// A whole-row group is padded to a multiple of this many inputs.
pub const ROW_PAD: usize = 64;

/// Sizes of the tiles of one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub rows: usize,
    pub cols: usize,
    pub planes: usize,
    /// As given: 0 is the whole row.
    pub group_size: usize,
    /// Inputs of a group as laid out (padded).
    pub width: usize,
    pub groups: usize,
    pub tiles: usize,
}

impl Geometry {
    pub fn new(rows: usize, cols: usize, planes: usize, group_size: usize) -> Self {
        let width = match group_size {
            0 => cols.next_multiple_of(ROW_PAD),
            size => size,
        };
        Geometry {
            rows,
            cols,
            planes,
            group_size,
            width,
            groups: groups_of(cols, group_size),
            tiles: rows.div_ceil(TILE),
        }
    }

    /// Whether the kernels' steps of 64 inputs, or of one group of 32, come out even.
    pub fn is_whole_steps(&self) -> bool {
        self.width == 32 || self.width.is_multiple_of(ROW_PAD)
    }

    /// Inputs of a padded row: the length of quantized activations.
    pub fn padded_cols(&self) -> usize {
        self.groups * self.width
    }

    /// Bytes of a block's codes.
    pub fn code_bytes(&self) -> usize {
        self.width / CHUNK * CHUNK_BYTES
    }

    pub fn block_bytes(&self) -> usize {
        self.code_bytes() + SCALE_BYTES
    }

    pub fn tile_bytes(&self) -> usize {
        self.groups * self.planes * self.block_bytes()
    }

    /// Where a block begins in its tile.
    pub fn block_at(&self, group: usize, plane: usize) -> usize {
        (group * self.planes + plane) * self.block_bytes()
    }
}

/// Bytes that start at a multiple of 64.
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub fn zeroed(len: usize) -> Self {
        let bytes = memory::zeros::<u8>(len + 63);
        let start = bytes.as_ptr().align_offset(64).min(63);
        Aligned { bytes, start, len }
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// A matrix in tiles.
pub struct Tiles {
    pub geometry: Geometry,
    pub bytes: Aligned,
}

impl Tiles {
    /// Lay out checked codes and scales.
    pub fn pack(from: &Canonical<'_>, threads: usize) -> Self {
        let geometry = Geometry::new(from.rows, from.cols, from.planes, from.group_size);
        let mut bytes = Aligned::zeroed(geometry.tiles * geometry.tile_bytes());
        let size = geometry.tile_bytes();
        if size > 0 {
            pool::rows_mut(bytes.as_mut_slice(), size, size * 4, threads, |tile, out| {
                pack_tile(from, &geometry, tile, out);
            });
        }
        Tiles { geometry, bytes }
    }

    /// Codes back in the canonical layout [planes, rows, ceil(cols / 4)].
    pub fn codes(&self, threads: usize) -> Vec<u8> {
        let g = &self.geometry;
        let bytes = row_bytes(g.cols);
        let mut out = memory::zeros::<u8>(g.planes * g.rows * bytes);
        if bytes > 0 && g.rows > 0 {
            for (plane, out) in out.chunks_exact_mut(g.rows * bytes).enumerate() {
                pool::chunks_mut(out, TILE * bytes, threads, |tile, rows| {
                    unpack_tile(self.tile(tile), g, plane, rows);
                });
            }
        }
        out
    }

    /// Scales back in the canonical layout, fp16 bits [planes, rows, groups].
    pub fn scales(&self) -> Vec<u16> {
        let g = &self.geometry;
        let mut out = vec![0u16; g.planes * g.rows * g.groups];
        for tile in 0..g.tiles {
            let rows = (g.rows - tile * TILE).min(TILE);
            for (index, block) in self.tile(tile).chunks_exact(g.block_bytes()).enumerate() {
                let (group, plane) = (index / g.planes, index % g.planes);
                let scales = block[g.code_bytes()..].as_chunks::<2>().0;
                for (lane, &scale) in scales.iter().enumerate().take(rows) {
                    out[(plane * g.rows + tile * TILE + lane) * g.groups + group] = u16::from_le_bytes(scale);
                }
            }
        }
        out
    }

    /// The bytes of one tile.
    pub fn tile(&self, tile: usize) -> &[u8] {
        let size = self.geometry.tile_bytes();
        &self.bytes.as_slice()[tile * size..(tile + 1) * size]
    }
}

/// The 4x4 transpose of 2-bit codes: in the canonical word input 4b + s is at bits 8b + 2s, in the tile's lane
/// input 4s + b is; so bits (b, s) and (s, b) change places. Doing it again turns it back.
#[inline(always)]
fn transpose(word: u32) -> u32 {
    let swap = |x: u32, mask: u32, shift: u32| {
        let t = (x ^ (x >> shift)) & mask;
        x ^ t ^ (t << shift)
    };
    swap(swap(word, 0x00cc_00cc, 6), 0x0000_f0f0, 12)
}

vectorized! {
    fn pack_tile(from: &Canonical<'_>, g: &Geometry, tile: usize, out: &mut [u8]) = pack_tile_inlined;
}

#[inline(always)]
fn pack_tile_inlined(from: &Canonical<'_>, g: &Geometry, tile: usize, out: &mut [u8]) {
    let rows = (from.rows - tile * TILE).min(TILE);
    for plane in 0..g.planes {
        let codes: [&[u8]; TILE] =
            std::array::from_fn(
                |lane| if lane < rows { from.codes_row(plane, tile * TILE + lane) } else { &[] },
            );
        for group in 0..g.groups {
            let block = &mut out[g.block_at(group, plane)..][..g.block_bytes()];
            let (to, scales) = block.split_at_mut(g.code_bytes());
            let first = group * g.width / 4;
            for (chunk, to) in to.as_chunks_mut::<CHUNK_BYTES>().0.iter_mut().enumerate() {
                let at = first + 4 * chunk;
                let words: [u32; TILE] = std::array::from_fn(|lane| word_at(codes[lane], at));
                for (to, word) in to.as_chunks_mut::<4>().0.iter_mut().zip(words.map(transpose)) {
                    *to = word.to_le_bytes();
                }
            }
            for (lane, to) in scales.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let scale = if lane < rows { from.scales_row(plane, tile * TILE + lane)[group] } else { 0 };
                *to = scale.to_le_bytes();
            }
        }
    }
}

/// Four bytes of codes from `at` on; those that the row lacks hold codes of 1.
#[inline(always)]
fn word_at(codes: &[u8], at: usize) -> u32 {
    let rest = codes.get(at..).unwrap_or(&[]);
    let four = rest.first_chunk().copied().unwrap_or_else(|| {
        let mut four = [0x55; 4];
        four[..rest.len()].copy_from_slice(rest);
        four
    });
    u32::from_le_bytes(four)
}

vectorized! {
    /// A tile's codes of one plane, row by row; `out` is as many rows as the matrix has there.
    fn unpack_tile(tile: &[u8], g: &Geometry, plane: usize, out: &mut [u8]) = unpack_tile_inlined;
}

#[inline(always)]
fn unpack_tile_inlined(tile: &[u8], g: &Geometry, plane: usize, out: &mut [u8]) {
    let bytes = row_bytes(g.cols);
    for group in 0..g.groups {
        let block = &tile[g.block_at(group, plane)..][..g.code_bytes()];
        let first = group * g.width / 4;
        for (chunk, from) in block.as_chunks::<CHUNK_BYTES>().0.iter().enumerate() {
            let (from, _) = from.as_chunks::<4>();
            let words: [u32; TILE] = std::array::from_fn(|lane| transpose(u32::from_le_bytes(from[lane])));
            for (row, word) in out.chunks_exact_mut(bytes).zip(words) {
                let rest = row.get_mut(first + 4 * chunk..).unwrap_or(&mut []);
                match rest.first_chunk_mut() {
                    Some(four) => *four = word.to_le_bytes(),
                    None => rest.copy_from_slice(&word.to_le_bytes()[..rest.len()]),
                }
            }
        }
    }
}

/// A block's scales.
#[inline(always)]
pub fn block_scales(bytes: &[u8]) -> [f32; TILE] {
    let mut out = [0f32; TILE];
    for (scale, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *scale = scale_to_f32(u16::from_le_bytes([b[0], b[1]]) & 0x7fff);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Tiles {
        /// One code, by the description above.
        fn code(&self, plane: usize, row: usize, col: usize) -> u8 {
            let g = &self.geometry;
            let (group, at) = if g.group_size == 0 { (0, col) } else { (col / g.width, col % g.width) };
            let (chunk, i) = (at / CHUNK, at % CHUNK);
            let byte = g.block_at(group, plane) + chunk * CHUNK_BYTES + row % TILE * 4 + i % 4;
            (self.tile(row / TILE)[byte] >> (2 * (i / 4))) & 3
        }
    }

    #[test]
    fn transposes_codes() {
        for b in 0..4 {
            for s in 0..4 {
                assert_eq!(transpose(3 << (8 * b + 2 * s)), 3 << (8 * s + 2 * b));
            }
        }
    }

    proptest! {
        #[test]
        fn layout_is_as_described_and_turns_back(
            rows in 0usize..40, cols in 0usize..150, planes in 1usize..4, seed in any::<u64>(),
            group_size in prop::sample::select(vec![0usize, 32, 64, 128, 256]),
        ) {
            let mut state = seed | 1;
            let mut next = move || { state ^= state << 13; state ^= state >> 7; state ^= state << 17; state };
            let trits: Vec<i8> = (0..planes * rows * cols).map(|_| (next() % 3) as i8 - 1).collect();
            let codes = if cols == 0 { Vec::new() } else { crate::packing::pack(&trits, cols, 1).unwrap() };
            let groups = groups_of(cols, group_size);
            let scales: Vec<u16> = (0..planes * rows * groups).map(|_| (next() % 0x7c00) as u16).collect();
            let from = Canonical::new(&codes, &scales, planes, (rows, cols), group_size).unwrap();
            let tiles = Tiles::pack(&from, 2);
            prop_assert_eq!(tiles.codes(2), codes);
            prop_assert_eq!(tiles.scales(), scales);
            prop_assert_eq!(tiles.bytes.as_slice().as_ptr() as usize % 64, 0);
            for _ in 0..20 {
                if rows * cols == 0 { break; }
                let (p, r, c) = (next() as usize % planes, next() as usize % rows, next() as usize % cols);
                prop_assert_eq!(tiles.code(p, r, c) as i8 - 1, trits[(p * rows + r) * cols + c]);
            }
        }
    }
}
