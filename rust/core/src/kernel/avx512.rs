//! AVX-512 with VNNI: one load gives four vectors of 64 codes ([`Unpack`]), each multiplied by one `vpdpbusd`
//! with activations broadcast from memory. The 16 lanes are 16 rows, so that a group's scales cost one fused
//! multiply-add.

use std::arch::asm;
use std::arch::x86_64::*;

use super::avx512_many::tiles_times;
use super::unpack512::Unpack;
use super::{Batch, TILES};
use crate::tiles::{Geometry, CHUNK, CHUNK_BYTES, TILE};

/// Chunks after which the sums of a long group are folded: each adds at most 64 * 2 * 4 * 127 to a lane.
pub(super) const FOLD: usize = 8192;

/// Tokens with their activations as [`Batch`] lays them out.
#[derive(Clone, Copy)]
struct Tokens {
    q: *const i8,
    offsets: *const i32,
    scales: *const f32,
    n: usize,
    /// The first of those at hand.
    first: usize,
    /// [`Batch::ahead`].
    ahead: usize,
}

impl Tokens {
    /// Activations of chunk `k` of a group for token `t` of those at hand, in a batch of steps of `STEP`.
    ///
    /// # Safety
    /// All three are within the batch.
    #[inline(always)]
    unsafe fn at<const STEP: usize>(self, chunks: usize, group: usize, k: usize, t: usize) -> *const i8 {
        let per = STEP / CHUNK;
        let step = (group * chunks + k / per * per) / per;
        // SAFETY: the caller's promise.
        unsafe { self.q.add((step * self.n + self.first + t) * STEP + k % per * CHUNK) }
    }

    /// # Safety
    /// As [`Tokens::at`].
    #[inline(always)]
    unsafe fn offset(self, group: usize, t: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { *self.offsets.add(group * self.n + self.first + t) }
    }
}

/// Up to [`TILES`] tiles; `out` is [tiles, n, 16].
pub fn matmul<U: Unpack>(tiles: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    let count = tiles.len() / geometry.tile_bytes();
    assert!((1..=TILES).contains(&count) && out.len() == count * x.n * TILE);
    assert!(x.q.len() >= geometry.padded_cols() * x.n && x.offsets.len() >= geometry.groups * x.n);
    assert!(U::available());
    // Measured on Sapphire Rapids: where taking codes out of their bytes and folding sums costs least.
    let folds_often = (U::SHIFTED && geometry.width <= 64) || geometry.width <= 32;
    let unpack_from = if folds_often { 5 } else { 9 };
    // SAFETY: the CPU was checked by dispatch; the lengths above cover the tiles, the batch and the output.
    unsafe {
        match (count, x.step) {
            (2.., 32) if x.n >= unpack_from => tiles_times::<U, 32>(tiles, geometry, x, out),
            (2.., _) if x.n >= unpack_from => tiles_times::<U, 64>(tiles, geometry, x, out),
            _ => {
                let by_tile = tiles.chunks_exact(geometry.tile_bytes()).zip(out.chunks_exact_mut(x.n * TILE));
                for (tile, out) in by_tile {
                    few_at_a_time::<U>(tile.as_ptr(), geometry, x, out.as_mut_ptr());
                }
            }
        }
    }
}

/// One tile times all tokens, at most eight at a time, whose sums stay in registers.
///
/// # Safety
/// See [`matmul`].
unsafe fn few_at_a_time<U: Unpack>(p: *const u8, geometry: &Geometry, x: &Batch, y: *mut f32) {
    let (q, offsets, scales) = (x.q.as_ptr(), x.offsets.as_ptr(), x.scales.as_ptr());
    // Four sums a token are too many for the registers from seven tokens on.
    let few = if U::SHIFTED { 6 } else { 8 };
    // As even as can be: 9 tokens are 5 and 4.
    let many = x.n.div_ceil(x.n.div_ceil(few));
    for first in (0..x.n).step_by(many) {
        let tokens = Tokens { q, offsets, scales, n: x.n, first, ahead: x.ahead };
        // SAFETY: the caller's promise; `many` tokens or the rest from `first` on.
        unsafe {
            match many.min(x.n - first) {
                1 => some_tokens::<U, 2, 4, 1>(p, geometry, tokens, y),
                2 => some_tokens::<U, 1, 4, 2>(p, geometry, tokens, y),
                3 => some_tokens::<U, 1, 4, 3>(p, geometry, tokens, y),
                4 => some_tokens::<U, 1, 4, 4>(p, geometry, tokens, y),
                5 => some_tokens::<U, 1, 2, 5>(p, geometry, tokens, y),
                6 => some_tokens::<U, 1, 2, 6>(p, geometry, tokens, y),
                7 => some_tokens::<U, 1, 2, 7>(p, geometry, tokens, y),
                _ => some_tokens::<U, 1, 2, 8>(p, geometry, tokens, y),
            }
        }
    }
}

