//! The canonical 2-bit layout of files: input c is bits 2(c mod 4) of byte c/4, value T + 1.
//! 3 is invalid; padding is 1 (T = 0).

use crate::error::{Error, Result};
use crate::half::f16_to_f32;
use crate::kernel::vectorized;
use crate::memory;
use crate::pool;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of one row of `cols` codes.
#[inline]
pub fn row_bytes(cols: usize) -> usize {
    cols.div_ceil(4)
}

/// Groups of one row; `group_size` 0 is the whole row (one group, also for a row of no inputs).
#[inline]
pub fn groups_of(cols: usize, group_size: usize) -> usize {
    if group_size == 0 {
        1
    } else {
        cols.div_ceil(group_size)
    }
}

vectorized! {
    /// Pack one row of values in {-1, 0, 1} that are known to be valid.
    pub fn pack_row(trits: &[i8], out: &mut [u8]) = pack_row_inlined;
}

#[inline(always)]
fn pack_row_inlined(trits: &[i8], out: &mut [u8]) {
    debug_assert_eq!(out.len(), row_bytes(trits.len()));
    let whole = trits.len() / 4;
    for (byte, four) in out[..whole].iter_mut().zip(trits.chunks_exact(4)) {
        let word = u32::from_le_bytes([four[0] as u8, four[1] as u8, four[2] as u8, four[3] as u8]);
        // T + 1 in each byte without carries between bytes (-1 is 0xff), then two and two, then all moved together.
        let codes = ((word ^ 0x8080_8080).wrapping_add(0x0101_0101) ^ 0x8080_8080) & 0x0303_0303;
        let pairs = codes | codes >> 6;
        *byte = (pairs & 0xf | pairs >> 12 & 0xf0) as u8;
    }
    if whole < out.len() {
        let mut byte = 0x55u8;
        for (i, &t) in trits[whole * 4..].iter().enumerate() {
            byte = (byte & !(3 << (2 * i))) | (((t + 1) as u8) << (2 * i));
        }
        out[whole] = byte;
    }
}

vectorized! {
    /// Unpack one row; codes are trusted (see [`check_codes`]).
    pub fn unpack_row(codes: &[u8], out: &mut [i8]) = unpack_row_inlined;
}

#[inline(always)]
fn unpack_row_inlined(codes: &[u8], out: &mut [i8]) {
    each_code(codes, out, |code| code as i8 - 1);
}

/// `of` each code of a row.
#[inline(always)]
fn each_code<T>(codes: &[u8], out: &mut [T], of: impl Fn(u8) -> T) {
    debug_assert_eq!(codes.len(), row_bytes(out.len()));
    let whole = out.len() / 4;
    for (four, &byte) in out.chunks_exact_mut(4).zip(&codes[..whole]) {
        for (s, value) in four.iter_mut().enumerate() {
            *value = of((byte >> (2 * s)) & 3);
        }
    }
    for (s, value) in out[whole * 4..].iter_mut().enumerate() {
        *value = of((codes[whole] >> (2 * s)) & 3);
    }
}

vectorized! {
    /// Whether the codes of one row are zero; trusted as in [`unpack_row`].
    fn mask_row(codes: &[u8], out: &mut [bool]) = mask_row_inlined;
}

#[inline(always)]
fn mask_row_inlined(codes: &[u8], out: &mut [bool]) {
    each_code(codes, out, |code| code == 1);
}

/// Pack rows of `cols` values each. Errors: a value outside {-1, 0, 1}.
pub fn pack(trits: &[i8], cols: usize, threads: usize) -> Result<Vec<u8>> {
    let rows = trits.len().checked_div(cols).unwrap_or(0);
    let bytes = row_bytes(cols);
    let mut out = memory::zeros::<u8>(rows * bytes)?;
    let first = First::default();
    pool::rows_mut(&mut out, bytes, cols.max(1), threads, |row, out| {
        let trits = &trits[row * cols..(row + 1) * cols];
        if are_ternary(trits) {
            pack_row(trits, out);
        } else {
            first.is(row);
        }
    });
    if let Some((row, col)) = first.within(cols, |at| !(-1..=1).contains(&trits[at])) {
        return Err(Error::data(format!(
            "a ternary code must be -1, 0 or 1, not {} (row {row}, column {col})",
            trits[row * cols + col]
        )));
    }
    Ok(out)
}

/// Unpack rows of `cols` codes each. Errors: code 3, padding that is not 1, a length that disagrees.
pub fn unpack(codes: &[u8], cols: usize, threads: usize) -> Result<Vec<i8>> {
    check_codes(codes, cols, usize::MAX, threads)?;
    each_row(codes, cols, threads, unpack_row)
}

