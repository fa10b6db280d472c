//! AVX-512 with VNNI: one load gives four masks of 64 codes, each one `vpdpbusd` with activations broadcast
//! from memory. The four accumulators carry factors 1, 4, 16 and 64, taken out exactly at a group's end, where
//! the 16 lanes are 16 rows.

use std::arch::x86_64::*;

use super::{Activations, Batch};
use crate::tiles::{Geometry, CHUNK_BYTES, TILE};

/// Chunks after which whole-row sums are folded: each adds at most 64 * 2 * 4 * 127 to a lane of 32 bits.
const FOLD: usize = 8192;

pub fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

pub fn matvec(tiles: &[u8], geometry: &Geometry, x: &Activations, out: &mut [f32]) {
    let (p, q, offsets) = (tiles.as_ptr(), x.q.as_ptr(), x.offsets.as_ptr());
    let count = out.len() / TILE;
    assert!(tiles.len() >= count * geometry.tile_bytes());
    assert!(x.q.len() >= geometry.padded_cols() && x.offsets.len() >= geometry.groups);
    // SAFETY: dispatch checked the CPU (`available`); the lengths above cover every access of `tiles_of`, which
    // reads `count` tiles, the padded activations and the offsets, and writes `count * 16` floats.
    unsafe {
        let y = out.as_mut_ptr();
        match geometry.width / 16 {
            2 if geometry.planes == 1 => one_plane::<2>(p, count, geometry, q, offsets, x.scale, y),
            4 if geometry.planes == 1 => one_plane::<4>(p, count, geometry, q, offsets, x.scale, y),
            8 if geometry.planes == 1 => one_plane::<8>(p, count, geometry, q, offsets, x.scale, y),
            16 if geometry.planes == 1 => one_plane::<16>(p, count, geometry, q, offsets, x.scale, y),
            2 => tiles_of::<2>(p, count, geometry, q, offsets, x.scale, y),
            4 => tiles_of::<4>(p, count, geometry, q, offsets, x.scale, y),
            8 => tiles_of::<8>(p, count, geometry, q, offsets, x.scale, y),
            16 => tiles_of::<16>(p, count, geometry, q, offsets, x.scale, y),
            _ => tiles_of::<0>(p, count, geometry, q, offsets, x.scale, y),
        }
    }
}

/// Four accumulators with their factors.
#[derive(Clone, Copy)]
struct Sums([__m512i; 4]);

impl Sums {
    /// Add one chunk: 64 bytes of codes at `p`, 16 activations at `x`.
    ///
    /// # Safety
    /// AVX-512 BW and VNNI; 64 bytes at `p` and 16 at `x` can be read.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn chunk(&mut self, p: *const u8, x: *const i8) {
        // SAFETY: the caller's promise.
        unsafe {
            let w = _mm512_loadu_si512(p.cast());
            let x = x.cast::<i32>();
            let a = &mut self.0;
            for (s, mask) in [0x03i8, 0x0c, 0x30, 0xc0u8 as i8].into_iter().enumerate() {
                let codes = _mm512_and_si512(w, _mm512_set1_epi8(mask));
                a[s] = _mm512_dpbusd_epi32(a[s], codes, _mm512_set1_epi32(x.add(s).read_unaligned()));
            }
        }
    }

    /// The factors taken out; exact, because every accumulator is a multiple of its factor.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn fold(self) -> __m512i {
        let [a, b, c, d] = self.0;
        let low = _mm512_add_epi32(a, _mm512_srai_epi32::<2>(b));
        let high = _mm512_add_epi32(_mm512_srai_epi32::<4>(c), _mm512_srai_epi32::<6>(d));
        _mm512_add_epi32(low, high)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn starting_at(first: i32) -> Self {
        let zero = _mm512_setzero_si512();
        Sums([_mm512_set1_epi32(first), zero, zero, zero])
    }
}

