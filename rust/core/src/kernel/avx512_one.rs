//! AVX-512 for one token: one or more tiles, each its own stream of memory, that share the broadcasts of the
//! activations, and lines asked for ahead of their use.

use std::arch::x86_64::*;

use super::avx512::{fold, in_order, FOLD};
use super::reading::Reading;
use super::unpack512::Unpack;
use super::Activations;
use crate::tiles::{Geometry, CHUNK, CHUNK_BYTES, TILE};

/// All tiles, `reading.streams` far-apart ones side by side and the rest one by one.
pub fn matvec<U: Unpack>(
    tiles: &[u8],
    geometry: &Geometry,
    x: &Activations,
    out: &mut [f32],
    reading: Reading,
) {
    let (count, size) = (out.len() / TILE, geometry.tile_bytes());
    assert!(tiles.len() >= count * size);
    assert!(x.q.len() >= geometry.padded_cols() && x.offsets.len() >= geometry.groups);
    assert!(U::available());
    let one = One { geometry, x, ahead: reading.ahead };
    let (p, y) = (tiles.as_ptr(), out.as_mut_ptr());
    // SAFETY: dispatch checked the CPU; every tile is below `count`, and the lengths above cover the tiles, the
    // token's activations and 16 floats a tile.
    reading.walk(count, |at| unsafe {
        let tile = |i: usize| p.add(at[i] * size);
        let to = |i: usize| y.add(at[i] * TILE);
        match at.len() {
            4 => one.tiles::<U, 4>(std::array::from_fn(tile), std::array::from_fn(to)),
            2 => one.tiles::<U, 2>(std::array::from_fn(tile), std::array::from_fn(to)),
            _ => one.tiles::<U, 1>([tile(0)], [to(0)]),
        }
    });
}

/// One token times some tiles.
struct One<'a> {
    geometry: &'a Geometry,
    x: &'a Activations,
    /// Bytes between what is read and what is asked for.
    ahead: usize,
}

/// Sums of a block: the four places of a code in its byte take `K` of them in turn (all where codes are shifted).
type Sums = [__m512i; 4];

