//! Five codes a byte with AVX-512, VNNI and VBMI: bytes as [`Encoding::Table`](super::trits::Encoding) makes them,
//! so that one lookup in a register gives four codes where the masks of the 2-bit format find them, and the fifth
//! is in the top bits. 14 instructions for five codes of 64 bytes, where the 2-bit format takes 8 for four.

use std::arch::x86_64::*;

use super::trits::{fourth, Layout, Part, DIGITS, FOUR};
use super::{Activations, Reading};
use crate::tiles::{CHUNK_BYTES, SCALE_BYTES, TILE};

/// Chunks after which sums are folded: each adds at most 4 * 128 * 127 to a lane.
const FOLD: usize = 16_384;

/// Bytes from here on stand for what does not fit into two and six bits.
const ESCAPE: u8 = 0xc0;

/// Codes 1 to 4 of which the low six bits of a byte below [`ESCAPE`] tell.
const DIRECT: usize = 64;

/// Such of the 81 as must be told together with code 0.
const REST: usize = 81 - DIRECT;

pub fn available() -> bool {
    super::Isa::Avx512Vnni.available() && is_x86_feature_detected!("avx512vbmi")
}

/// The byte for code_0 * 81 + code_1 * 27 + ... + code_4.
pub const fn encode(value: usize) -> u8 {
    let (first, rest) = (value / 81, value % 81);
    match rest < DIRECT {
        true => (first * DIRECT + rest) as u8,
        false => ESCAPE + (first * REST + rest - DIRECT) as u8,
    }
}

/// Codes 1 to 4 (a number below 81) as two bits each, the first lowest.
const fn in_bits(rest: usize) -> u8 {
    ((rest / 27) | ((rest / 9 % 3) << 2) | ((rest / 3 % 3) << 4) | ((rest % 3) << 6)) as u8
}

/// Codes 1 to 4 by the low six bits, below [`ESCAPE`] and from there on, and code 0 times 64 from there on.
static TABLES: [[u8; 64]; 3] = {
    let mut tables = [[0; 64]; 3];
    let mut i = 0;
    while i < 64 {
        tables[0][i] = in_bits(i);
        tables[1][i] = in_bits(DIRECT + i % REST);
        tables[2][i] = (i / REST * 64) as u8;
        i += 1;
    }
    tables
};

#[inline]
#[target_feature(enable = "avx512f")]
fn tables() -> [__m512i; 3] {
    // SAFETY: a table is 64 bytes.
    TABLES.each_ref().map(|table| unsafe { _mm512_loadu_si512(table.as_ptr().cast()) })
}

/// Code 0 times 64 in each byte, and codes 1 to 4 in two bits each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up(bytes: __m512i, [direct, others, firsts]: &[__m512i; 3]) -> (__m512i, __m512i) {
    let escape = _mm512_cmpge_epu8_mask(bytes, _mm512_set1_epi8(ESCAPE as i8));
    let four = _mm512_permutexvar_epi8(bytes, *direct);
    let four = _mm512_mask_permutexvar_epi8(four, escape, bytes, *others);
    let first = _mm512_and_si512(bytes, _mm512_set1_epi8(ESCAPE as i8));
    (_mm512_mask_permutexvar_epi8(first, escape, bytes, *firsts), four)
}

/// Factors that the sums of the five codes carry, as shifts.
const SHIFTS: [u32; DIGITS] = [6, 0, 2, 4, 6];

/// Exact sums of at most [`FOLD`] chunks of each tile for the first `N` codes.
///
/// # Safety
/// VBMI and VNNI; `chunks` chunks can be read at each `p`, and the part's activations for as many.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
unsafe fn some_chunks<const S: usize, const N: usize>(
    p: [*const u8; S],
    chunks: usize,
    q: *const i8,
    (by_chunk, by_code): (usize, usize),
    tables: &[__m512i; 3],
    ahead: usize,
) -> [[__m512i; N]; S] {
    let masks = [0u8, 0x03, 0x0c, 0x30, 0xc0].map(|mask| _mm512_set1_epi8(mask as i8));
    let mut sums = [[_mm512_setzero_si512(); N]; S];
    for c in 0..chunks {
        // SAFETY: c is below the number of chunks, s below the codes that are present; asking for a line beyond
        // the tiles is harmless.
        unsafe {
            let looked_up = p.map(|p| {
                let p = p.add(c * CHUNK_BYTES);
                _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(ahead).cast());
                look_up(_mm512_loadu_si512(p.cast()), tables)
            });
            for s in 0..N {
                let x = q.add(c * by_chunk + s * by_code).cast::<i32>().read_unaligned();
                let x = _mm512_set1_epi32(x);
                for (sums, (first, four)) in sums.iter_mut().zip(looked_up) {
                    let codes = if s == 0 { first } else { _mm512_and_si512(four, masks[s]) };
                    sums[s] = _mm512_dpbusd_epi32(sums[s], codes, x);
                }
            }
        }
    }
    for sums in &mut sums {
        for (sum, shift) in sums.iter_mut().zip(SHIFTS) {
            *sum = _mm512_sra_epi32(*sum, _mm_cvtsi32_si128(shift as i32));
        }
    }
    sums
}

