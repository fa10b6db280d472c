//! Between rows of codes as files have them and chunks of the kernels' tiles: 16 rows of 16 bytes are 4 chunks.
//!
//! Two transposes: of the 4-byte words among rows, and of the codes in each word.

#[cfg(target_arch = "x86_64")]
use super::vectorize::{level, Level};
use crate::tiles::{CHUNK_BYTES, TILE};

/// Chunks that are laid at once.
pub const CHUNKS: usize = 4;

/// Bytes of a row that go to as many chunks.
pub const ROW: usize = 4 * CHUNKS;

/// The 4x4 transpose of 2-bit codes: in the canonical word input 4b + s is at bits 8b + 2s, in the tile's lane
/// input 4s + b is; so bits (b, s) and (s, b) change places. Doing it again turns it back.
#[inline(always)]
pub fn transpose(word: u32) -> u32 {
    let swap = |x: u32, mask: u32, shift: u32| {
        let t = (x ^ (x >> shift)) & mask;
        x ^ t ^ (t << shift)
    };
    swap(swap(word, MASKS[0], 6), MASKS[1], 12)
}

/// Which bits of a word change places with those 6, then with those 12 above.
const MASKS: [u32; 2] = [0x00cc_00cc, 0x0000_f0f0];

/// Rows -> chunks: of 16 rows, `stride` bytes apart in `rows`, the bytes from `at` on.
#[inline(always)]
pub fn chunks_of_rows(rows: &[u8], stride: usize, at: usize, chunks: [&mut [u8; CHUNK_BYTES]; CHUNKS]) {
    assert!(at + ROW <= stride && rows.len() == TILE * stride, "16 whole rows");
    #[cfg(target_arch = "x86_64")]
    if level() >= Level::Avx2 {
        // SAFETY: the level says that AVX2 was detected; the bytes were just looked for.
        return unsafe { avx2::chunks_of_rows(rows, stride, at, chunks) };
    }
    for (i, chunk) in chunks.into_iter().enumerate() {
        for (word, row) in chunk.as_chunks_mut::<4>().0.iter_mut().zip(rows.chunks_exact(stride)) {
            let four = row[at + 4 * i..].first_chunk().expect("a word of the row");
            *word = transpose(u32::from_le_bytes(*four)).to_le_bytes();
        }
    }
}

/// Chunks -> rows, which are as in [`chunks_of_rows`].
#[inline(always)]
pub fn rows_of_chunks(chunks: [&[u8; CHUNK_BYTES]; CHUNKS], rows: &mut [u8], stride: usize, at: usize) {
    assert!(at + ROW <= stride && rows.len() == TILE * stride, "16 whole rows");
    #[cfg(target_arch = "x86_64")]
    if level() >= Level::Avx2 {
        // SAFETY: the level says that AVX2 was detected; the bytes were just looked for.
        return unsafe { avx2::rows_of_chunks(chunks, rows, stride, at) };
    }
    for (lane, row) in rows.chunks_exact_mut(stride).enumerate() {
        for (word, chunk) in row[at..at + ROW].as_chunks_mut::<4>().0.iter_mut().zip(chunks) {
            *word = transpose(u32::from_le_bytes(chunk.as_chunks::<4>().0[lane])).to_le_bytes();
        }
    }
}

/// Rows and columns of scales that change places at once.
pub const SCALES: usize = 8;

/// The 8x8 transpose.
#[inline(always)]
pub fn transpose_scales(rows: [[u16; SCALES]; SCALES]) -> [[u16; SCALES]; SCALES] {
    // Each round makes rows 2i and 2i + 1 of row i and the one four below, an element of each in turns: three of
    // them turn the three bits of row and column about.
    let mut rows = rows;
    for _ in 0..3 {
        let from = rows;
        for (pair, two) in rows.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *two = interleaved(from[pair], from[pair + 4]);
        }
    }
    rows
}