/// Tiles whose groups have `CHUNKS` chunks (0: not known when compiled).
///
/// # Safety
/// See [`matvec`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tiles_of<const CHUNKS: usize>(
    mut p: *const u8,
    count: usize,
    geometry: &Geometry,
    q: *const i8,
    offsets: *const i32,
    scale: f32,
    y: *mut f32,
) {
    let chunks = if CHUNKS > 0 { CHUNKS } else { geometry.width / 16 };
    // SAFETY: all offsets stay inside what the caller promised; see the comments of `matvec`.
    unsafe {
        for tile in 0..count {
            let mut total = _mm512_setzero_ps();
            for group in 0..geometry.groups {
                let x = q.add(group * chunks * 16);
                let offset = offsets.add(group).read();
                for _ in 0..geometry.planes {
                    let exact = if CHUNKS > 0 {
                        let mut acc = Sums::starting_at(offset);
                        for k in 0..CHUNKS {
                            acc.chunk(p.add(k * CHUNK_BYTES), x.add(k * 16));
                        }
                        acc.fold()
                    } else {
                        long_group(p, chunks, x, offset)
                    };
                    p = p.add(chunks * CHUNK_BYTES);
                    let scales = _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()));
                    total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scales, total);
                    p = p.add(2 * TILE);
                }
            }
            _mm512_storeu_ps(y.add(tile * TILE), _mm512_mul_ps(total, _mm512_set1_ps(scale)));
        }
    }
}

/// The common case of one plane. With no loop over planes the activations stay operands of
/// `vpdpbusd` instead of being kept in registers.
///
/// # Safety
/// See [`matvec`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn one_plane<const CHUNKS: usize>(
    mut p: *const u8,
    count: usize,
    geometry: &Geometry,
    q: *const i8,
    offsets: *const i32,
    scale: f32,
    y: *mut f32,
) {
    // SAFETY: as in `tiles_of`.
    unsafe {
        for tile in 0..count {
            let mut total = _mm512_setzero_ps();
            for group in 0..geometry.groups {
                let mut acc = Sums::starting_at(offsets.add(group).read());
                for k in 0..CHUNKS {
                    acc.chunk(p.add(k * CHUNK_BYTES), q.add((group * CHUNKS + k) * 16));
                }
                let scales = _mm512_cvtph_ps(_mm256_loadu_si256(p.add(CHUNKS * CHUNK_BYTES).cast()));
                total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc.fold()), scales, total);
                p = p.add(CHUNKS * CHUNK_BYTES + 2 * TILE);
            }
            _mm512_storeu_ps(y.add(tile * TILE), _mm512_mul_ps(total, _mm512_set1_ps(scale)));
        }
    }
}

/// A group of any length, in two independent sets of accumulators.
///
/// # Safety
/// `chunks` chunks can be read at `p` and `16 * chunks` activations at `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn long_group(p: *const u8, chunks: usize, x: *const i8, offset: i32) -> __m512i {
    let mut total = _mm512_set1_epi32(offset);
    let mut k = 0;
    // SAFETY: k < chunks throughout.
    unsafe {
        while k < chunks {
            let end = (k + FOLD).min(chunks);
            let (mut a, mut b) = (Sums::starting_at(0), Sums::starting_at(0));
            while k + 2 <= end {
                a.chunk(p.add(k * CHUNK_BYTES), x.add(k * 16));
                b.chunk(p.add((k + 1) * CHUNK_BYTES), x.add((k + 1) * 16));
                k += 2;
            }
            if k < end {
                a.chunk(p.add(k * CHUNK_BYTES), x.add(k * 16));
                k += 1;
            }
            for (a, b) in a.0.iter_mut().zip(b.0) {
                *a = _mm512_add_epi32(*a, b);
            }
            total = _mm512_add_epi32(total, a.fold());
        }
    }
    total
}