/// Add the sums of the chunks in `codes`.
pub fn sums(codes: &[u8], part: &Part<'_>, sums: &mut [[i32; TILE]; DIGITS]) {
    let chunks = part.chunks_of(codes);
    assert!(available());
    for first in (0..chunks).step_by(FOLD) {
        let (count, q) = ((chunks - first).min(FOLD), &part.q[first * part.by_chunk..]);
        let p = &codes[first * CHUNK_BYTES..];
        // SAFETY: the CPU and the activations of all chunks were checked.
        unsafe {
            match part.present {
                5 => add::<5>(p, count, q, part, sums),
                4 => add::<4>(p, count, q, part, sums),
                3 => add::<3>(p, count, q, part, sums),
                2 => add::<2>(p, count, q, part, sums),
                _ => add::<1>(p, count, q, part, sums),
            }
        }
    }
}

/// # Safety
/// As [`some_chunks`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
unsafe fn add<const N: usize>(
    p: &[u8],
    chunks: usize,
    q: &[i8],
    part: &Part<'_>,
    sums: &mut [[i32; TILE]; DIGITS],
) {
    // SAFETY: the caller's promise; 16 lanes of 32 bits are stored.
    unsafe {
        let by = (part.by_chunk, part.by_code);
        let [found] = some_chunks::<1, N>([p.as_ptr()], chunks, q.as_ptr(), by, &tables(), 0);
        for (sums, found) in sums.iter_mut().zip(found) {
            let at = sums.as_mut_ptr().cast();
            _mm512_storeu_si512(at, _mm512_add_epi32(_mm512_loadu_si512(at.cast_const()), found));
        }
    }
}

/// Planes that [`grouped_tiles`] takes at most.
pub const PLANES: usize = 3;

/// Tiles in groups (not whole rows) with one token, `reading.streams` far-apart ones side by side. The
/// sums of four and the tables do not fit the registers, but from memory four are faster.
pub fn grouped_tiles(tiles: &[u8], layout: &Layout, x: &Activations, out: &mut [f32], reading: Reading) {
    let (g, size, count) = (&layout.geometry, layout.tile_bytes(), out.len() / TILE);
    assert!((1..=PLANES).contains(&g.planes) && g.group_size > 0 && available());
    assert!(tiles.len() >= count * size && out.len() == count * TILE);
    assert!(x.q.len() >= g.padded_cols() && x.offsets.len() >= g.groups);
    let grouped = Grouped { layout, x, ahead: reading.ahead };
    let (p, y) = (tiles.as_ptr(), out.as_mut_ptr());
    // SAFETY: the CPU was checked; every tile is below `count`, and the lengths above cover the tiles, the token's
    // activations and 16 floats a tile.
    reading.walk(count, |at| unsafe {
        let tile = |i: usize| p.add(at[i] * size);
        let to = |i: usize| y.add(at[i] * TILE);
        macro_rules! of_planes {
            ($P:literal) => {
                match at.len() {
                    4 => grouped.tiles::<4, $P>(std::array::from_fn(tile), std::array::from_fn(to)),
                    2 => grouped.tiles::<2, $P>(std::array::from_fn(tile), std::array::from_fn(to)),
                    _ => grouped.tiles::<1, $P>([tile(0)], [to(0)]),
                }
            };
        }
        match g.planes {
            1 => of_planes!(1),
            2 => of_planes!(2),
            _ => of_planes!(3),
        }
    });
}

/// One token times tiles in groups.
struct Grouped<'a> {
    layout: &'a Layout,
    x: &'a Activations,
    /// Bytes between what is read and what is asked for.
    ahead: usize,
}