/// `T` tokens at once, in `SETS` sets of sums where groups are long.
///
/// # Safety
/// See [`matmul`]; `x.first + T <= x.n`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn some_tokens<U: Unpack, const SETS: usize, const K: usize, const T: usize>(
    p: *const u8,
    geometry: &Geometry,
    x: Tokens,
    y: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match geometry.width / CHUNK {
            2 if geometry.planes == 1 => short_groups::<U, 2, 32, 1, 4, T>(p, geometry, x, y),
            4 if geometry.planes == 1 && U::SHIFTED => short_groups::<U, 4, 64, 1, 4, T>(p, geometry, x, y),
            4 if geometry.planes == 1 && T <= 6 => short_groups::<U, 4, 64, 4, 1, T>(p, geometry, x, y),
            4 if geometry.planes == 1 => short_groups::<U, 4, 64, 2, 1, T>(p, geometry, x, y),
            2 => any_groups::<U, 32, 1, K, T>(p, geometry, x, y),
            _ => any_groups::<U, 64, SETS, K, T>(p, geometry, x, y),
        }
    }
}

/// Sums of a block for `T` tokens: the codes' four places in a byte take `K` of them in turn (all four where
/// codes are shifted), so that a product need not wait for the one before it.
type Sums<const T: usize> = [[__m512i; T]; 4];

/// Keeps products in the order they are written in, sum after sum: LLVM would put those of one sum one after the
/// other, where each waits for the one before.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn in_order(sums: &mut [__m512i]) {
    for sum in sums {
        // SAFETY: no instruction at all.
        unsafe { asm!("/* {0} */", inout(zmm_reg) * sum, options(nomem, nostack, preserves_flags)) };
    }
}

/// Add one chunk of each of `G` blocks: 64 bytes of codes at each `p`, 16 activations at each `x`.
///
/// # Safety
/// AVX-512 BW and VNNI; 64 bytes at each `p` and 16 at each `x` can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn add_chunks<U: Unpack, const K: usize, const G: usize, const T: usize>(
    sums: &mut [Sums<T>; G],
    constants: &[__m512i; 4],
    p: [*const u8; G],
    x: [[*const i8; T]; G],
    ahead: usize,
) {
    // SAFETY: the caller's promise; asking for a line beyond the tiles is harmless.
    unsafe {
        let w = p.map(|p| {
            _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(ahead).cast());
            _mm512_loadu_si512(p.cast())
        });
        for s in 0..4 {
            for g in 0..G {
                let codes = U::codes(w[g], constants[s]);
                let sums = &mut sums[g][if U::SHIFTED { s } else { s % K }];
                for (sum, x) in sums.iter_mut().zip(x[g]) {
                    let x = x.cast::<i32>().add(s).read_unaligned();
                    *sum = _mm512_dpbusd_epi32(*sum, codes, _mm512_set1_epi32(x));
                }
                in_order(sums);
            }
        }
    }
}

/// The sums of one token as one, factors taken out; exact, because every sum is a multiple of its factor.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn fold<U: Unpack, const K: usize>(&[a, b, c, d]: &[__m512i; 4]) -> __m512i {
    if U::SHIFTED {
        let low = _mm512_add_epi32(a, _mm512_srai_epi32::<2>(b));
        let high = _mm512_add_epi32(_mm512_srai_epi32::<4>(c), _mm512_srai_epi32::<6>(d));
        return _mm512_add_epi32(low, high);
    }
    match K {
        1 => a,
        2 => _mm512_add_epi32(a, b),
        _ => _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d)),
    }
}

/// Multiply the totals with the tokens' scales and store them.
///
/// # Safety
/// `T` scales from the first token at hand on, and as many times 16 floats at `y`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const T: usize>(totals: [__m512; T], x: Tokens, y: *mut f32) {
    for (t, total) in totals.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = _mm512_set1_ps(*x.scales.add(x.first + t));
            _mm512_storeu_ps(y.add((x.first + t) * TILE), _mm512_mul_ps(total, scale));
        }
    }
}

/// One tile of one plane whose groups have `CHUNKS` chunks, `G` groups side by side: their sums do not wait for
/// each other, so that unshifted codes need fewer sums a group. Few groups with one token: reading far ahead in
/// turns costs more bandwidth from memory than the sums do.
///
/// # Safety
/// See [`matmul`]; `STEP` is the batch's, `x.first + T <= x.n`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn short_groups<
    U: Unpack,
    const CHUNKS: usize,
    const STEP: usize,
    const G: usize,
    const K: usize,
    const T: usize,