impl One<'_> {
    /// # Safety
    /// See [`matvec`]: a tile at each `p`, 16 floats at each `y`.
    unsafe fn tiles<U: Unpack, const S: usize>(&self, p: [*const u8; S], y: [*mut f32; S]) {
        // SAFETY: the caller's promise.
        unsafe {
            // Measured on Sapphire Rapids: enough sums that no product waits for another, few enough to fold.
            match self.geometry.width / CHUNK {
                2 if self.geometry.planes == 1 && U::SHIFTED => self.short::<U, 2, S, 1, 4>(p, y),
                2 if self.geometry.planes == 1 && S == 4 => self.short::<U, 2, S, 2, 1>(p, y),
                2 if self.geometry.planes == 1 => self.short::<U, 2, S, 4, 1>(p, y),
                4 if self.geometry.planes == 1 && U::SHIFTED => self.short::<U, 4, S, 1, 4>(p, y),
                4 if self.geometry.planes == 1 && S == 4 => self.short::<U, 4, S, 2, 1>(p, y),
                4 if self.geometry.planes == 1 && S == 2 => self.short::<U, 4, S, 4, 1>(p, y),
                4 if self.geometry.planes == 1 => self.short::<U, 4, S, 2, 2>(p, y),
                8 if self.geometry.planes == 1 => self.short::<U, 8, S, 1, 4>(p, y),
                2 => self.any::<U, 2, S, 1>(p, y),
                _ if S == 1 => self.any::<U, 4, S, 2>(p, y),
                _ => self.any::<U, 4, S, 1>(p, y),
            }
        }
    }

    /// One plane with groups of `CHUNKS` chunks, `G` of them side by side.
    ///
    /// # Safety
    /// See [`One::tiles`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn short<U: Unpack, const CHUNKS: usize, const S: usize, const G: usize, const K: usize>(
        &self,
        p: [*const u8; S],
        y: [*mut f32; S],
    ) {
        let groups = self.geometry.groups;
        let mut totals = [_mm512_setzero_ps(); S];
        let mut group = 0;
        // SAFETY: groups stay below those of the geometry, whose blocks lie one after the other.
        unsafe {
            let constants = U::constants();
            while group + G <= groups {
                self.side_by_side::<U, CHUNKS, S, G, K>(&mut totals, &constants, p, group);
                group += G;
            }
            while group < groups {
                self.side_by_side::<U, CHUNKS, S, 1, 4>(&mut totals, &constants, p, group);
                group += 1;
            }
            self.store(totals, y);
        }
    }

    /// # Safety
    /// See [`One::tiles`]; there are `G` groups from `group` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn side_by_side<U: Unpack, const CHUNKS: usize, const S: usize, const G: usize, const K: usize>(
        &self,
        totals: &mut [__m512; S],
        constants: &[__m512i; 4],
        p: [*const u8; S],
        group: usize,
    ) {
        let block = CHUNKS * CHUNK_BYTES + 2 * TILE;
        let mut sums: [[Sums; S]; G] = [[[_mm512_setzero_si512(); 4]; S]; G];
        // SAFETY: the caller's promise.
        unsafe {
            let p = p.map(|p| p.add(group * block));
            let q = self.x.q.as_ptr().add(group * CHUNKS * CHUNK);
            for (g, sums) in sums.iter_mut().enumerate() {
                let offset = _mm512_set1_epi32(*self.x.offsets.as_ptr().add(group + g));
                for sums in sums {
                    sums[0] = offset;
                }
            }
            for k in 0..CHUNKS {
                for (g, sums) in sums.iter_mut().enumerate() {
                    let at = g * block + k * CHUNK_BYTES;
                    self.add_chunk::<U, S, K>(
                        sums,
                        constants,
                        p.map(|p| p.add(at)),
                        q.add((g * CHUNKS + k) * CHUNK),
                    );
                }
            }
            for (g, sums) in sums.iter().enumerate() {
                for (s, sums) in sums.iter().enumerate() {
                    add_scaled(
                        &mut totals[s],
                        fold::<U, K>(sums),
                        p[s].add(g * block + CHUNKS * CHUNK_BYTES),
                    );
                }
            }
        }
    }

    /// Any planes and groups of any length, `PER` chunks at a time; `SETS` sets of sums take chunks in turn.
    ///
    /// # Safety
    /// See [`One::tiles`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn any<U: Unpack, const PER: usize, const S: usize, const SETS: usize>(
        &self,
        mut p: [*const u8; S],
        y: [*mut f32; S],
    ) {
        let chunks = self.geometry.width / CHUNK;
        let mut totals = [_mm512_setzero_ps(); S];
        // SAFETY: each p walks over its tile; groups and chunks stay below the geometry's.
        unsafe {
            let constants = U::constants();
            for group in 0..self.geometry.groups {
                for _ in 0..self.geometry.planes {
                    let mut q = self.x.q.as_ptr().add(group * chunks * CHUNK);
                    let mut exact = [_mm512_set1_epi32(*self.x.offsets.as_ptr().add(group)); S];
                    let mut k = 0;
                    while k < chunks {
                        let end = (k + FOLD).min(chunks);
                        let mut sums: [[Sums; S]; SETS] = [[[_mm512_setzero_si512(); 4]; S]; SETS];
                        while k < end {
                            // FOLD and chunks are multiples of PER.
                            for i in 0..PER {
                                let sums = &mut sums[i % SETS];
                                self.add_chunk::<U, S, 4>(sums, &constants, p, q);
                                p = p.map(|p| p.add(CHUNK_BYTES));
                                q = q.add(CHUNK);
                            }
                            k += PER;
                        }
                        for sums in &sums {
                            for (exact, sums) in exact.iter_mut().zip(sums) {
                                *exact = _mm512_add_epi32(*exact, fold::<U, 4>(sums));
                            }
                        }
                    }
                    for ((total, exact), p) in totals.iter_mut().zip(exact).zip(&mut p) {
                        add_scaled(total, exact, *p);
                        *p = p.add(2 * TILE);
                    }
                }
            }
            self.store(totals, y);
        }
    }

    /// Add a chunk of each tile: 64 bytes of codes at each `p`, 16 activations at `q`.
    ///
    /// # Safety
    /// AVX-512 BW and VNNI; the bytes can be read.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn add_chunk<U: Unpack, const S: usize, const K: usize>(
        &self,
        sums: &mut [Sums; S],
        constants: &[__m512i; 4],
        p: [*const u8; S],
        q: *const i8,
    ) {
        // SAFETY: the caller's promise; asking for a line beyond the tiles is harmless.
        unsafe {
            let w = p.map(|p| {
                _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(self.ahead).cast());
                _mm512_loadu_si512(p.cast())
            });
            for i in 0..4 {
                let x = _mm512_set1_epi32(q.cast::<i32>().add(i).read_unaligned());
                for (sums, w) in sums.iter_mut().zip(w) {
                    let at = if U::SHIFTED { i } else { i % K };
                    sums[at] = _mm512_dpbusd_epi32(sums[at], U::codes(w, constants[i]), x);
                    in_order(&mut sums[at..at + 1]);
                }
            }
        }
    }

    /// # Safety
    /// 16 floats at each `y`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store<const S: usize>(&self, totals: [__m512; S], y: [*mut f32; S]) {
        let scale = _mm512_set1_ps(self.x.scale);
        for (total, y) in totals.into_iter().zip(y) {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(y, _mm512_mul_ps(total, scale)) };
        }
    }
}

/// Add exact sums times the 16 scales at `p`.
///
/// # Safety
/// 32 bytes at `p`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn add_scaled(total: &mut __m512, exact: __m512i, p: *const u8) {
    // SAFETY: the caller's promise.
    let scales = unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) };
    *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scales, *total);
}
