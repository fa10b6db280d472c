//! The 1.6-bit format: five codes a byte in tiles of 16 rows.
//!
//! A byte tells v = sum of code_s * 3^(4 - s), s = 0..4, in the [`Encoding`] that the machine reads fastest.
//!
//! Five groups (their planes in order) share a block: for each plane `width / 4` chunks of 64 bytes, where byte b
//! of the 4-byte lane r in chunk c holds as its code s that of row r and input 4 c + b of the block's group s.
//! Then the scales as in the 2-bit tiles, group by group, plane by plane. A whole row is one group; there code s
//! is that of input 20 c + 4 s + b.

#[cfg(target_arch = "x86_64")]
use super::{
    dot256::{Maddubs, Vnni},
    trits_vbmi,
};
use super::{Activations, Isa, Reading};
use crate::error::Result;
use crate::kernel::vectorized;
use crate::pool;
use crate::tiles::{block_scales, Aligned, Geometry, Tiles, CHUNK_BYTES, SCALE_BYTES, TILE};

/// Codes in a byte.
pub const DIGITS: usize = 5;

/// Codes in a byte of the 2-bit format.
pub const FOUR: usize = 4;

/// How a byte tells its five codes. Both stay in memory: files are 2-bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// ceil(v * 256 / 243), a fraction in base 3: times 3, its carry out of 8 bits is the first code, and the low
    /// byte holds the rest in the same way.
    Fraction,
    /// Code 0 in the top two bits and a number below 64 for the others, or an escape: for lookups in registers.
    Table,
}

impl Encoding {
    /// What a path reads fastest on this machine.
    pub fn of(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx | Isa::Avx512Gfni | Isa::Avx512Vnni if trits_vbmi::available() => Encoding::Table,
            _ => Encoding::Fraction,
        }
    }

    /// The byte of each value, where that is looked up.
    fn table(self) -> [u8; 256] {
        match self {
            #[cfg(target_arch = "x86_64")]
            Encoding::Table => {
                std::array::from_fn(|value| if value < 243 { trits_vbmi::encode(value) } else { 0 })
            }
            _ => [0; 256],
        }
    }
}

/// ceil(v * 256 / 243) for v up to 242, in numbers of 16 bits.
#[inline(always)]
fn fraction(value: u8) -> u8 {
    // v + ceil(13 v / 243); 34522 / 2^23 is so little above 1 / 243 that whole parts of such numbers are the same.
    let above = 13 * value as u16 + 242;
    value + ((((above << 4) as u32 * 34_522) >> 16) as u16 >> 11) as u8
}

/// Where things are in a tile of five codes a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub geometry: Geometry,
    pub encoding: Encoding,
    /// Chunks of a plane in a block.
    pub chunks: usize,
    /// Groups that share a block: 5, or 1 for whole rows.
    pub groups: usize,
}

impl Layout {
    pub fn new(geometry: Geometry, encoding: Encoding) -> Self {
        let quads = geometry.width / 4;
        match geometry.group_size {
            0 => Layout { geometry, encoding, chunks: quads.div_ceil(DIGITS), groups: 1 },
            _ => Layout { geometry, encoding, chunks: quads, groups: DIGITS },
        }
    }

    pub fn blocks(&self) -> usize {
        self.geometry.groups.div_ceil(self.groups)
    }

    /// Bytes of the codes of one plane in a block.
    pub fn code_bytes(&self) -> usize {
        self.chunks * CHUNK_BYTES
    }

    pub fn block_bytes(&self) -> usize {
        self.geometry.planes * (self.code_bytes() + self.groups * SCALE_BYTES)
    }

    pub fn tile_bytes(&self) -> usize {
        self.blocks() * self.block_bytes()
    }

    /// The place in a padded row, in fours, of code `s` in chunk `c` of a block.
    fn quad(&self, block: usize, c: usize, s: usize) -> usize {
        match self.geometry.group_size {
            0 => DIGITS * c + s,
            _ => (block * DIGITS + s) * self.chunks + c,
        }
    }
}

