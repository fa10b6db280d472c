//! The layout of the kernels: tiles of 16 rows, each one contiguous stream.
//!
//! A tile is its groups in order, a group its planes in order, each a block: 64 bytes for every 16 inputs, then
//! 16 fp16 scales. In the 64 bytes, byte b of the 4-byte lane r holds at bits 2s the code (T + 1) of row r and
//! input 4s + b. Rows beyond the matrix and inputs beyond the row have code 1; such rows have scale 0.

use crate::error::Result;
use crate::half::scale_to_f32;
use crate::kernel::lay::{self, transpose, CHUNKS, ROW, SCALES};
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
/// Inputs that are laid out at once: one group, a part of one, or two of 32.
const STEP: usize = CHUNKS * CHUNK;

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

    /// Where the chunk of the inputs from `input` on begins in its tile.
    #[inline(always)]
    pub fn chunk_at(&self, input: usize, plane: usize) -> usize {
        // More than one group means that their size is a power of two.
        let group = if self.groups == 1 { 0 } else { input >> self.width.trailing_zeros() };
        self.block_at(group, plane) + (input - group * self.width) / CHUNK * CHUNK_BYTES
    }

    /// Where a lane's scale is in its tile.
    #[inline(always)]
    fn scale_at(&self, group: usize, plane: usize, lane: usize) -> usize {
        self.block_at(group, plane) + self.code_bytes() + 2 * lane
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
    /// Errors: no memory for them.
    pub fn zeroed(len: usize) -> Result<Self> {
        let bytes = memory::zeros::<u8>(len.saturating_add(63))?;
        let start = bytes.as_ptr().align_offset(64).min(63);
        Ok(Aligned { bytes, start, len })
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
    /// Lay out checked codes and scales. Errors, here and of what turns them back: no memory.
    pub fn pack(from: &Canonical<'_>, threads: usize) -> Result<Self> {
        let geometry = Geometry::new(from.rows, from.cols, from.planes, from.group_size);
        let mut bytes = Aligned::zeroed(memory::area(geometry.tiles, geometry.tile_bytes())?)?;
        let size = geometry.tile_bytes();
        if size > 0 {
            pool::rows_mut(bytes.as_mut_slice(), size, size * 4, threads, |tile, out| {
                pack_tile(from, &geometry, tile, out);
            });
        }
        Ok(Tiles { geometry, bytes })
    }

    /// Codes back in the canonical layout [planes, rows, ceil(cols / 4)].
    pub fn codes(&self, threads: usize) -> Result<Vec<u8>> {
        let g = &self.geometry;
        let bytes = row_bytes(g.cols);
        let mut out = memory::zeros::<u8>(g.planes * g.rows * bytes)?;
        if bytes > 0 && g.rows > 0 {
            for (plane, out) in out.chunks_exact_mut(g.rows * bytes).enumerate() {
                pool::chunks_mut(out, TILE * bytes, threads, |tile, rows| {
                    unpack_tile(self.tile(tile), g, plane, rows);
                });
            }
        }
        Ok(out)
    }

    /// Scales back in the canonical layout, fp16 bits [planes, rows, groups].
    pub fn scales(&self, threads: usize) -> Result<Vec<u16>> {
        let g = &self.geometry;
        let mut out = memory::zeros::<u16>(g.planes * g.rows * g.groups)?;
        if g.rows * g.groups > 0 {
            for (plane, out) in out.chunks_exact_mut(g.rows * g.groups).enumerate() {
                // Some tiles an item: one has few scales.
                let some = (8192 / (TILE * g.groups)).max(1);
                pool::chunks_mut(out, some * TILE * g.groups, threads, |item, rows| {
                    for (i, rows) in rows.chunks_mut(TILE * g.groups).enumerate() {
                        unpack_scales(self.tile(item * some + i), g, plane, rows);
                    }
                });
            }
        }
        Ok(out)
    }

    /// The bytes of one tile.
    pub fn tile(&self, tile: usize) -> &[u8] {
        let size = self.geometry.tile_bytes();
        &self.bytes.as_slice()[tile * size..(tile + 1) * size]
    }
}

vectorized! {
    /// Into zeros: scales of rows that are not there stay 0.
    fn pack_tile(from: &Canonical<'_>, g: &Geometry, tile: usize, out: &mut [u8]) = pack_tile_inlined;
}

#[inline(always)]
fn pack_tile_inlined(from: &Canonical<'_>, g: &Geometry, tile: usize, out: &mut [u8]) {
    let (first, rows) = (tile * TILE, (from.rows - tile * TILE).min(TILE));
    let bytes = row_bytes(g.cols);
    for plane in 0..g.planes {
        let codes = &from.codes[(plane * from.rows + first) * bytes..][..rows * bytes];
        let whole = if rows == TILE { g.cols / STEP } else { 0 };
        for step in 0..whole {
            let (low, high) = out.split_at_mut(g.chunk_at(STEP * step + STEP / 2, plane));
            let low = &mut low[g.chunk_at(STEP * step, plane)..];
            let ([a, b, ..], [c, d, ..]) = (low.as_chunks_mut().0, high.as_chunks_mut().0) else {
                unreachable!("a tile has all chunks of its inputs");
            };
            lay::chunks_of_rows(codes, bytes, ROW * step, [a, b, c, d]);
        }
        for chunk in whole * CHUNKS..g.padded_cols() / CHUNK {
            let to = &mut out[g.chunk_at(CHUNK * chunk, plane)..][..CHUNK_BYTES];
            for (lane, to) in to.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let row = if lane < rows { &codes[lane * bytes..][..bytes] } else { &[] };
                *to = transpose(word_at(row, 4 * chunk)).to_le_bytes();
            }
        }
        let scales = &from.scales[(plane * from.rows + first) * g.groups..][..rows * g.groups];
        let eights = if rows == TILE { g.groups / SCALES } else { 0 };
        for (eight, half) in (0..eights).flat_map(|eight| [(eight, 0), (eight, 1)]) {
            let lane = SCALES * half;
            let square = std::array::from_fn(|i| {
                *scales[(lane + i) * g.groups + SCALES * eight..]
                    .first_chunk()
                    .expect("eight groups of a row")
            });
            for (i, lanes) in lay::transpose_scales(square).into_iter().enumerate() {
                let to = &mut out[g.scale_at(SCALES * eight + i, plane, lane)..][..2 * SCALES];
                to.as_chunks_mut().0.copy_from_slice(&lanes.map(u16::to_le_bytes));
            }
        }
        for group in SCALES * eights..g.groups {
            for lane in 0..rows {
                let to = &mut out[g.scale_at(group, plane, lane)..][..2];
                to.copy_from_slice(&scales[lane * g.groups + group].to_le_bytes());
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
    let mut whole = 0;
    if out.len() == TILE * bytes {
        whole = g.cols / STEP;
        for step in 0..whole {
            let place = |half: usize| g.chunk_at(STEP * step + half * STEP / 2, plane);
            let ([a, b, ..], [c, d, ..]) = (tile[place(0)..].as_chunks().0, tile[place(1)..].as_chunks().0)
            else {
                unreachable!("a tile has all chunks of its inputs");
            };
            lay::rows_of_chunks([a, b, c, d], out, bytes, ROW * step);
        }
    }
    for chunk in whole * CHUNKS..g.cols.div_ceil(CHUNK) {
        let from = &tile[g.chunk_at(CHUNK * chunk, plane)..][..CHUNK_BYTES];
        for (row, word) in out.chunks_exact_mut(bytes).zip(from.as_chunks::<4>().0) {
            let word = transpose(u32::from_le_bytes(*word)).to_le_bytes();
            let rest = &mut row[4 * chunk..];
            let len = rest.len().min(4);
            rest[..len].copy_from_slice(&word[..len]);
        }
    }
}

/// A tile's scales of one plane, row by row.
fn unpack_scales(tile: &[u8], g: &Geometry, plane: usize, out: &mut [u16]) {
    let eights = if out.len() == TILE * g.groups { g.groups / SCALES } else { 0 };
    for (eight, half) in (0..eights).flat_map(|eight| [(eight, 0), (eight, 1)]) {
        let lane = SCALES * half;
        let square = std::array::from_fn(|i| {
            let from = &tile[g.scale_at(SCALES * eight + i, plane, lane)..];
            from.as_chunks().0.first_chunk().expect("scales of eight rows").map(u16::from_le_bytes)
        });
        for (i, row) in lay::transpose_scales(square).into_iter().enumerate() {
            out[(lane + i) * g.groups + SCALES * eight..][..SCALES].copy_from_slice(&row);
        }
    }
    for group in SCALES * eights..g.groups {
        for (lane, row) in out.chunks_exact_mut(g.groups).enumerate() {
            let from = &tile[g.scale_at(group, plane, lane)..];
            row[group] = u16::from_le_bytes([from[0], from[1]]);
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

    proptest! {
        #[test]
        fn layout_is_as_described_and_turns_back(
            rows in 0usize..40, cols in prop_oneof![0usize..150, 500usize..600], planes in 1usize..4, seed in any::<u64>(),
            group_size in prop::sample::select(vec![0usize, 32, 64, 128, 256]),
        ) {
            let mut state = seed | 1;
            let mut next = move || { state ^= state << 13; state ^= state >> 7; state ^= state << 17; state };
            let trits: Vec<i8> = (0..planes * rows * cols).map(|_| (next() % 3) as i8 - 1).collect();
            let codes = if cols == 0 { Vec::new() } else { crate::packing::pack(&trits, cols, 1).unwrap() };
            let groups = groups_of(cols, group_size);
            let scales: Vec<u16> = (0..planes * rows * groups).map(|_| (next() % 0x7c00) as u16).collect();
            let from = Canonical::new(&codes, &scales, planes, (rows, cols), group_size, 1).unwrap();
            let tiles = Tiles::pack(&from, 2).unwrap();
            prop_assert_eq!(tiles.codes(2).unwrap(), codes);
            prop_assert_eq!(tiles.scales(2).unwrap(), scales);
            prop_assert_eq!(tiles.bytes.as_slice().as_ptr() as usize % 64, 0);
            for _ in 0..20 {
                if rows * cols == 0 { break; }
                let (p, r, c) = (next() as usize % planes, next() as usize % rows, next() as usize % cols);
                prop_assert_eq!(tiles.code(p, r, c) as i8 - 1, trits[(p * rows + r) * cols + c]);
            }
        }
    }
}
