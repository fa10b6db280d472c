//! Latent weights of training -> codes, and what the codes stand for.
//!
//! A latent's code is that of the cell it lies in: every group has ascending borders on |latent|, and each
//! border that is passed adds a step to the code of every plane. Shapes: latents [rows, cols]; borders
//! [rows, groups, K]; steps [rows, groups, K, planes]; codes [planes, rows, cols] of -1, 0 and 1.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::kernel::vectorized;
use crate::packing::groups_of;
use crate::pool;

const LANES: usize = 64;

/// Shape of a trained matrix: `group` inputs share a scale (0: the whole row).
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub rows: usize,
    pub cols: usize,
    pub group: usize,
    pub planes: usize,
}

impl Shape {
    fn width(&self) -> usize {
        if self.group == 0 {
            self.cols.max(1)
        } else {
            self.group
        }
    }

    fn groups(&self) -> usize {
        groups_of(self.cols, self.group)
    }

    fn check(&self, what: &str, given: usize, wanted: usize) -> Result<()> {
        if given == wanted {
            return Ok(());
        }
        Err(Error::shape(format!("{what} must have {wanted} values, not {given}")))
    }
}

/// Codes of the cells that the latents lie in; returns how many of them are zero.
pub fn codes(
    latent: &[f32],
    shape: Shape,
    borders: &[f32],
    steps: &[i8],
    threads: usize,
    out: &mut [i8],
) -> Result<u64> {
    let Shape { rows, cols, planes, .. } = shape;
    let (width, groups) = (shape.width(), shape.groups());
    let levels = borders.len().checked_div(rows * groups).unwrap_or(0);
    shape.check("latent", latent.len(), rows * cols)?;
    shape.check("borders", borders.len(), rows * groups * levels)?;
    shape.check("steps", steps.len(), borders.len() * planes)?;
    shape.check("codes", out.len(), planes * rows * cols)?;
    let zeros = AtomicU64::new(0);
    pool::rows_mut(out, cols, cols * levels.max(1), threads, |index, out| {
        let (plane, row) = (index / rows, index % rows);
        let latent = &latent[row * cols..(row + 1) * cols];
        let mut found = 0;
        for (g, (latent, out)) in latent.chunks(width).zip(out.chunks_mut(width)).enumerate() {
            let at = (row * groups + g) * levels;
            let (borders, steps) = (&borders[at..at + levels], &steps[at * planes..(at + levels) * planes]);
            for (latent, out) in latent.chunks(LANES).zip(out.chunks_mut(LANES)) {
                found += u64::from(code_some(latent, borders, steps, planes, plane, out));
            }
        }
        zeros.fetch_add(found, Ordering::Relaxed);
    });
    Ok(zeros.into_inner())
}