/// A matrix of five codes a byte.
pub struct TritTiles {
    pub layout: Layout,
    pub bytes: Aligned,
}

impl TritTiles {
    /// Errors, here and of [`expand`](Self::expand): no memory.
    pub fn pack(from: &Tiles, encoding: Encoding, threads: usize) -> Result<Self> {
        let layout = Layout::new(from.geometry, encoding);
        let size = layout.tile_bytes();
        let mut bytes = Aligned::zeroed(from.geometry.tiles * size)?;
        if size > 0 {
            let table = encoding.table();
            pool::rows_mut(bytes.as_mut_slice(), size, size * 4, threads, |tile, out| {
                press(&layout, &table, from.tile(tile), out);
            });
        }
        Ok(TritTiles { layout, bytes })
    }

    pub fn tile(&self, tile: usize) -> &[u8] {
        let size = self.layout.tile_bytes();
        &self.bytes.as_slice()[tile * size..(tile + 1) * size]
    }

    /// The same matrix with four codes a byte.
    pub fn expand(&self, threads: usize) -> Result<Tiles> {
        let geometry = self.layout.geometry;
        let size = geometry.tile_bytes();
        let mut bytes = Aligned::zeroed(geometry.tiles * size)?;
        if size > 0 {
            pool::rows_mut(bytes.as_mut_slice(), size, size * 4, threads, |tile, out| {
                expand_tile(&self.layout, self.tile(tile), out);
            });
        }
        Ok(Tiles { geometry, bytes })
    }
}

/// The place of 64 codes of one quad of inputs in a 2-bit tile: first byte and shift.
#[inline(always)]
fn two_bit_place(g: &Geometry, plane: usize, quad: usize) -> (usize, u32) {
    (g.chunk_at(4 * quad, plane), 2 * (quad % 4) as u32)
}

vectorized! {
    /// A 2-bit tile -> a tile of five codes a byte.
    fn press(layout: &Layout, table: &[u8; 256], tile: &[u8], out: &mut [u8]) = press_inlined;
}

#[inline(always)]
fn press_inlined(layout: &Layout, table: &[u8; 256], tile: &[u8], out: &mut [u8]) {
    let g = &layout.geometry;
    let quads = g.padded_cols() / 4;
    for (block, out) in out.chunks_exact_mut(layout.block_bytes()).enumerate() {
        let (codes, scales) = out.split_at_mut(g.planes * layout.code_bytes());
        for (plane, codes) in codes.chunks_exact_mut(layout.code_bytes().max(1)).enumerate() {
            for (c, chunk) in codes.as_chunks_mut::<CHUNK_BYTES>().0.iter_mut().enumerate() {
                let mut values = [0u8; CHUNK_BYTES];
                for s in 0..DIGITS {
                    let quad = layout.quad(block, c, s);
                    let mut digits = [1u8; CHUNK_BYTES];
                    if quad < quads {
                        let (at, shift) = two_bit_place(g, plane, quad);
                        for (digit, byte) in digits.iter_mut().zip(&tile[at..at + CHUNK_BYTES]) {
                            *digit = (byte >> shift) & 3;
                        }
                    }
                    for (value, digit) in values.iter_mut().zip(digits) {
                        // At most 242 for codes below 3, which were checked.
                        *value = value.wrapping_mul(3).wrapping_add(digit);
                    }
                }
                let pairs = chunk.iter_mut().zip(values);
                match layout.encoding {
                    Encoding::Fraction => pairs.for_each(|(byte, value)| *byte = fraction(value)),
                    Encoding::Table => pairs.for_each(|(byte, value)| *byte = table[value as usize]),
                }
            }
        }
        for (i, scales) in scales.chunks_exact_mut(SCALE_BYTES).enumerate() {
            let (group, plane) = (block * layout.groups + i / g.planes, i % g.planes);
            if group < g.groups {
                let at = g.block_at(group, plane) + g.code_bytes();
                scales.copy_from_slice(&tile[at..at + SCALE_BYTES]);
            }
        }
    }
}

