//! What ternarizing a tensor cost: error, cosine, zeros, histograms.

use std::sync::Mutex;

use crate::error::{Error, Result};
use crate::half::f16_to_f32;
use crate::kernel::vectorized;
use crate::packing::{row_bytes, Canonical};
use crate::pool;
use crate::scratch::Scratch;
use crate::ternary::{band_rows, check_finite, Weights};

/// Bins of a histogram of w / mean|w| of the group over [-4, 4); what lies outside is in the end bins.
pub const BINS: usize = 128;

/// Sums over a tensor; `d` is the dequantized weight (float32 sum of planes).
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    pub weights: u64,
    /// Zero codes of each plane.
    pub zeros_per_plane: Vec<u64>,
    /// Weights whose codes are 0 in every plane.
    pub zeros_all_planes: u64,
    pub sum_w2: f64,
    pub sum_d2: f64,
    pub sum_wd: f64,
    pub sum_err2: f64,
    pub histogram_before: Vec<u64>,
    pub histogram_after: Vec<u64>,
}

impl Statistics {
    pub fn new(planes: usize) -> Self {
        Statistics {
            weights: 0,
            zeros_per_plane: vec![0; planes],
            zeros_all_planes: 0,
            sum_w2: 0.0,
            sum_d2: 0.0,
            sum_wd: 0.0,
            sum_err2: 0.0,
            histogram_before: vec![0; BINS],
            histogram_after: vec![0; BINS],
        }
    }

    /// Add another part's figures. Bands are merged in their order, so that the sums do not depend on threads.
    pub fn merge(&mut self, other: &Statistics) {
        self.weights += other.weights;
        self.zeros_all_planes += other.zeros_all_planes;
        self.sum_w2 += other.sum_w2;
        self.sum_d2 += other.sum_d2;
        self.sum_wd += other.sum_wd;
        self.sum_err2 += other.sum_err2;
        for (mine, theirs) in [
            (&mut self.zeros_per_plane, &other.zeros_per_plane),
            (&mut self.histogram_before, &other.histogram_before),
            (&mut self.histogram_after, &other.histogram_after),
        ] {
            mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        }
    }