/// One plane with `nonzero` codes: those of the latents that are largest against their group's border
/// (`middles` [rows, groups]), ties included; the share of the border where they begin stays within
/// 0.001 and 1.999.
pub fn largest(
    latent: &[f32],
    shape: Shape,
    middles: &[f32],
    nonzero: usize,
    threads: usize,
    out: &mut [i8],
) -> Result<()> {
    let Shape { rows, cols, .. } = shape;
    let (width, groups) = (shape.width(), shape.groups());
    shape.check("latent", latent.len(), rows * cols)?;
    shape.check("borders", middles.len(), rows * groups)?;
    shape.check("codes", out.len(), rows * cols)?;
    if latent.is_empty() {
        return Ok(());
    }
    let from_below = latent.len() - nonzero.clamp(1, latent.len());
    let of_row = |row: usize, each: &mut dyn FnMut(&[f32])| {
        let mut ratios = [0.0f32; LANES];
        for (g, latent) in latent[row * cols..(row + 1) * cols].chunks(width).enumerate() {
            for latent in latent.chunks(LANES) {
                ratios_of(latent, middles[row * groups + g], &mut ratios);
                each(&ratios[..latent.len()]);
            }
        }
    };
    // The order statistic by its bits: non-negative floats are ordered as their bits are.
    let pieces = threads.min(rows);
    let counted = |high: Option<u32>| {
        let mut counts = vec![0u32; pieces << 16];
        pool::chunks_mut(&mut counts, 1 << 16, threads, |piece, counts| {
            for row in (rows * piece / pieces)..(rows * (piece + 1) / pieces) {
                of_row(row, &mut |ratios| match high {
                    None => ratios.iter().for_each(|r| counts[(r.to_bits() >> 16) as usize] += 1),
                    Some(high) => ratios
                        .iter()
                        .map(|r| r.to_bits())
                        .filter(|bits| bits >> 16 == high)
                        .for_each(|bits| counts[(bits & 0xffff) as usize] += 1),
                });
            }
        });
        (0..1usize << 16)
            .map(move |bin| (0..pieces).map(|piece| u64::from(counts[(piece << 16) + bin])).sum::<u64>())
    };
    let find = |bins: &mut dyn Iterator<Item = u64>, mut left: u64| {
        for (bin, count) in bins.enumerate() {
            if left < count {
                return (bin as u32, left);
            }
            left -= count;
        }
        (0xffff, 0) // NaN alone lies behind the last bin
    };
    let (high, left) = find(&mut counted(None), from_below as u64);
    let (low, _) = find(&mut counted(Some(high)), left);
    let border = f64::from(f32::from_bits(high << 16 | low)).clamp(0.001, 1.999) as f32;
    pool::rows_mut(out, cols, cols, threads, |row, out| {
        let latent = &latent[row * cols..(row + 1) * cols];
        for (g, (latent, out)) in latent.chunks(width).zip(out.chunks_mut(width)).enumerate() {
            code_above(latent, middles[row * groups + g], border, out);
        }
    });
    Ok(())
}

/// What the codes stand for, float32 [rows, cols]: the sum over planes, in order, of scale times code.
pub fn decode(codes: &[i8], scales: &[f32], shape: Shape, threads: usize, out: &mut [f32]) -> Result<()> {
    let Shape { rows, cols, planes, .. } = shape;
    let (width, groups) = (shape.width(), shape.groups());
    shape.check("codes", codes.len(), planes * rows * cols)?;
    shape.check("scales", scales.len(), planes * rows * groups)?;
    shape.check("the weight", out.len(), rows * cols)?;
    pool::rows_mut(out, cols, cols * planes, threads, |row, out| {
        for plane in 0..planes {
            let codes = &codes[(plane * rows + row) * cols..][..cols];
            let scales = &scales[(plane * rows + row) * groups..][..groups];
            for ((out, codes), &scale) in out.chunks_mut(width).zip(codes.chunks(width)).zip(scales) {
                if plane == 0 {
                    scale_codes(codes, scale, out);
                } else {
                    add_scaled(codes, scale, out);
                }
            }
        }
    });
    Ok(())
}

/// Sums over each group of gradient times code: float32 [planes, rows, groups].
pub fn group_sums(
    gradient: &[f32],
    codes: &[i8],
    shape: Shape,
    threads: usize,
    out: &mut [f32],
) -> Result<()> {
    let Shape { rows, cols, planes, .. } = shape;
    let (width, groups) = (shape.width(), shape.groups());
    shape.check("the gradient", gradient.len(), rows * cols)?;
    shape.check("codes", codes.len(), planes * rows * cols)?;
    shape.check("the sums", out.len(), planes * rows * groups)?;
    pool::rows_mut(out, groups, cols, threads, |index, out| {
        let gradient = &gradient[index % rows * cols..][..cols];
        let codes = &codes[index * cols..][..cols];
        for ((out, gradient), codes) in out.iter_mut().zip(gradient.chunks(width)).zip(codes.chunks(width)) {
            *out = dot(gradient, codes);
        }
    });
    Ok(())
}

vectorized! {
    fn code_some(
        latent: &[f32], borders: &[f32], steps: &[i8], planes: usize, plane: usize, out: &mut [i8],
    ) -> u32 = code_some_inner;
}

