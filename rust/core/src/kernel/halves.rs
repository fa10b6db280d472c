//! fp16 -> float32 by the conversion that the CPU has.

use crate::half::f16_to_f32;
#[cfg(target_arch = "x86_64")]
use crate::kernel::{level, Level};

/// fp16 bits -> float32, exact; `out` is as long as `halves`.
pub fn widen_halves(halves: &[u16], out: &mut [f32]) {
    assert_eq!(halves.len(), out.len());
    #[cfg(target_arch = "x86_64")]
    match level() {
        // SAFETY: the level says that the features were detected.
        Level::Avx512 => return unsafe { x86::avx512(halves, out) },
        // SAFETY: as above.
        Level::Avx2 => return unsafe { x86::avx2(halves, out) },
        Level::Portable => {}
    }
    one_by_one(halves, out);
}

fn one_by_one(halves: &[u16], out: &mut [f32]) {
    out.iter_mut().zip(halves).for_each(|(out, &half)| *out = f16_to_f32(half));
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub fn avx512(halves: &[u16], out: &mut [f32]) {
        let ((halves, last), (out, last_out)) = (halves.as_chunks::<16>(), out.as_chunks_mut::<16>());
        for (halves, out) in halves.iter().zip(out) {
            // SAFETY: both are sixteen numbers, and neither instruction asks for alignment.
            unsafe {
                _mm512_storeu_ps(
                    out.as_mut_ptr(),
                    _mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().cast())),
                )
            }
        }
        super::one_by_one(last, last_out);
    }

    #[target_feature(enable = "avx,f16c")]
    pub fn avx2(halves: &[u16], out: &mut [f32]) {
        let ((halves, last), (out, last_out)) = (halves.as_chunks::<8>(), out.as_chunks_mut::<8>());
        for (halves, out) in halves.iter().zip(out) {
            // SAFETY: both are eight numbers, and neither instruction asks for alignment.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast())))
            }
        }
        super::one_by_one(last, last_out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_becomes_what_it_stands_for() {
        // An odd count: the last ones are those that fill no vector.
        let halves: Vec<u16> = (0..=u16::MAX).chain(0x3c00..0x3c07).collect();
        let (mut found, mut expected) = (vec![0f32; halves.len()], vec![0f32; halves.len()]);
        widen_halves(&halves, &mut found);
        one_by_one(&halves, &mut expected);
        for ((half, found), expected) in halves.iter().zip(found).zip(expected) {
            assert!(
                found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                "{half:#06x}: {found} {expected}"
            );
        }
    }
}