    /// Statistics of one band: `w` float32 [rows, cols] as it was, `matrix` what it became.
    pub fn of_band(w: &[f32], matrix: &Canonical<'_>) -> Self {
        vectorized! { fn of_band(w: &[f32], matrix: &Canonical<'_>) -> Statistics = Statistics::of_band_inlined; }
        of_band(w, matrix)
    }

    #[inline(always)]
    fn of_band_inlined(w: &[f32], matrix: &Canonical<'_>) -> Self {
        let mut out = Statistics::new(matrix.planes);
        let cols = matrix.cols;
        let mut back = vec![0f32; cols];
        let mut before = [[0u32; BINS]; 4];
        let mut after = [[0u32; BINS]; 4];
        let width = if matrix.group_size == 0 { cols.max(1) } else { matrix.group_size };
        let mut bins = vec![0u8; width];
        for (row, w) in w.chunks(cols.max(1)).enumerate().take(matrix.rows) {
            matrix.dequantize_row(row, &mut back);
            out.weights += cols as u64;
            out.add_zeros(matrix, row);
            out.add_sums(w, &back);
            for (g, (w, d)) in w.chunks(width).zip(back.chunks(width)).enumerate() {
                let mean = sum_lanes(w, |x| x.abs() as f64) / w.len() as f64;
                let factor = if mean > 0.0 { (BINS as f64 / 8.0 / mean) as f32 } else { 0.0 };
                let factor = if factor.is_finite() { factor } else { f32::MAX };
                count_bins(w, factor, &mut bins[..w.len()], &mut before);
                if matrix.planes > 1 {
                    count_bins(d, factor, &mut bins[..d.len()], &mut after);
                    continue;
                }
                // One plane has but three values.
                let scale = f16_to_f32(matrix.scales_row(0, row)[g]);
                let (mut up, mut down) = (0u32, 0u32);
                for &d in d {
                    up += (d > 0.0) as u32;
                    down += (d < 0.0) as u32;
                }
                after[0][bin(scale, factor) as usize] += up;
                after[0][bin(-scale, factor) as usize] += down;
                after[0][bin(0.0, factor) as usize] += d.len() as u32 - up - down;
            }
        }
        for (total, parts) in [(&mut out.histogram_before, before), (&mut out.histogram_after, after)] {
            for (i, total) in total.iter_mut().enumerate() {
                *total = parts.iter().map(|part| part[i] as u64).sum();
            }
        }
        out
    }

    #[inline(always)]
    fn add_zeros(&mut self, matrix: &Canonical<'_>, row: usize) {
        let padding = (row_bytes(matrix.cols) * 4 - matrix.cols) as u64;
        let zero = |byte: u8| byte & !(byte >> 1) & 0x55;
        let mut all = 0u64;
        for plane in 0..matrix.planes {
            let codes = matrix.codes_row(plane, row);
            let zeros: u64 = codes.iter().map(|&b| zero(b).count_ones() as u64).sum();
            self.zeros_per_plane[plane] += zeros - padding;
            all = zeros;
        }
        if matrix.planes > 1 {
            let first = matrix.codes_row(0, row);
            all = (0..first.len())
                .map(|i| {
                    let both = (0..matrix.planes).fold(0x55, |m, p| m & zero(matrix.codes_row(p, row)[i]));
                    both.count_ones() as u64
                })
                .sum();
        }
        self.zeros_all_planes += all - padding;
    }

    #[inline(always)]
    fn add_sums(&mut self, w: &[f32], d: &[f32]) {
        const L: usize = 8;
        let (mut ww, mut dd, mut wd, mut ee) = ([0f64; L], [0f64; L], [0f64; L], [0f64; L]);
        let whole = w.len() / L * L;
        for (w, d) in w[..whole].chunks_exact(L).zip(d[..whole].chunks_exact(L)) {
            for l in 0..L {
                let (w, d) = (w[l] as f64, d[l] as f64);
                ww[l] += w * w;
                dd[l] += d * d;
                wd[l] += w * d;
                ee[l] += (w - d) * (w - d);
            }
        }
        for (l, (&w, &d)) in w[whole..].iter().zip(&d[whole..]).enumerate() {
            let (w, d) = (w as f64, d as f64);
            ww[l] += w * w;
            dd[l] += d * d;
            wd[l] += w * d;
            ee[l] += (w - d) * (w - d);
        }
        let total = |lanes: &[f64; L]| lanes.iter().sum::<f64>();
        self.sum_w2 += total(&ww);
        self.sum_d2 += total(&dd);
        self.sum_wd += total(&wd);
        self.sum_err2 += total(&ee);
    }
}

/// A sum in eight lanes, whose order is fixed whatever the CPU.
#[inline(always)]
pub fn sum_lanes(w: &[f32], value: impl Fn(f32) -> f64) -> f64 {
    let mut lanes = [0f64; 8];
    let (whole, rest) = w.split_at(w.len() / 8 * 8);
    for eight in whole.chunks_exact(8) {
        for (lane, &x) in lanes.iter_mut().zip(eight) {
            *lane += value(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += value(x);
    }
    lanes.iter().sum()
}

#[inline(always)]
fn bin(value: f32, factor: f32) -> u8 {
    let place = value * factor + (BINS / 2) as f32;
    let place = if place > 0.0 { place } else { 0.0 };
    let place = if place < (BINS - 1) as f32 { place } else { (BINS - 1) as f32 };
    // Above 256 the mantissa is place * 2^15: its whole part without a conversion, which would not vectorize.
    ((place + 256.0).to_bits() >> 15) as u8
}

/// Count values in bins: their bins first, which vectorizes, then four tables in turn, so that equal bins side
/// by side need not wait for each other.
#[inline(always)]
fn count_bins(values: &[f32], factor: f32, bins: &mut [u8], tables: &mut [[u32; BINS]; 4]) {
    for (place, &value) in bins.iter_mut().zip(values) {
        *place = bin(value, factor);
    }
    let [a, b, c, d] = tables;
    let mut fours = bins.chunks_exact(4);
    for four in &mut fours {
        a[four[0] as usize & (BINS - 1)] += 1;
        b[four[1] as usize & (BINS - 1)] += 1;
        c[four[2] as usize & (BINS - 1)] += 1;
        d[four[3] as usize & (BINS - 1)] += 1;
    }
    for &place in fours.remainder() {
        a[place as usize & (BINS - 1)] += 1;
    }
}

/// Statistics of a whole tensor [rows, cols]. Errors: lengths that disagree, weights not finite.
pub fn layer_statistics(weights: Weights<'_>, matrix: &Canonical<'_>, threads: usize) -> Result<Statistics> {
    let (rows, cols) = (matrix.rows, matrix.cols);
    if weights.len() != rows * cols {
        return Err(Error::shape(format!("{} weights are not {rows} x {cols}", weights.len())));
    }
    let band = band_rows(cols);
    let bands = if cols == 0 { 0 } else { rows.div_ceil(band) };
    let parts: Vec<Mutex<Option<Result<Statistics>>>> = (0..bands).map(|_| Mutex::new(None)).collect();
    pool::run(threads, bands, |index| {
        let first = index * band;
        let height = band.min(rows - first);
        let mut w = Scratch::<f32>::new(height * cols);
        weights.read(first * cols, &mut w);
        let part = check_finite(&w, cols, first).map(|()| {
            let (mut codes, mut scales) = (Vec::new(), Vec::new());
            for plane in 0..matrix.planes {
                for row in first..first + height {
                    codes.extend_from_slice(matrix.codes_row(plane, row));
                    scales.extend_from_slice(matrix.scales_row(plane, row));
                }
            }
            let part = Canonical { codes: &codes, scales: &scales, rows: height, ..*matrix };
            Statistics::of_band(&w, &part)
        });
        *parts[index].lock().unwrap_or_else(|p| p.into_inner()) = Some(part);
    });
    let mut out = Statistics::new(matrix.planes);
    for part in parts {
        if let Some(part) = part.into_inner().unwrap_or_else(|p| p.into_inner()) {
            out.merge(&part?);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ternary::{ternarize, Options};

    #[test]
    fn agrees_with_a_plain_loop() {
        let (rows, cols) = (5, 37);
        let w: Vec<f32> = (0..rows * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 20.0).collect();
        let options = Options { planes: 2, group_size: 32, ..Options::default() };
        let t = ternarize(Weights::F32(&w), (rows, cols), None, &options, 1).unwrap();
        let matrix = Canonical::new(&t.codes, &t.scales, 2, (rows, cols), 32).unwrap();
        let s = layer_statistics(Weights::F32(&w), &matrix, 2).unwrap();
        let d = matrix.dequantize(1);
        let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            w.iter().zip(&d).map(|(&a, &b)| f(a as f64, b as f64)).sum()
        };
        let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} against {b}");
        near(s.sum_w2, sum(&|a, _| a * a));
        near(s.sum_d2, sum(&|_, b| b * b));
        near(s.sum_wd, sum(&|a, b| a * b));
        near(s.sum_err2, sum(&|a, b| (a - b) * (a - b)));
        let trits = crate::packing::unpack(&t.codes, cols, 1).unwrap();
        let (one, two) = trits.split_at(rows * cols);
        let zeros = |t: &[i8]| t.iter().filter(|&&t| t == 0).count() as u64;
        assert_eq!(s.zeros_per_plane, [zeros(one), zeros(two)]);
        let all = one.iter().zip(two).filter(|(a, b)| **a == 0 && **b == 0).count() as u64;
        assert_eq!((s.weights, s.zeros_all_planes), ((rows * cols) as u64, all));
        assert_eq!(s.histogram_before.iter().sum::<u64>(), s.weights);
        assert_eq!(s.histogram_after.iter().sum::<u64>(), s.weights);
    }
}
