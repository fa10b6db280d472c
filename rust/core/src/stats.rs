//! What ternarizing a tensor cost: error, cosine, zeros, histograms.

mod histogram;

use std::hint::black_box;
use std::ops::Range;
use std::sync::Mutex;

use histogram::{bin, bins_per_unit, Histogram};

use crate::error::{Error, Result};
use crate::half::f16_to_f32;
use crate::kernel::vectorized;
use crate::packing::{row_bytes, Canonical};
use crate::pool;
use crate::scratch::Scratch;
use crate::ternary::{band_rows, check_finite, part_rows, Weights};

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
}

/// The figures of a band that comes in parts; counts are folded together once, at its end.
pub struct Tally {
    found: Statistics,
    before: Histogram,
    after: Histogram,
}

impl Tally {
    pub fn new(planes: usize) -> Self {
        Tally {
            found: Statistics::new(planes),
            before: Histogram::new(true),
            after: Histogram::new(planes > 1),
        }
    }

    /// Add rows: `w` float32 [rows, cols] as it was, `matrix` what it became. Summed by parts of [`part_rows`] rows,
    /// so that a band that comes in such parts gives the same sums.
    pub fn add(&mut self, w: &[f32], matrix: &Canonical<'_>) {
        let height = part_rows(matrix.cols);
        for first in (0..matrix.rows).step_by(height) {
            let rows = first..(first + height).min(matrix.rows);
            self.add_part(&w[first * matrix.cols..rows.end * matrix.cols], matrix, rows);
        }
    }

    pub fn finish(mut self) -> Statistics {
        self.before.total(&mut self.found.histogram_before);
        self.after.total(&mut self.found.histogram_after);
        self.found
    }