/// Elements of both in turns.
#[inline(always)]
fn interleaved(a: [u16; SCALES], b: [u16; SCALES]) -> [[u16; SCALES]; 2] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_unpackhi_epi16, _mm_unpacklo_epi16};
        // SAFETY: as many bytes of which all patterns are values; SSE2 is part of the architecture.
        unsafe {
            let [a, b]: [__m128i; 2] = std::mem::transmute([a, b]);
            std::mem::transmute([_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b)])
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|half| {
        std::array::from_fn(|i| if i % 2 == 0 { a[4 * half + i / 2] } else { b[4 * half + i / 2] })
    })
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;
    use std::arch::x86_64::*;

    /// The 4x4 transpose of words in each half.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn words([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (high_ab, high_cd) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(high_ab, high_cd),
            _mm256_unpackhi_epi64(high_ab, high_cd),
        ]
    }

    /// [`super::transpose`] of eight words.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn codes(x: __m256i) -> __m256i {
        let mask = |i: usize| _mm256_set1_epi32(MASKS[i] as i32);
        let t = _mm256_and_si256(_mm256_xor_si256(x, _mm256_srli_epi32::<6>(x)), mask(0));
        let x = _mm256_xor_si256(_mm256_xor_si256(x, t), _mm256_slli_epi32::<6>(t));
        let t = _mm256_and_si256(_mm256_xor_si256(x, _mm256_srli_epi32::<12>(x)), mask(1));
        _mm256_xor_si256(_mm256_xor_si256(x, t), _mm256_slli_epi32::<12>(t))
    }

    /// # Safety
    /// `rows` has 16 bytes from `at` on in each of 16 rows.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub unsafe fn chunks_of_rows(
        rows: &[u8],
        stride: usize,
        at: usize,
        chunks: [&mut [u8; CHUNK_BYTES]; CHUNKS],
    ) {
        for half in 0..2 {
            let eight = std::array::from_fn(|i| {
                // SAFETY: as asked of the caller.
                unsafe {
                    let low = rows.as_ptr().add((8 * half + i) * stride + at);
                    _mm256_loadu2_m128i(low.add(4 * stride).cast(), low.cast())
                }
            });
            for (i, eight) in words(eight).into_iter().enumerate() {
                // SAFETY: 32 of the chunk's 64 bytes.
                unsafe { _mm256_storeu_si256(chunks[i].as_mut_ptr().add(32 * half).cast(), codes(eight)) };
            }
        }
    }

    /// # Safety
    /// As for [`chunks_of_rows`].
    #[target_feature(enable = "avx2")]
    #[inline]
    pub unsafe fn rows_of_chunks(
        chunks: [&[u8; CHUNK_BYTES]; CHUNKS],
        rows: &mut [u8],
        stride: usize,
        at: usize,
    ) {
        for half in 0..2 {
            let eight = std::array::from_fn(|i| {
                // SAFETY: 32 of the chunk's 64 bytes.
                codes(unsafe { _mm256_loadu_si256(chunks[i].as_ptr().add(32 * half).cast()) })
            });
            for (i, eight) in words(eight).into_iter().enumerate() {
                // SAFETY: as asked of the caller.
                unsafe {
                    let low = rows.as_mut_ptr().add((8 * half + i) * stride + at);
                    _mm256_storeu2_m128i(low.add(4 * stride).cast(), low.cast(), eight);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes_scales() {
        let rows = std::array::from_fn(|i| std::array::from_fn(|j| (8 * i + j) as u16));
        let columns = std::array::from_fn(|i| std::array::from_fn(|j| (8 * j + i) as u16));
        assert_eq!(transpose_scales(rows), columns);
    }

    #[test]
    fn transposes_codes() {
        for b in 0..4 {
            for s in 0..4 {
                assert_eq!(transpose(3 << (8 * b + 2 * s)), 3 << (8 * s + 2 * b));
            }
        }
    }
}