#[inline(always)]
fn code_some_inner(
    latent: &[f32],
    borders: &[f32],
    steps: &[i8],
    planes: usize,
    plane: usize,
    out: &mut [i8],
) -> u32 {
    let mut sums = [0i32; LANES];
    for (k, &border) in borders.iter().enumerate() {
        let step = i32::from(steps[k * planes + plane]);
        for (sum, &l) in sums.iter_mut().zip(latent) {
            *sum += if l.abs() > border { step } else { 0 };
        }
    }
    let mut zeros = 0;
    for ((out, &sum), &l) in out.iter_mut().zip(&sums).zip(latent) {
        *out = (if l < 0.0 { -sum } else { sum }) as i8;
        zeros += u32::from(sum == 0);
    }
    zeros
}

vectorized! {
    fn ratios_of(latent: &[f32], middle: f32, out: &mut [f32; LANES]) = ratios_inner;
}

#[inline(always)]
fn ratios_inner(latent: &[f32], middle: f32, out: &mut [f32; LANES]) {
    for (out, &l) in out.iter_mut().zip(latent) {
        *out = if middle > 0.0 { l.abs() / middle } else { 0.0 };
    }
}

vectorized! {
    fn code_above(latent: &[f32], middle: f32, border: f32, out: &mut [i8]) = code_above_inner;
}

#[inline(always)]
fn code_above_inner(latent: &[f32], middle: f32, border: f32, out: &mut [i8]) {
    for (out, &l) in out.iter_mut().zip(latent) {
        let above = middle > 0.0 && l.abs() / middle >= border;
        *out = i8::from(above && l > 0.0) - i8::from(above && l < 0.0);
    }
}

vectorized! {
    fn scale_codes(codes: &[i8], scale: f32, out: &mut [f32]) = scale_codes_inner;
}

#[inline(always)]
fn scale_codes_inner(codes: &[i8], scale: f32, out: &mut [f32]) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = f32::from(code) * scale;
    }
}

vectorized! {
    fn add_scaled(codes: &[i8], scale: f32, out: &mut [f32]) = add_scaled_inner;
}

#[inline(always)]
fn add_scaled_inner(codes: &[i8], scale: f32, out: &mut [f32]) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out += f32::from(code) * scale;
    }
}

vectorized! {
    fn dot(gradient: &[f32], codes: &[i8]) -> f32 = dot_inner;
}