vectorized! {
    /// A tile of five codes a byte -> a 2-bit tile.
    pub fn expand_tile(layout: &Layout, tile: &[u8], out: &mut [u8]) = expand_inlined;
}

#[inline(always)]
fn expand_inlined(layout: &Layout, tile: &[u8], out: &mut [u8]) {
    let g = &layout.geometry;
    // Chunks of the 2-bit tile's block that one of this tile's blocks fills from its start.
    let whole = g.width / 4 / FOUR;
    for (block, from) in tile.chunks_exact(layout.block_bytes()).enumerate() {
        let (codes, scales) = from.split_at(g.planes * layout.code_bytes());
        for (plane, codes) in codes.chunks_exact(layout.code_bytes().max(1)).enumerate() {
            for (part, codes) in codes.chunks(FOUR * CHUNK_BYTES).enumerate() {
                let mut last = [0; FOUR * CHUNK_BYTES];
                let codes = codes.try_into().unwrap_or_else(|_| {
                    last[..codes.len()].copy_from_slice(codes);
                    &last
                });
                let found = in_fours(layout, codes);
                for (s, found) in found.iter().enumerate() {
                    let (group, chunk) = match g.group_size {
                        0 => (0, DIGITS * part + s),
                        _ => (block * DIGITS + s, part),
                    };
                    if group < g.groups && chunk < whole {
                        let at = g.block_at(group, plane) + chunk * CHUNK_BYTES;
                        out[at..at + CHUNK_BYTES].copy_from_slice(found);
                    }
                }
            }
        }
        for (i, scales) in scales.chunks_exact(SCALE_BYTES).enumerate() {
            let (group, plane) = (block * layout.groups + i / g.planes, i % g.planes);
            if group < g.groups {
                let at = g.block_at(group, plane) + g.code_bytes();
                out[at..at + SCALE_BYTES].copy_from_slice(scales);
            }
        }
    }
}

/// Four chunks of five codes as five chunks of four: those of five groups, or of a whole row from left to right.
#[inline(always)]
fn in_fours(layout: &Layout, codes: &[u8; FOUR * CHUNK_BYTES]) -> [[u8; CHUNK_BYTES]; DIGITS] {
    let whole_row = layout.geometry.group_size == 0;
    #[cfg(target_arch = "x86_64")]
    if layout.encoding == Encoding::Table {
        return trits_vbmi::in_fours(codes, whole_row);
    }
    let mut digits = [[[0u8; CHUNK_BYTES]; DIGITS]; FOUR];
    for (digits, chunk) in digits.iter_mut().zip(codes.as_chunks::<CHUNK_BYTES>().0) {
        let mut rest = chunk.map(u16::from);
        for digit in digits {
            for (digit, rest) in digit.iter_mut().zip(&mut rest) {
                let three = *rest * 3;
                *digit = (three >> 8) as u8;
                *rest = three & 0xff;
            }
        }
    }
    std::array::from_fn(|s| {
        let [a, b, c, d]: [&[u8; CHUNK_BYTES]; FOUR] = std::array::from_fn(|i| {
            let (chunk, digit) = fourth(whole_row, s, i);
            &digits[chunk][digit]
        });
        std::array::from_fn(|i| a[i] | b[i] << 2 | c[i] << 4 | d[i] << 6)
    })
}

/// Of four chunks of five codes the chunk and the code in it that is the `i`th of four in the chunk `s` of five.
#[inline(always)]
pub const fn fourth(whole_row: bool, s: usize, i: usize) -> (usize, usize) {
    match whole_row {
        true => ((FOUR * s + i) / DIGITS, (FOUR * s + i) % DIGITS),
        false => (i, s),
    }
}

