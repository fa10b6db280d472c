//! fp16 and bfloat16 as bits, converted with round-half-even; no dependence on what the CPU offers,
//! so that every machine writes the same scales.

/// The largest finite fp16 value.
pub const F16_MAX: f64 = 65504.0;

/// fp16 bits -> float32, exact.
#[inline]
pub fn f16_to_f32(h: u16) -> f32 {
    let sign = ((h & 0x8000) as u32) << 16;
    let magnitude = h & 0x7fff;
    let special = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(sign | scale_to_f32(magnitude).to_bits() | special)
}

/// Finite fp16 bits that are not negative -> float32, exact and without a branch.
#[inline(always)]
pub fn scale_to_f32(h: u16) -> f32 {
    let bits = (h as u32) << 13;
    // Shifted into place the exponent is too small by 112. A subnormal half is put on 2^-14, which is then taken
    // off: no number on the way is subnormal, which a thread may be set to take for zero.
    const LEAST: u32 = (127 - 14) << 23;
    let small = f32::from_bits(bits + LEAST) - f32::from_bits(LEAST);
    if h < 0x400 {
        small
    } else {
        f32::from_bits(bits + (112 << 23))
    }
}

/// float32 -> fp16 bits, round half to even; overflow gives infinity. Without a branch, so that loops vectorize.
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let rebased = magnitude.wrapping_sub((127 - 15) << 23);
    let normal = rebased.wrapping_add(0x0fff + ((rebased >> 13) & 1)) >> 13;
    // Subnormal halves: adding 0.5 leaves the value's multiples of 2^-24 in the low mantissa bits,
    // rounded to even by the addition itself.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let half = if magnitude >= 0x3880_0000 { normal } else { subnormal };
    let half = if magnitude >= 0x477f_f000 { 0x7c00 } else { half };
    let half = if magnitude > 0x7f80_0000 { 0x7e00 } else { half };
    sign | half as u16
}

/// float64 -> fp16 bits in one rounding (half to even).
#[inline(always)]
pub fn f64_to_f16(value: f64) -> u16 {
    // Round to odd on the way through float32: the sticky last bit keeps the second rounding honest. What is
    // beyond float32 becomes its largest number, which is beyond fp16 too.
    let near = value as f32;
    let back = near as f64;
    let truncated = near.to_bits() - (back.abs() > value.abs()) as u32;
    f32_to_f16(f32::from_bits(truncated | (back != value) as u32))
}

/// bfloat16 bits -> float32, exact.
#[inline]
pub fn bf16_to_f32(b: u16) -> f32 {
    f32::from_bits((b as u32) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_round_trip() {
        for h in 0..=u16::MAX {
            let value = f16_to_f32(h);
            assert!(h >= 0x7c00 || scale_to_f32(h).to_bits() == value.to_bits());
            if value.is_nan() {
                assert!(f16_to_f32(f32_to_f16(value)).is_nan());
            } else {
                assert_eq!(f32_to_f16(value), h, "{h:#06x}");
                assert_eq!(f64_to_f16(value as f64), h, "{h:#06x}");
            }
        }
    }

    #[test]
    fn rounds_to_the_nearest_half_with_ties_to_even() {
        for h in 0..0x7bffu16 {
            let (low, high) = (f16_to_f32(h) as f64, f16_to_f32(h + 1) as f64);
            let middle = (low + high) / 2.0;
            let even = if h & 1 == 0 { h } else { h + 1 };
            assert_eq!(f64_to_f16(middle), even);
            assert_eq!(f32_to_f16(middle as f32), even);
            let above = f64::from_bits(middle.to_bits() + 1);
            assert_eq!(f64_to_f16(above), h + 1, "just above the middle of {low} and {high}");
            let below = f64::from_bits(middle.to_bits() - 1);
            assert_eq!(f64_to_f16(below), h, "just below the middle of {low} and {high}");
        }
        assert_eq!(f32_to_f16(65519.9), 0x7bff);
        assert_eq!(f32_to_f16(65520.0), 0x7c00);
        assert_eq!(f64_to_f16(1e300), 0x7c00);
        assert_eq!(f64_to_f16(-1e300), 0xfc00);
        assert_eq!(f64_to_f16(f64::NEG_INFINITY), 0xfc00);
        assert_eq!(f64_to_f16(1e-300), 0);
    }
}
