//! Five codes a byte with AVX-512 and VNNI. A code is the carry of 3 q out of 8 bits, here the top two bits of
//! 3 q / 4, which two averages give (they round up, so 1 is taken off first); masked in place it carries the factor 64 for all five.

use std::arch::x86_64::*;

use super::trits::{Part, DIGITS};
use crate::tiles::{CHUNK_BYTES, TILE};

/// Chunks after which sums are folded: each adds at most 4 * 128 * 127 to a lane.
const FOLD: usize = 16_384;

pub fn sums(codes: &[u8], part: &Part<'_>, sums: &mut [[i32; TILE]; DIGITS]) {
    let codes = &codes[..part.chunks_of(codes) * CHUNK_BYTES];
    assert!(super::Isa::Avx512Vnni.available());
    for (some, codes) in codes.chunks(FOLD * CHUNK_BYTES).enumerate() {
        let q = part.q[some * FOLD * part.by_chunk..].as_ptr();
        // SAFETY: the CPU and the activations of all chunks were checked.
        unsafe {
            match part.present {
                5 => add::<5>(codes, q, part, sums),
                4 => add::<4>(codes, q, part, sums),
                3 => add::<3>(codes, q, part, sums),
                2 => add::<2>(codes, q, part, sums),
                _ => add::<1>(codes, q, part, sums),
            }
        }
    }
}

/// # Safety
/// See [`sums`]; `N` is `part.present`, at most [`FOLD`] chunks whose activations can be read from `q` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn add<const N: usize>(codes: &[u8], q: *const i8, part: &Part<'_>, sums: &mut [[i32; TILE]; DIGITS]) {
    let zero = _mm512_setzero_si512();
    let one = _mm512_set1_epi8(1);
    let top = _mm512_set1_epi8(0xc0u8 as i8);
    let mut acc = [zero; N];
    for (c, chunk) in codes.chunks_exact(CHUNK_BYTES).enumerate() {
        // SAFETY: a chunk is 64 bytes.
        let mut v = unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) };
        for (s, acc) in acc.iter_mut().enumerate() {
            let less = _mm512_subs_epu8(v, one);
            let high = _mm512_avg_epu8(less, _mm512_avg_epu8(less, zero));
            // SAFETY: c is below the number of chunks, s below `present`.
            let x = unsafe { q.add(c * part.by_chunk + s * part.by_code).cast::<i32>().read_unaligned() };
            let x = _mm512_set1_epi32(x);
            *acc = _mm512_dpbusd_epi32(*acc, _mm512_and_si512(high, top), x);
            if s + 1 < N {
                v = _mm512_add_epi8(v, _mm512_add_epi8(v, v));
            }
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        let mut lanes = [0i32; TILE];
        // SAFETY: 16 lanes of 32 bits. The factor 64 is taken out exactly.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), _mm512_srai_epi32::<6>(acc)) };
        sums.iter_mut().zip(lanes).for_each(|(a, b)| *a += b);
    }
}