/// Products of whole tiles with one token, read as `reading` says where a path can; agrees with [`super::matvec`]
/// bit for bit.
pub fn matvec(
    isa: Isa,
    tiles: &[u8],
    layout: &Layout,
    x: &Activations,
    out: &mut [f32],
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))] reading: Reading,
) {
    let g = &layout.geometry;
    assert_eq!(out.len() % TILE, 0);
    assert_eq!(tiles.len(), out.len() / TILE * layout.tile_bytes());
    assert_eq!(x.q.len(), g.padded_cols());
    assert_eq!(x.offsets.len(), g.groups);
    #[cfg(target_arch = "x86_64")]
    if layout.encoding == Encoding::Table && g.planes <= trits_vbmi::PLANES && g.group_size > 0 {
        return trits_vbmi::grouped_tiles(tiles, layout, x, out, reading);
    }
    // Five sums for each plane of a block.
    let mut sums = vec![[[0i32; TILE]; DIGITS]; g.planes];
    for (tile, out) in tiles.chunks_exact(layout.tile_bytes().max(1)).zip(out.chunks_exact_mut(TILE)) {
        let mut totals = [0f32; TILE];
        for (block, from) in tile.chunks_exact(layout.block_bytes()).enumerate() {
            let (codes, scales) = from.split_at(g.planes * layout.code_bytes());
            for (sums, codes) in sums.iter_mut().zip(codes.chunks_exact(layout.code_bytes().max(1))) {
                block_sums(isa, layout, block, codes, &x.q, sums);
            }
            add_block(layout, block, &sums, scales, &x.offsets, &mut totals);
        }
        for (out, total) in out.iter_mut().zip(totals) {
            *out = total * x.scale;
        }
    }
}

vectorized! {
    fn add_block(
        layout: &Layout,
        block: usize,
        sums: &[[[i32; TILE]; DIGITS]],
        scales: &[u8],
        offsets: &[i32],
        totals: &mut [f32; TILE],
    ) = add_block_inlined;
}

#[inline(always)]
fn add_block_inlined(
    layout: &Layout,
    block: usize,
    sums: &[[[i32; TILE]; DIGITS]],
    scales: &[u8],
    offsets: &[i32],
    totals: &mut [f32; TILE],
) {
    let g = &layout.geometry;
    for (i, scales) in scales.chunks_exact(SCALE_BYTES).enumerate() {
        let (digit, plane) = (i / g.planes, i % g.planes);
        let group = block * layout.groups + digit;
        if group >= g.groups {
            return;
        }
        let mut exact = sums[plane][digit];
        if layout.groups == 1 {
            for other in &sums[plane][1..] {
                exact.iter_mut().zip(other).for_each(|(a, b)| *a += b);
            }
        }
        let scales = block_scales(scales);
        for lane in 0..TILE {
            totals[lane] = ((exact[lane] + offsets[group]) as f32).mul_add(scales[lane], totals[lane]);
        }
    }
}

/// Sums of codes times activations for each of the five codes.
fn block_sums(
    isa: Isa,
    layout: &Layout,
    block: usize,
    codes: &[u8],
    q: &[i8],
    sums: &mut [[i32; TILE]; DIGITS],
) {
    // Inputs of chunk c, code s are at first + c * by_chunk + s * by_code.
    let first = layout.quad(block, 0, 0) * 4;
    let (by_chunk, by_code) = match layout.geometry.group_size {
        0 => (4 * DIGITS, 4),
        _ => (4, 4 * layout.chunks),
    };
    // What lies beyond the row is padding, which contributes nothing.
    let whole = match layout.geometry.group_size {
        0 => q.len() / by_chunk,
        _ => layout.chunks,
    };
    let present = match layout.geometry.group_size {
        0 => DIGITS,
        _ => (layout.geometry.groups - block * DIGITS).min(DIGITS),
    };
    let (body, tail) = codes.split_at(whole * CHUNK_BYTES);
    for sums in sums.iter_mut() {
        *sums = [0; TILE];
    }
    let part = Part { q: &q[first..], by_chunk, by_code, present };
    add_sums(isa, layout.encoding, body, &part, sums);
    if !tail.is_empty() {
        let mut last = [0i8; 4 * DIGITS];
        let rest = &q[whole * by_chunk..];
        last[..rest.len()].copy_from_slice(rest);
        let part = Part { q: &last, by_chunk, by_code, present };
        add_sums(isa, layout.encoding, tail, &part, sums);
    }
}