>(
    p: *const u8,
    geometry: &Geometry,
    x: Tokens,
    y: *mut f32,
) {
    let groups = geometry.groups;
    let mut totals = [_mm512_setzero_ps(); T];
    let mut group = 0;
    // SAFETY: groups stay below those of the geometry, whose blocks lie one after the other.
    unsafe {
        let constants = U::constants();
        if G > 1 {
            while group + G <= groups {
                side_by_side::<U, CHUNKS, STEP, G, K, T>(&mut totals, &constants, p, group, x);
                group += G;
            }
        }
        while group < groups {
            side_by_side::<U, CHUNKS, STEP, 1, K, T>(&mut totals, &constants, p, group, x);
            group += 1;
        }
        store(totals, x, y);
    }
}

/// # Safety
/// See [`short_groups`]; there are `G` groups from `group` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn side_by_side<
    U: Unpack,
    const CHUNKS: usize,
    const STEP: usize,
    const G: usize,
    const K: usize,
    const T: usize,
>(
    totals: &mut [__m512; T],
    constants: &[__m512i; 4],
    p: *const u8,
    group: usize,
    x: Tokens,
) {
    let block = CHUNKS * CHUNK_BYTES + 2 * TILE;
    let mut sums = [[[_mm512_setzero_si512(); T]; 4]; G];
    // SAFETY: the caller's promise.
    unsafe {
        let p = p.add(group * block);
        for (g, sums) in sums.iter_mut().enumerate() {
            for (t, sum) in sums[0].iter_mut().enumerate() {
                *sum = _mm512_set1_epi32(x.offset(group + g, t));
            }
        }
        for k in 0..CHUNKS {
            let q = std::array::from_fn(|g| std::array::from_fn(|t| x.at::<STEP>(CHUNKS, group + g, k, t)));
            let p = std::array::from_fn(|g| p.add(g * block + k * CHUNK_BYTES));
            add_chunks::<U, K, G, T>(&mut sums, constants, p, q, x.ahead);
        }
        for (g, sums) in sums.iter().enumerate() {
            let scales = p.add(g * block + CHUNKS * CHUNK_BYTES);
            let scales = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
            for (t, total) in totals.iter_mut().enumerate() {
                let exact = fold::<U, K>(&[sums[0][t], sums[1][t], sums[2][t], sums[3][t]]);
                *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scales, *total);
            }
        }
    }
}

/// One tile of any planes and groups of any length; `SETS` sets of sums take chunks in turn.
///
/// # Safety
/// See [`matmul`]; `STEP` is the batch's, `x.first + T <= x.n`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn any_groups<U: Unpack, const STEP: usize, const SETS: usize, const K: usize, const T: usize>(
    mut p: *const u8,
    geometry: &Geometry,
    x: Tokens,
    y: *mut f32,
) {
    let chunks = geometry.width / CHUNK;
    let per = STEP / CHUNK;
    let mut totals = [_mm512_setzero_ps(); T];
    // SAFETY: p walks over the tile; groups and chunks stay below the geometry's.
    unsafe {
        let constants = U::constants();
        for group in 0..geometry.groups {
            for _ in 0..geometry.planes {
                let mut exact = [_mm512_setzero_si512(); T];
                for (t, exact) in exact.iter_mut().enumerate() {
                    *exact = _mm512_set1_epi32(x.offset(group, t));
                }
                let mut k = 0;
                while k < chunks {
                    let end = (k + FOLD).min(chunks);
                    let mut sums = [[[_mm512_setzero_si512(); T]; 4]; SETS];
                    while k < end {
                        // A step at a time: its chunks are a known number, and FOLD and chunks are multiples.
                        let q: [*const i8; T] = std::array::from_fn(|t| x.at::<STEP>(chunks, group, k, t));
                        for i in 0..per {
                            let q = q.map(|q| q.add(i * CHUNK));
                            let sums = std::array::from_mut(&mut sums[i % SETS]);
                            let p = [p.add(i * CHUNK_BYTES)];
                            add_chunks::<U, K, 1, T>(sums, &constants, p, [q], x.ahead);
                        }
                        p = p.add(per * CHUNK_BYTES);
                        k += per;
                    }
                    for sums in &sums {
                        for (t, exact) in exact.iter_mut().enumerate() {
                            *exact = _mm512_add_epi32(
                                *exact,
                                fold::<U, K>(&[sums[0][t], sums[1][t], sums[2][t], sums[3][t]]),
                            );
                        }
                    }
                }
                let scales = _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()));
                p = p.add(2 * TILE);
                for (exact, total) in exact.into_iter().zip(&mut totals) {
                    *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scales, *total);
                }
            }
        }
        store(totals, x, y);
    }
}
