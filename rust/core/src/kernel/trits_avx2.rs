//! Five codes a byte with AVX2 or AVX-VNNI, half a tile's rows at a time. A code is the carry of 3 q out of 8 bits,
//! which two averages give as in the AVX-512 path; here it is moved to the low bits, where [`Dot`] takes it.

use std::arch::x86_64::*;

use super::dot256::Dot;
use super::trits::{Part, DIGITS};
use crate::memory::ask_for;
use crate::tiles::{CHUNK_BYTES, TILE};

/// Chunks after which 16-bit sums are widened: each adds at most twice 2 * 127 to a lane.
const FOLD: usize = 64;

/// Add the sums of the chunks in `codes`.
pub fn sums<D: Dot>(codes: &[u8], part: &Part<'_>, sums: &mut [[i32; TILE]; DIGITS]) {
    let codes = &codes[..part.chunks_of(codes) * CHUNK_BYTES];
    assert!(D::available());
    for (some, codes) in codes.chunks(FOLD * CHUNK_BYTES).enumerate() {
        let q = part.q[some * FOLD * part.by_chunk..].as_ptr();
        for half in 0..2 {
            // SAFETY: the CPU and the activations of all chunks were checked.
            unsafe {
                match part.present {
                    5 => add::<D, 5>(codes, half, q, part, sums),
                    4 => add::<D, 4>(codes, half, q, part, sums),
                    3 => add::<D, 3>(codes, half, q, part, sums),
                    2 => add::<D, 2>(codes, half, q, part, sums),
                    _ => add::<D, 1>(codes, half, q, part, sums),
                }
            }
        }
    }
}

/// Add the sums of at most [`FOLD`] chunks to eight rows: the first or the second `half` of them.
///
/// # Safety
/// See [`sums`]; the activations of all chunks can be read from `q` on.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add<D: Dot, const N: usize>(
    codes: &[u8],
    half: usize,
    q: *const i8,
    part: &Part<'_>,
    sums: &mut [[i32; TILE]; DIGITS],
) {
    let (zero, one, three) = (_mm256_setzero_si256(), _mm256_set1_epi8(1), _mm256_set1_epi8(3));
    let mut acc = [zero; N];
    for (c, chunk) in codes.chunks_exact(CHUNK_BYTES).enumerate() {
        if half == 0 {
            // The chunk that is read after these: two passes over so few leave the processor's own looking ahead
            // behind, from memory twice the time.
            ask_for(chunk.as_ptr().wrapping_add(FOLD * CHUNK_BYTES));
        }
        // SAFETY: a half of the chunk's 64 bytes.
        let mut v = unsafe { _mm256_loadu_si256(chunk.as_ptr().add(half * CHUNK_BYTES / 2).cast()) };
        for (s, acc) in acc.iter_mut().enumerate() {
            let less = _mm256_subs_epu8(v, one);
            let high = _mm256_avg_epu8(less, _mm256_avg_epu8(less, zero));
            let code = _mm256_and_si256(_mm256_srli_epi16::<6>(high), three);
            // SAFETY: c is below the number of chunks, s below the codes that are present; the CPU was checked.
            unsafe {
                let x = q.add(c * part.by_chunk + s * part.by_code).cast::<i32>().read_unaligned();
                *acc = D::dot(*acc, code, _mm256_set1_epi32(x));
            }
            if s + 1 < N {
                v = _mm256_add_epi8(v, _mm256_add_epi8(v, v));
            }
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        let eight = &mut sums[half * TILE / 2..][..TILE / 2];
        // SAFETY: eight sums of 32 bits; a lane of 16 bits holds at most FOLD times 508.
        unsafe {
            let at = eight.as_mut_ptr().cast();
            _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at.cast_const()), D::widen(acc)));
        }
    }
}