fn add_sums(isa: Isa, encoding: Encoding, codes: &[u8], part: &Part<'_>, sums: &mut [[i32; TILE]; DIGITS]) {
    match (encoding, isa) {
        #[cfg(target_arch = "x86_64")]
        (Encoding::Table, _) => trits_vbmi::sums(codes, part, sums),
        #[cfg(target_arch = "x86_64")]
        (_, Isa::Amx | Isa::Avx512Gfni | Isa::Avx512Vnni) => super::trits_avx512::sums(codes, part, sums),
        #[cfg(target_arch = "x86_64")]
        (_, Isa::AvxVnni) => super::trits_avx2::sums::<Vnni>(codes, part, sums),
        #[cfg(target_arch = "x86_64")]
        (_, Isa::Avx2) => super::trits_avx2::sums::<Maddubs>(codes, part, sums),
        _ => portable(codes, part, sums),
    }
}

/// Activations of a block.
pub struct Part<'a> {
    pub q: &'a [i8],
    pub by_chunk: usize,
    pub by_code: usize,
    /// How many of the five codes belong to groups of the matrix.
    pub present: usize,
}

#[cfg(target_arch = "x86_64")]
impl Part<'_> {
    /// The chunks of `codes`. Panics unless the activations of all of them can be read.
    pub fn chunks_of(&self, codes: &[u8]) -> usize {
        let chunks = codes.len() / CHUNK_BYTES;
        assert!((1..=DIGITS).contains(&self.present));
        let last = chunks.saturating_sub(1) * self.by_chunk + (self.present - 1) * self.by_code;
        assert!(chunks == 0 || self.q.len() >= last + 4);
        chunks
    }
}

vectorized! {
    fn portable(codes: &[u8], part: &Part<'_>, sums: &mut [[i32; TILE]; DIGITS]) = portable_inlined;
}

#[inline(always)]
fn portable_inlined(codes: &[u8], part: &Part<'_>, sums: &mut [[i32; TILE]; DIGITS]) {
    // 16 chunks add at most 16 * 2 * 127 to a 16-bit lane.
    for (some, codes) in codes.chunks(16 * CHUNK_BYTES).enumerate() {
        let mut short = [[0i16; CHUNK_BYTES]; DIGITS];
        for (c, chunk) in codes.chunks_exact(CHUNK_BYTES).enumerate() {
            let mut rest = [0u16; CHUNK_BYTES];
            rest.iter_mut().zip(chunk).for_each(|(r, &b)| *r = b as u16);
            for (s, short) in short.iter_mut().enumerate().take(part.present) {
                let q = &part.q[(16 * some + c) * part.by_chunk + s * part.by_code..][..4];
                let mut repeated = [0i16; TILE];
                for (i, r) in repeated.iter_mut().enumerate() {
                    *r = q[i % 4] as i16;
                }
                for (short, rest) in short.chunks_exact_mut(TILE).zip(rest.chunks_exact_mut(TILE)) {
                    for lane in 0..TILE {
                        let three = rest[lane] * 3;
                        short[lane] += (three >> 8) as i16 * repeated[lane];
                        rest[lane] = three & 0xff;
                    }
                }
            }
        }
        for (sums, short) in sums.iter_mut().zip(&short) {
            for (sum, four) in sums.iter_mut().zip(short.chunks_exact(4)) {
                *sum += four.iter().map(|&v| v as i32).sum::<i32>();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_codes_come_out_of_a_byte_as_they_went_in() {
        for v in 0u32..243 {
            let mut q = (v * 256).div_ceil(243);
            assert_eq!(u32::from(fraction(v as u8)), q);
            let mut back = 0;
            for _ in 0..DIGITS {
                // The averages of the AVX-512 path say the same as the product with 3.
                let average = |a: u32, b: u32| (a + b + 1) >> 1;
                let less = q.saturating_sub(1);
                assert_eq!(average(less, average(less, 0)) >> 6, (3 * q) >> 8, "{v}");
                back = back * 3 + ((3 * q) >> 8);
                q = (3 * q) & 0xff;
            }
            assert_eq!(back, v);
        }
    }
}