/// Whether each code is zero, row by row. Errors: as [`unpack`].
pub fn sparsity_mask(codes: &[u8], cols: usize, threads: usize) -> Result<Vec<bool>> {
    check_codes(codes, cols, usize::MAX, threads)?;
    each_row(codes, cols, threads, mask_row)
}

/// `row(codes, out)` for each row of `cols` codes.
fn each_row<T: memory::Zero + Send>(
    codes: &[u8],
    cols: usize,
    threads: usize,
    row: fn(&[u8], &mut [T]),
) -> Result<Vec<T>> {
    let bytes = row_bytes(cols);
    let rows = codes.len().checked_div(bytes).unwrap_or(0);
    let mut out = memory::zeros::<T>(memory::area(rows, cols)?)?;
    pool::rows_mut(&mut out, cols, cols.max(1), threads, |at, out| {
        row(&codes[at * bytes..(at + 1) * bytes], out);
    });
    Ok(out)
}

/// The first row (or other part) that any thread has found to be wrong.
struct First(AtomicUsize);

impl Default for First {
    fn default() -> Self {
        First(AtomicUsize::new(usize::MAX))
    }
}

impl First {
    fn is(&self, row: usize) {
        self.0.fetch_min(row, Ordering::Relaxed);
    }

    fn row(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&row| row != usize::MAX)
    }

    /// Row and place in it of the first of its `width` elements that is `bad(index)`.
    fn within(&self, width: usize, bad: impl Fn(usize) -> bool) -> Option<(usize, usize)> {
        let row = self.row()?;
        (0..width).find(|at| bad(row * width + at)).map(|at| (row, at))
    }
}

/// Values or bytes that a thread looks at before it asks for more.
const LOOK: usize = 1 << 16;

/// Where row `row` of planes of `rows` rows each is, in words; more than one plane is named.
fn place(row: usize, rows: usize, planes: usize) -> String {
    if planes > 1 {
        format!("row {} of plane {}", row % rows, row / rows)
    } else {
        format!("row {row}")
    }
}

/// Refuse what no writer of this format produces: the code 3, or padding other than 1. Planes have `rows` rows.
pub fn check_codes(codes: &[u8], cols: usize, rows: usize, threads: usize) -> Result<()> {
    let bytes = row_bytes(cols);
    if bytes == 0 {
        return if codes.is_empty() {
            Ok(())
        } else {
            Err(Error::shape("codes must be empty when there are no columns"))
        };
    }
    if !codes.len().is_multiple_of(bytes) {
        return Err(Error::shape(format!(
            "{} bytes of codes are not whole rows of {bytes} bytes ({cols} columns)",
            codes.len()
        )));
    }
    let planes = codes.len() / bytes / rows.max(1);
    let (three, padding) = (First::default(), First::default());
    let mask = if cols.is_multiple_of(4) { 0 } else { 0xffu8 << (2 * (cols % 4)) };
    let some = (LOOK / bytes).max(1);
    pool::run(threads, (codes.len() / bytes).div_ceil(some), |item| {
        let rows = codes.chunks(some * bytes).nth(item).unwrap_or(&[]);
        if any_three(rows) {
            let at = rows.iter().position(|&byte| threes(byte) != 0).unwrap_or(0);
            three.is(item * some + at / bytes);
        }
        if mask != 0 {
            let mut last = rows.iter().skip(bytes - 1).step_by(bytes);
            if let Some(row) = last.position(|last| last & mask != 0x55 & mask) {
                padding.is(item * some + row);
            }
        }
    });
    if let Some((row, at)) = three.within(bytes, |at| threes(codes[at]) != 0) {
        let slot = threes(codes[row * bytes + at]).trailing_zeros() as usize / 2;
        return Err(Error::data(format!(
            "code 3 at {}, column {}: codes are 0, 1 or 2 (T + 1)",
            place(row, rows, planes),
            at * 4 + slot
        )));
    }
    match padding.row() {
        Some(row) => Err(Error::data(format!("{} has padding codes other than 1", place(row, rows, planes)))),
        None => Ok(()),
    }
}

/// The low bits of those codes of a byte that are 3.
#[inline(always)]
fn threes(byte: u8) -> u8 {
    byte & (byte >> 1) & 0x55
}

vectorized! {
    fn any_three(codes: &[u8]) -> bool = any_three_inlined;
}

#[inline(always)]
fn any_three_inlined(codes: &[u8]) -> bool {
    codes.iter().fold(0, |bad, &byte| bad | threes(byte)) != 0
}

vectorized! {
    /// Whether all are -1, 0 or 1.
    fn are_ternary(trits: &[i8]) -> bool = are_ternary_inlined;
}