impl Grouped<'_> {
    /// # Safety
    /// AVX-512 with VNNI and VBMI; a tile at each `p`, 16 floats at each `y`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
    unsafe fn tiles<const S: usize, const P: usize>(&self, p: [*const u8; S], y: [*mut f32; S]) {
        let groups = self.layout.geometry.groups;
        let tables = tables();
        let mut totals = [_mm512_setzero_ps(); S];
        // SAFETY: blocks of the tiles, each with the groups from `first` on.
        unsafe {
            for first in (0..groups).step_by(DIGITS) {
                let p = p.map(|p| p.add(first / DIGITS * self.layout.block_bytes()));
                match groups - first {
                    1 => self.block::<S, 1, P>(&mut totals, p, first, &tables),
                    2 => self.block::<S, 2, P>(&mut totals, p, first, &tables),
                    3 => self.block::<S, 3, P>(&mut totals, p, first, &tables),
                    4 => self.block::<S, 4, P>(&mut totals, p, first, &tables),
                    _ => self.block::<S, 5, P>(&mut totals, p, first, &tables),
                }
            }
            for (total, y) in totals.into_iter().zip(y) {
                _mm512_storeu_ps(y, _mm512_mul_ps(total, _mm512_set1_ps(self.x.scale)));
            }
        }
    }

    /// Add a block of `N` groups from `first` on.
    ///
    /// # Safety
    /// See [`Grouped::tiles`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
    unsafe fn block<const S: usize, const N: usize, const P: usize>(
        &self,
        totals: &mut [__m512; S],
        p: [*const u8; S],
        first: usize,
        tables: &[__m512i; 3],
    ) {
        let (layout, x) = (self.layout, self.x);
        // SAFETY: the caller's promise; scales follow the block's codes.
        unsafe {
            let q = x.q.as_ptr().add(first * layout.geometry.width);
            let by = (4, layout.geometry.width);
            let found: [_; P] = std::array::from_fn(|plane| {
                let p = p.map(|p| p.add(plane * layout.code_bytes()));
                some_chunks::<S, N>(p, layout.chunks, q, by, tables, self.ahead)
            });
            for (i, (total, p)) in totals.iter_mut().zip(p).enumerate() {
                for s in 0..N {
                    let offset = _mm512_set1_epi32(*x.offsets.as_ptr().add(first + s));
                    for (plane, found) in found.iter().enumerate() {
                        let scales = p.add(P * layout.code_bytes() + (s * P + plane) * SCALE_BYTES);
                        let scales = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
                        let exact = _mm512_add_epi32(found[i][s], offset);
                        *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scales, *total);
                    }
                }
            }
        }
    }
}

/// Four chunks of five codes as five chunks of four; see the portable loop in [`super::trits`].
pub fn in_fours(codes: &[u8; FOUR * CHUNK_BYTES], whole_row: bool) -> [[u8; CHUNK_BYTES]; DIGITS] {
    assert!(available());
    // SAFETY: the CPU was just checked.
    unsafe {
        match whole_row {
            true => in_fours_of::<true>(codes),
            false => in_fours_of::<false>(codes),
        }
    }
}

/// # Safety
/// VBMI.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn in_fours_of<const WHOLE_ROW: bool>(
    codes: &[u8; FOUR * CHUNK_BYTES],
) -> [[u8; CHUNK_BYTES]; DIGITS] {
    let (tables, three) = (tables(), _mm512_set1_epi8(3));
    let mut digits = [[_mm512_setzero_si512(); DIGITS]; FOUR];
    for (digits, chunk) in digits.iter_mut().zip(codes.as_chunks::<CHUNK_BYTES>().0) {
        // SAFETY: a chunk is 64 bytes.
        let (first, four) = look_up(unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) }, &tables);
        *digits = [
            _mm512_and_si512(_mm512_srli_epi16::<6>(first), three),
            _mm512_and_si512(four, three),
            _mm512_and_si512(_mm512_srli_epi16::<2>(four), three),
            _mm512_and_si512(_mm512_srli_epi16::<4>(four), three),
            _mm512_and_si512(_mm512_srli_epi16::<6>(four), three),
        ];
    }
    let mut out = [[0; CHUNK_BYTES]; DIGITS];
    for (s, out) in out.iter_mut().enumerate() {
        let [a, b, c, d] = std::array::from_fn(|i| {
            let (chunk, digit) = fourth(WHOLE_ROW, s, i);
            digits[chunk][digit]
        });
        let low = _mm512_or_si512(a, _mm512_slli_epi16::<2>(b));
        let high = _mm512_or_si512(_mm512_slli_epi16::<4>(c), _mm512_slli_epi16::<6>(d));
        // SAFETY: 64 bytes are written.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_or_si512(low, high)) };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_byte_of_its_own_that_the_tables_turn_back() {
        for value in 0..243usize {
            let byte = encode(value) as usize;
            let escaped = byte >= ESCAPE as usize;
            let first = if escaped { TABLES[2][byte % 64] as usize / 64 } else { byte / 64 };
            let four = TABLES[escaped as usize][byte % 64] as usize;
            let codes = [first, four & 3, four >> 2 & 3, four >> 4 & 3, four >> 6];
            assert_eq!(codes.iter().fold(0, |value, code| value * 3 + code), value);
        }
    }
}