pub fn matmul(tile: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    assert!(tile.len() >= geometry.tile_bytes() && out.len() == x.n * TILE);
    assert!(x.q.len() >= geometry.padded_cols() * x.n && x.offsets.len() >= geometry.groups * x.n);
    // SAFETY: the CPU was checked by dispatch; the lengths above cover the tile, the batch and the output.
    unsafe {
        match (x.step, x.n) {
            (32, 1) => tile_times_few::<8, 1>(tile, geometry, x, out),
            (32, 2) => tile_times_few::<8, 2>(tile, geometry, x, out),
            (32, 3) => tile_times_few::<8, 3>(tile, geometry, x, out),
            (32, 4) => tile_times_few::<8, 4>(tile, geometry, x, out),
            (32, _) => tile_times::<8>(tile, geometry, x, out),
            (_, 1) => tile_times_few::<16, 1>(tile, geometry, x, out),
            (_, 2) => tile_times_few::<16, 2>(tile, geometry, x, out),
            (_, 3) => tile_times_few::<16, 3>(tile, geometry, x, out),
            (_, 4) => tile_times_few::<16, 4>(tile, geometry, x, out),
            _ => tile_times::<16>(tile, geometry, x, out),
        }
    }
}

/// Codes of a step, 0 to 2 in every byte.
///
/// # Safety
/// `QUADS / 4` chunks can be read at `p`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpack<const QUADS: usize>(p: *const u8) -> [__m512i; QUADS] {
    let mut w = [_mm512_setzero_si512(); QUADS];
    let mask = _mm512_set1_epi8(3);
    for (k, four) in w.chunks_exact_mut(4).enumerate() {
        // SAFETY: k < QUADS / 4.
        let codes = unsafe { _mm512_loadu_si512(p.add(k * CHUNK_BYTES).cast()) };
        four[0] = _mm512_and_si512(codes, mask);
        four[1] = _mm512_and_si512(_mm512_srli_epi16::<2>(codes), mask);
        four[2] = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), mask);
        four[3] = _mm512_and_si512(_mm512_srli_epi16::<6>(codes), mask);
    }
    w
}

/// One tile times up to four tokens, whose sums stay in registers.
///
/// # Safety
/// See [`matmul`]; `x.n` is `MANY`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile_times_few<const QUADS: usize, const MANY: usize>(
    tile: &[u8],
    geometry: &Geometry,
    x: &Batch,
    out: &mut [f32],
) {
    let steps = geometry.width / x.step;
    let mut p = tile.as_ptr();
    let mut totals = [_mm512_setzero_ps(); MANY];
    // SAFETY: p walks over the tile, as does the group over the batch; tokens are below MANY = n.
    unsafe {
        for group in 0..geometry.groups {
            for _ in 0..geometry.planes {
                // Two sums a token where there are few, so that products need not wait for each other.
                let mut even = [_mm512_setzero_si512(); MANY];
                let mut odd = [_mm512_setzero_si512(); MANY];
                for (t, sum) in even.iter_mut().enumerate() {
                    *sum = _mm512_set1_epi32(*x.offsets.as_ptr().add(group * MANY + t));
                }
                for step in 0..steps {
                    let w = unpack::<QUADS>(p);
                    p = p.add(QUADS / 4 * CHUNK_BYTES);
                    let q = x.q.as_ptr().add((group * steps + step) * x.step * MANY);
                    for k in 0..QUADS {
                        for t in 0..MANY {
                            let x = q.add(t * QUADS * 4 + 4 * k).cast::<i32>().read_unaligned();
                            let sum = if k % 2 == 0 || MANY > 2 { &mut even[t] } else { &mut odd[t] };
                            *sum = _mm512_dpbusd_epi32(*sum, w[k], _mm512_set1_epi32(x));
                        }
                    }
                }
                let scales = _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()));
                p = p.add(2 * TILE);
                for t in 0..MANY {
                    let exact = if MANY > 2 { even[t] } else { _mm512_add_epi32(even[t], odd[t]) };
                    totals[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scales, totals[t]);
                }
            }
        }
        for (t, total) in totals.into_iter().enumerate() {
            let total = _mm512_mul_ps(total, _mm512_set1_ps(x.scales[t]));
            _mm512_storeu_ps(out.as_mut_ptr().add(t * TILE), total);
        }
    }
}