    fn add_part(&mut self, w: &[f32], matrix: &Canonical<'_>, rows: Range<usize>) {
        vectorized! {
            fn add_part(tally: &mut Tally, w: &[f32], matrix: &Canonical<'_>, rows: Range<usize>) =
                Tally::add_part_inlined;
        }
        add_part(self, w, matrix, rows)
    }

    #[inline(always)]
    fn add_part_inlined(&mut self, w: &[f32], matrix: &Canonical<'_>, rows: Range<usize>) {
        let mut out = Statistics::new(matrix.planes);
        let Tally { found, before, after } = self;
        let cols = matrix.cols;
        let mut back = vec![0f32; cols];
        let mut factors = vec![0f32; matrix.groups()];
        let mut sums = [[0f64; L]; 4];
        let width = if matrix.group_size == 0 { cols.max(1) } else { matrix.group_size };
        for (row, w) in rows.zip(w.chunks(cols.max(1))) {
            matrix.dequantize_row(row, &mut back);
            out.weights += cols as u64;
            for (w, d) in w.chunks(BLOCK).zip(back.chunks(BLOCK)) {
                add_block(&mut sums, w, d);
            }
            // One loop for each step, so that the groups' chains of operations overlap.
            for (factor, w) in factors.iter_mut().zip(w.chunks(width)) {
                *factor = match <&[f32; 64]>::try_from(w) {
                    // The usual group again with a length known when compiled.
                    Ok(w) => bins_per_unit(w),
                    _ => bins_per_unit(w),
                };
            }
            for (w, &factor) in w.chunks(width).zip(&factors) {
                before.count(w, factor);
            }
            if matrix.planes > 1 {
                out.add_zeros(matrix, row);
                for (d, &factor) in back.chunks(width).zip(&factors) {
                    after.count(d, factor);
                }
                continue;
            }
            // One plane has but three values.
            let codes = matrix.codes_row(0, row).chunks(width.div_ceil(4));
            let mut kept = 0;
            for ((codes, &factor), &scale) in codes.zip(&factors).zip(matrix.scales_row(0, row)) {
                let (up, down) = match <&[u8; 16]>::try_from(codes) {
                    Ok(codes) => signs(codes),
                    _ => signs(codes),
                };
                let scale = f16_to_f32(scale);
                after.add(bin(scale, factor), up as u64);
                after.add(bin(-scale, factor), down as u64);
                kept += (up + down) as u64;
            }
            let zeros = cols as u64 - kept;
            after.add(bin(0.0, 0.0), zeros);
            out.zeros_per_plane[0] += zeros;
            out.zeros_all_planes += zeros;
        }
        [out.sum_w2, out.sum_d2, out.sum_wd, out.sum_err2] = sums.map(|lanes| lanes.iter().sum());
        found.merge(&out);
    }
}

impl Statistics {
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
}

/// Weights whose squares are summed in float32 lanes before they go to float64.
const BLOCK: usize = 512;

/// Lanes of the float32 sums; their order is fixed whatever the CPU.
const L: usize = 16;

/// Add w^2, d^2, w d and (w - d)^2 of at most [`BLOCK`] weights: float32 in sixteen lanes of at most 32 terms,
/// then float64; float64 throughout where float32 has not the range for squares.
#[inline(always)]
fn add_block(sums: &mut [[f64; L]; 4], w: &[f32], d: &[f32]) {
    let mut lanes = [[0f32; L]; 4];
    let (whole, rest) = w.as_chunks::<L>();
    let (whole_d, rest_d) = d.as_chunks::<L>();
    for (w, d) in whole.iter().zip(whole_d) {
        add_squares(&mut lanes, w, d);
    }
    if !rest.is_empty() {
        let (mut w, mut d) = ([0f32; L], [0f32; L]);
        w[..rest.len()].copy_from_slice(rest);
        d[..rest.len()].copy_from_slice(rest_d);
        add_squares(&mut lanes, &w, &d);
    }
    let lanes = black_box(lanes);
    let size = folded(&lanes[0]);
    if size > 1e-20 && size < 1e30 {
        for (sums, lanes) in sums.iter_mut().zip(&lanes) {
            for l in 0..L {
                sums[l] += lanes[l] as f64;
            }
        }
        return;
    }
    for (&w, &d) in w.iter().zip(d) {
        let (w, d) = (w as f64, d as f64);
        let terms = [w * w, d * d, w * d, (w - d) * (w - d)];
        sums.iter_mut().zip(terms).for_each(|(sums, term)| sums[0] += term);
    }
}

/// The sum of lanes, in pairs. Lanes come here through a [`black_box`]: else the compiler, looking ahead to this
/// sum, takes the vectors of the loop before it apart.
#[inline(always)]
fn folded(lanes: &[f32; L]) -> f32 {
    let four: [f32; 4] = std::array::from_fn(|l| (lanes[l] + lanes[l + 8]) + (lanes[l + 4] + lanes[l + 12]));
    (four[0] + four[2]) + (four[1] + four[3])
}

#[inline(always)]
fn add_squares([ww, dd, wd, ee]: &mut [[f32; L]; 4], w: &[f32; L], d: &[f32; L]) {
    // One loop a sum: together they would be vectorized across the sums, with a shuffle for every value.
    for l in 0..L {
        ww[l] += w[l] * w[l];
    }
    for l in 0..L {
        dd[l] += d[l] * d[l];
    }
    for l in 0..L {
        wd[l] += w[l] * d[l];
    }
    for l in 0..L {
        ee[l] += (w[l] - d[l]) * (w[l] - d[l]);
    }
}

/// Codes 2 and codes 0 of a group; padding is neither.
#[inline(always)]
fn signs(codes: &[u8]) -> (u32, u32) {
    let (words, rest) = codes.as_chunks::<8>();
    let (mut up, mut down) = (0, 0);
    let mut add = |x: u64, used: u64| {
        up += (x & 0xaaaa_aaaa_aaaa_aaaa).count_ones();
        down += (!(x | x >> 1) & used).count_ones();
    };
    words.iter().for_each(|word| add(u64::from_le_bytes(*word), 0x5555_5555_5555_5555));
    rest.iter().for_each(|&byte| add(byte as u64, 0x55));
    (up, down)
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
            let mut tally = Tally::new(matrix.planes);
            tally.add(&w, &part);
            tally.finish()
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
        let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-6 * b.abs(), "{a} against {b}");
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