#[inline(always)]
fn are_ternary_inlined(trits: &[i8]) -> bool {
    trits.iter().fold(0, |most, &t| most.max((t as u8).wrapping_add(1))) <= 2
}

/// Refuse scales that no writer produces: negative, NaN or infinite. Planes have `rows` rows.
pub fn check_scales(scales: &[u16], groups: usize, rows: usize, threads: usize) -> Result<()> {
    let first = First::default();
    pool::run(threads, scales.len().div_ceil(LOOK), |item| {
        if any_no_scale(scales.chunks(LOOK).nth(item).unwrap_or(&[])) {
            first.is(item);
        }
    });
    let Some(bad) =
        first.row().and_then(|item| (item * LOOK..scales.len()).find(|&at| is_no_scale(scales[at])))
    else {
        return Ok(());
    };
    Err(Error::data(format!(
        "scale {} at {}, group {}: scales are finite and not negative",
        f16_to_f32(scales[bad]),
        place(bad / groups.max(1), rows, scales.len() / groups.max(1) / rows.max(1)),
        bad % groups.max(1)
    )))
}

#[inline(always)]
fn is_no_scale(scale: u16) -> bool {
    (scale >= 0x7c00) & (scale != 0x8000)
}

vectorized! {
    fn any_no_scale(scales: &[u16]) -> bool = any_no_scale_inlined;
}

#[inline(always)]
fn any_no_scale_inlined(scales: &[u16]) -> bool {
    scales.iter().fold(0u16, |bad, &scale| bad | is_no_scale(scale) as u16) != 0
}

/// Codes and scales of one matrix in the canonical layout, borrowed and checked.
#[derive(Clone, Copy)]
pub struct Canonical<'a> {
    /// [planes, rows, ceil(cols / 4)]
    pub codes: &'a [u8],
    /// fp16 bits, [planes, rows, groups]
    pub scales: &'a [u16],
    pub planes: usize,
    pub rows: usize,
    pub cols: usize,
    /// Inputs that share a scale; 0 is the whole row.
    pub group_size: usize,
}

impl<'a> Canonical<'a> {
    /// Errors: lengths that disagree with the shape, code 3, bad padding, scales not finite or negative.
    pub fn new(
        codes: &'a [u8],
        scales: &'a [u16],
        planes: usize,
        (rows, cols): (usize, usize),
        group_size: usize,
        threads: usize,
    ) -> Result<Self> {
        check_group_size(group_size)?;
        if planes == 0 {
            return Err(Error::shape("there must be at least one plane"));
        }
        let groups = groups_of(cols, group_size);
        let times = |size: usize| planes.checked_mul(rows)?.checked_mul(size);
        let (Some(want_codes), Some(want_scales)) = (times(row_bytes(cols)), times(groups)) else {
            return Err(Error::shape(format!("{planes} planes of {rows} x {cols} are beyond any memory")));
        };
        if codes.len() != want_codes {
            return Err(Error::shape(format!(
                "codes have {} bytes, but {planes} planes of {rows} x {cols} take {want_codes}",
                codes.len()
            )));
        }
        if scales.len() != want_scales {
            return Err(Error::shape(format!(
                "there are {} scales, but {planes} planes of {rows} rows in {groups} groups take {want_scales}",
                scales.len()
            )));
        }
        check_codes(codes, cols, rows, threads)?;
        check_scales(scales, groups, rows, threads)?;
        Ok(Canonical { codes, scales, planes, rows, cols, group_size })
    }

    pub fn groups(&self) -> usize {
        groups_of(self.cols, self.group_size)
    }

    pub fn codes_row(&self, plane: usize, row: usize) -> &'a [u8] {
        let bytes = row_bytes(self.cols);
        let at = (plane * self.rows + row) * bytes;
        &self.codes[at..at + bytes]
    }

    pub fn scales_row(&self, plane: usize, row: usize) -> &'a [u16] {
        let groups = self.groups();
        let at = (plane * self.rows + row) * groups;
        &self.scales[at..at + groups]
    }

    /// One row: the sum over planes of scale * T in float32, planes in order.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        vectorized! {
            fn dequantize(matrix: &Canonical<'_>, row: usize, out: &mut [f32]) = Canonical::dequantize_inlined;
        }
        dequantize(self, row, out);
    }

    #[inline(always)]
    fn dequantize_inlined(&self, row: usize, out: &mut [f32]) {
        let width = if self.group_size == 0 { self.cols.max(1) } else { self.group_size };
        for plane in 0..self.planes {
            let (codes, scales) = (self.codes_row(plane, row), self.scales_row(plane, row));
            if width == 64 && self.cols.is_multiple_of(64) {
                // The usual groups again with a length known when compiled.
                let (out, _) = out.as_chunks_mut::<64>();
                for ((out, codes), &scale) in out.iter_mut().zip(codes.as_chunks::<16>().0).zip(scales) {
                    put_terms(codes, f16_to_f32(scale), plane == 0, out);
                }
                continue;
            }
            // Groups start at multiples of 4, so a byte never straddles two of them.
            let codes = codes.chunks(width.div_ceil(4));
            for ((out, codes), &scale) in out.chunks_mut(width).zip(codes).zip(scales) {
                put_terms(codes, f16_to_f32(scale), plane == 0, out);
            }
        }
    }

    /// float32 [rows, cols]. Errors: no memory for them.
    pub fn dequantize(&self, threads: usize) -> Result<Vec<f32>> {
        let mut out = memory::zeros::<f32>(memory::area(self.rows, self.cols)?)?;
        pool::rows_mut(&mut out, self.cols, self.cols * self.planes, threads, |row, out| {
            self.dequantize_row(row, out);
        });
        Ok(out)
    }
}