/// Sixteen sums side by side, whatever the machine: the same rounding everywhere.
#[inline(always)]
fn dot_inner(gradient: &[f32], codes: &[i8]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (mut gradient, mut codes) = (gradient.chunks_exact(16), codes.chunks_exact(16));
    for (gradient, codes) in gradient.by_ref().zip(codes.by_ref()) {
        for i in 0..16 {
            sums[i] += gradient[i] * f32::from(codes[i]);
        }
    }
    for ((sum, &g), &code) in sums.iter_mut().zip(gradient.remainder()).zip(codes.remainder()) {
        *sum += g * f32::from(code);
    }
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::numbers;
    use proptest::prelude::*;

    fn shapes() -> impl Strategy<Value = (Shape, u64)> {
        (1usize..6, 1usize..150, prop::sample::select(vec![0usize, 32, 64, 128]), 1usize..4, any::<u64>())
            .prop_map(|(rows, cols, group, planes, seed)| (Shape { rows, cols, group, planes }, seed))
    }

    proptest! {
        #[test]
        fn codes_are_those_of_the_cell((shape, seed) in shapes(), levels in 0usize..14, threads in 1usize..4) {
            let Shape { rows, cols, planes, .. } = shape;
            let groups = shape.groups();
            let latent = numbers(rows * cols, seed);
            let mut borders = numbers(rows * groups * levels, !seed);
            borders.iter_mut().for_each(|b| *b = b.abs());
            let steps: Vec<i8> =
                numbers(borders.len() * planes, seed ^ 7).iter().map(|x| (x * 3.0) as i8).collect();
            let mut out = vec![9i8; planes * rows * cols];
            let zeros = codes(&latent, shape, &borders, &steps, threads, &mut out).unwrap();
            let mut count = 0;
            for p in 0..planes {
                for r in 0..rows {
                    for c in 0..cols {
                        let (l, at) = (latent[r * cols + c], (r * groups + c / shape.width()) * levels);
                        let sum: i32 = (0..levels)
                            .filter(|k| l.abs() > borders[at + k])
                            .map(|k| i32::from(steps[(at + k) * planes + p]))
                            .sum();
                        let code = if l < 0.0 { -sum } else { sum } as i8;
                        prop_assert_eq!(out[(p * rows + r) * cols + c], code);
                        count += u64::from(code == 0);
                    }
                }
            }
            prop_assert_eq!(zeros, count);
        }

        #[test]
        fn the_largest_are_as_many_as_asked((shape, seed) in shapes(), share in 0.0f64..1.0, threads in 1usize..4) {
            let shape = Shape { planes: 1, ..shape };
            let Shape { rows, cols, .. } = shape;
            let latent = numbers(rows * cols, seed);
            let middles: Vec<f32> = numbers(rows * shape.groups(), !seed).iter().map(|m| m.max(0.0)).collect();
            let mut out = vec![9i8; latent.len()];
            let nonzero = (share * latent.len() as f64) as usize;
            largest(&latent, shape, &middles, nonzero, threads, &mut out).unwrap();
            let ratio = |i: usize| {
                let middle = middles[i / cols * shape.groups() + i % cols / shape.width()];
                if middle > 0.0 { latent[i].abs() / middle } else { 0.0 }
            };
            let mut sorted: Vec<f32> = (0..latent.len()).map(ratio).collect();
            sorted.sort_by(f32::total_cmp);
            let border = sorted[latent.len() - nonzero.max(1)].clamp(0.001, 1.999);
            for i in 0..latent.len() {
                let code = if ratio(i) >= border { latent[i].signum() as i8 } else { 0 };
                prop_assert_eq!(out[i], code, "at {}", i);
            }
        }

        #[test]
        fn weights_and_sums_are_those_of_plain_loops((shape, seed) in shapes(), threads in 1usize..4) {
            let Shape { rows, cols, planes, .. } = shape;
            let groups = shape.groups();
            let codes: Vec<i8> = numbers(planes * rows * cols, seed).iter().map(|x| (x * 2.0) as i8).collect();
            let scales = numbers(planes * rows * groups, !seed);
            let gradient = numbers(rows * cols, seed ^ 3);
            let (mut weight, mut sums) = (vec![9.0; rows * cols], vec![9.0; planes * rows * groups]);
            decode(&codes, &scales, shape, threads, &mut weight).unwrap();
            group_sums(&gradient, &codes, shape, threads, &mut sums).unwrap();
            let mut wanted = vec![0.0f64; sums.len()];
            for r in 0..rows {
                for c in 0..cols {
                    let mut value = None;
                    for p in 0..planes {
                        let at = (p * rows + r) * groups + c / shape.width();
                        let code = f32::from(codes[(p * rows + r) * cols + c]);
                        value = Some(value.map_or(code * scales[at], |v: f32| v + code * scales[at]));
                        wanted[at] += f64::from(gradient[r * cols + c]) * f64::from(code);
                    }
                    prop_assert_eq!(weight[r * cols + c], value.unwrap());
                }
            }
            for (sum, wanted) in sums.iter().zip(&wanted) {
                prop_assert!((f64::from(*sum) - wanted).abs() <= 1e-5 * (1.0 + wanted.abs()));
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let shape = Shape { rows: 2, cols: 4, group: 0, planes: 1 };
        assert!(codes(&[0.0; 7], shape, &[0.0; 2], &[1; 2], 1, &mut [0; 8]).is_err());
        assert!(codes(&[0.0; 8], shape, &[0.0; 3], &[1; 3], 1, &mut [0; 8]).is_err());
        assert!(largest(&[0.0; 8], shape, &[0.0; 3], 1, 1, &mut [0; 8]).is_err());
        assert!(decode(&[0; 8], &[0.0; 3], shape, 1, &mut [0.0; 8]).is_err());
        assert!(group_sums(&[0.0; 8], &[0; 8], shape, 1, &mut [0.0; 3]).is_err());
    }
}