/// One tile times all tokens; steps of `QUADS * 4` inputs whose codes are unpacked into registers once.
///
/// # Safety
/// See [`matmul`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile_times<const QUADS: usize>(tile: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    let steps = geometry.width / x.step;
    let n = x.n;
    out.fill(0.0);
    // Sums of groups longer than a step, between its steps; one plane after the other.
    let mut partial = if steps > 1 { vec![0i32; n * TILE] } else { Vec::new() };
    let sums_at = partial.as_mut_ptr();
    let y = out.as_mut_ptr();
    let mut p = tile.as_ptr();
    // SAFETY: p walks over the tile; token indices stay below n.
    unsafe {
        for group in 0..geometry.groups {
            let offsets = x.offsets.as_ptr().add(group * n);
            for _ in 0..geometry.planes {
                let scales = p.add(geometry.code_bytes());
                let scales = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
                for step in 0..steps {
                    let w = unpack::<QUADS>(p);
                    p = p.add(QUADS / 4 * CHUNK_BYTES);
                    let (first, last) = (step == 0, step + 1 == steps);
                    let q = x.q.as_ptr().add((group * steps + step) * x.step * n);
                    let mut t = 0;
                    while t < n {
                        let many = (n - t).min(4);
                        let mut acc = [_mm512_setzero_si512(); 4];
                        for (i, acc) in acc.iter_mut().enumerate().take(many) {
                            *acc = if first {
                                _mm512_set1_epi32(*offsets.add(t + i))
                            } else {
                                _mm512_loadu_si512(sums_at.add((t + i) * TILE).cast())
                            };
                        }
                        let q = q.add(t * x.step);
                        match many {
                            4 => quads::<QUADS, 4>(&w, q, x.step, &mut acc),
                            3 => quads::<QUADS, 3>(&w, q, x.step, &mut acc),
                            2 => quads::<QUADS, 2>(&w, q, x.step, &mut acc),
                            _ => quads::<QUADS, 1>(&w, q, x.step, &mut acc),
                        }
                        for (i, acc) in acc.into_iter().enumerate().take(many) {
                            if last {
                                let y = y.add((t + i) * TILE);
                                let sum =
                                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), scales, _mm512_loadu_ps(y));
                                _mm512_storeu_ps(y, sum);
                            } else {
                                _mm512_storeu_si512(sums_at.add((t + i) * TILE).cast(), acc);
                            }
                        }
                        t += many;
                    }
                }
                p = p.add(2 * TILE);
            }
        }
        for (t, scale) in x.scales.iter().enumerate() {
            let y = y.add(t * TILE);
            _mm512_storeu_ps(y, _mm512_mul_ps(_mm512_loadu_ps(y), _mm512_set1_ps(*scale)));
        }
    }
}

/// Add `QUADS * 4` inputs of `MANY` tokens.
///
/// # Safety
/// `MANY * step` activations can be read at `q`.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn quads<const QUADS: usize, const MANY: usize>(
    w: &[__m512i; QUADS],
    q: *const i8,
    step: usize,
    acc: &mut [__m512i; 4],
) {
    for (k, &w) in w.iter().enumerate() {
        for (i, acc) in acc.iter_mut().enumerate().take(MANY) {
            // SAFETY: 4 k + 3 < step and i < MANY.
            let x = unsafe { q.add(i * step + 4 * k).cast::<i32>().read_unaligned() };
            *acc = _mm512_dpbusd_epi32(*acc, w, _mm512_set1_epi32(x));
        }
    }
}