/// scale * T of each code: in place of what is in `out` if this is the `first` plane, else added to it.
#[inline(always)]
fn put_terms(codes: &[u8], scale: f32, first: bool, out: &mut [f32]) {
    let rest = &codes[out.len() / 16 * 4..];
    let mut sixteens = out.chunks_exact_mut(16);
    for (sixteen, four) in (&mut sixteens).zip(codes.chunks_exact(4)) {
        let word = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        for (s, value) in sixteen.iter_mut().enumerate() {
            let term = ((word >> (2 * s)) & 3) as i32 as f32 * scale - scale;
            *value = if first { term } else { *value + term };
        }
    }
    for (i, value) in sixteens.into_remainder().iter_mut().enumerate() {
        let term = ((rest[i / 4] >> (2 * (i % 4))) & 3) as f32 * scale - scale;
        *value = if first { term } else { *value + term };
    }
}

/// 0 (whole row), 32, 64, 128 or 256.
pub fn check_group_size(group_size: usize) -> Result<()> {
    if matches!(group_size, 0 | 32 | 64 | 128 | 256) {
        Ok(())
    } else {
        Err(Error::option(format!(
            "group_size must be 32, 64, 128, 256 or 0 (the whole row), not {group_size}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack_naive(trits: &[i8], cols: usize) -> Vec<u8> {
        let rows = trits.len().checked_div(cols).unwrap_or(0);
        let mut out = vec![0x55u8; rows * cols.div_ceil(4)];
        for r in 0..rows {
            for c in 0..cols {
                let byte = &mut out[r * cols.div_ceil(4) + c / 4];
                let shift = 2 * (c % 4);
                *byte = (*byte & !(3 << shift)) | (((trits[r * cols + c] + 1) as u8) << shift);
            }
        }
        out
    }

    proptest! {
        #[test]
        fn packs_as_the_naive_loop_and_back(rows in 0usize..6, cols in 1usize..70, seed in any::<u64>()) {
            let mut state = seed | 1;
            let trits: Vec<i8> = (0..rows * cols).map(|_| {
                state ^= state << 13; state ^= state >> 7; state ^= state << 17;
                (state % 3) as i8 - 1
            }).collect();
            let packed = pack(&trits, cols, 2).unwrap();
            prop_assert_eq!(&packed, &pack_naive(&trits, cols));
            prop_assert_eq!(unpack(&packed, cols, 2).unwrap(), trits);
        }
    }

    #[test]
    fn refuses_code_three_and_bad_padding() {
        let error = unpack(&[0x55, 0x55, 0x5d, 0x55], 8, 1).unwrap_err().to_string();
        assert!(error.contains("row 1, column 1"), "{error}");
        assert!(unpack(&[0x15], 3, 1).unwrap_err().to_string().contains("padding"));
        assert!(unpack(&[0x55, 0x55, 0x55], 8, 1).is_err());
        assert!(pack(&[0, 2], 2, 1).unwrap_err().to_string().contains("column 1"));
    }

    #[test]
    fn sums_planes_in_order() {
        let codes = pack(&[1, -1, 0, 1, 1, -1], 3, 1).unwrap();
        let half = |x: f32| crate::half::f32_to_f16(x);
        let scales = [half(2.0), half(0.5)];
        let matrix = Canonical::new(&codes, &scales, 2, (1, 3), 0, 1).unwrap();
        assert_eq!(matrix.dequantize(1).unwrap(), vec![2.5, -1.5, -0.5]);
        assert!(Canonical::new(&codes, &[0xbc00, 0], 2, (1, 3), 0, 1).is_err());
        assert!(Canonical::new(&codes, &[0x7c00, 0], 2, (1, 3), 0, 1).is_err());
    }
}
