//! What ternarizing a tensor cost: error, cosine, zeros, histograms.

mod histogram;

use std::hint::black_box;
use std::ops::Range;
use std::sync::Mutex;

use histogram::{bin, find_bins_per_unit, Histogram};

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
    /// From the three others: w d = (w^2 + d^2 - (w - d)^2) / 2.
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
    /// A row dequantized.
    back: Scratch<f32>,
    /// What each group of a row is multiplied with to count bins.
    factors: Scratch<f32>,
    /// The bins of +scale and of -scale (times 2^16) of each group of a row.
    bins: Vec<u32>,
}

impl Tally {
    pub fn new(planes: usize) -> Self {
        Tally {
            found: Statistics::new(planes),
            before: Histogram::new(true),
            after: Histogram::new(planes > 1),
            back: Scratch::new(0),
            factors: Scratch::new(0),
            bins: Vec::new(),
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
        let Tally { found, before, after, back, factors, bins } = self;
        let cols = matrix.cols;
        back.resize(cols);
        factors.resize(matrix.groups());
        bins.resize(matrix.groups(), 0);
        let (back, factors, bins) = (&mut back[..], &mut factors[..], &mut bins[..]);
        let mut sums = [[0f64; L]; 3];
        let width = if matrix.group_size == 0 { cols.max(1) } else { matrix.group_size };
        for (row, w) in rows.zip(w.chunks(cols.max(1))) {
            matrix.dequantize_row(row, back);
            found.weights += cols as u64;
            for (w, d) in w.chunks(BLOCK).zip(back.chunks(BLOCK)) {
                add_block(&mut sums, w, d);
            }
            // One loop for each step, so that the groups' chains of operations overlap.
            find_bins_per_unit(w, width, factors);
            before.count(w, width, factors);
            if matrix.planes > 1 {
                found.add_zeros(matrix, row);
                after.count(back, width, factors);
                continue;
            }
            // One plane has but three values. Their bins in a loop of their own, which vectorizes.
            let scales = matrix.scales_row(0, row);
            for ((bins, &factor), &scale) in bins.iter_mut().zip(factors.iter()).zip(scales) {
                let scale = f16_to_f32(scale);
                *bins = bin(scale, factor) | bin(-scale, factor) << 16;
            }
            let mut kept = 0;
            let mut count = |(up, down): (u32, u32), bins: u32| {
                after.add(bins & 0xffff, up as u64);
                after.add(bins >> 16, down as u64);
                kept += (up + down) as u64;
            };
            let codes = matrix.codes_row(0, row);
            if width == 64 && cols.is_multiple_of(64) {
                // The usual groups again with a length known when compiled.
                for (codes, &bins) in codes.as_chunks::<16>().0.iter().zip(bins.iter()) {
                    count(signs(codes), bins);
                }
            } else {
                for (codes, &bins) in codes.chunks(width.div_ceil(4)).zip(bins.iter()) {
                    count(signs(codes), bins);
                }
            }
            let zeros = cols as u64 - kept;
            after.add(bin(0.0, 0.0), zeros);
            found.zeros_per_plane[0] += zeros;
            found.zeros_all_planes += zeros;
        }
        let [w2, d2, err2] = sums.map(|lanes| lanes.iter().sum::<f64>());
        found.sum_w2 += w2;
        found.sum_d2 += d2;
        found.sum_wd += (w2 + d2 - err2) / 2.0;
        found.sum_err2 += err2;
    }
}

impl Statistics {
    #[inline(always)]
    fn add_zeros(&mut self, matrix: &Canonical<'_>, row: usize) {
        let padding = (row_bytes(matrix.cols) * 4 - matrix.cols) as u64;
        let zero = |byte: u8| byte & !(byte >> 1) & 0x55;
        for plane in 0..matrix.planes {
            let codes = matrix.codes_row(plane, row);
            let zeros: u64 = codes.iter().map(|&b| zero(b).count_ones() as u64).sum();
            self.zeros_per_plane[plane] += zeros - padding;
        }
        let all: u64 = (0..row_bytes(matrix.cols))
            .map(|i| {
                let both = (0..matrix.planes).fold(0x55, |m, p| m & zero(matrix.codes_row(p, row)[i]));
                both.count_ones() as u64
            })
            .sum();
        self.zeros_all_planes += all - padding;
    }
}

/// Weights whose squares are summed in float32 lanes before they go to float64.
const BLOCK: usize = 1024;

/// Lanes of the float32 sums; their order is fixed whatever the CPU. Two vectors of sixteen for each sum: with one,
/// every addition would wait for the one before.
const L: usize = 32;

/// Add w^2, d^2 and (w - d)^2 of at most [`BLOCK`] weights: float32 in lanes of at most 32 terms, then float64;
/// float64 throughout where float32 has not the range for squares.
#[inline(always)]
fn add_block(sums: &mut [[f64; L]; 3], w: &[f32], d: &[f32]) {
    let mut lanes = [[0f32; L]; 3];
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
    // Lanes come to their sums through a `black_box`: else the compiler, looking ahead, takes the vectors of the
    // loop before apart.
    let lanes = lanes.map(black_box);
    let size = folded(&std::array::from_fn(|l| lanes[0][l] + lanes[0][l + L / 2]));
    if size > 1e-20 && size < 1e30 {
        for (sums, lanes) in sums.iter_mut().zip(&lanes) {
            *sums = black_box(widened(*sums, lanes));
        }
        return;
    }
    for (&w, &d) in w.iter().zip(d) {
        let (w, d) = (w as f64, d as f64);
        let terms = [w * w, d * d, (w - d) * (w - d)];
        sums.iter_mut().zip(terms).for_each(|(sums, term)| sums[0] += term);
    }
}

/// The sum of sixteen lanes, in pairs.
#[inline(always)]
fn folded(lanes: &[f32; 16]) -> f32 {
    let four: [f32; 4] = std::array::from_fn(|l| (lanes[l] + lanes[l + 8]) + (lanes[l + 4] + lanes[l + 12]));
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Add float32 lanes to float64 ones.
#[inline(always)]
fn widened(mut sums: [f64; L], lanes: &[f32; L]) -> [f64; L] {
    for l in 0..L {
        sums[l] += lanes[l] as f64;
    }
    sums
}

#[inline(always)]
fn add_squares([ww, dd, ee]: &mut [[f32; L]; 3], w: &[f32; L], d: &[f32; L]) {
    // One loop a sum: together they would be vectorized across the sums, with a shuffle for every value.
    for l in 0..L {
        ww[l] += w[l] * w[l];
    }
    for l in 0..L {
        dd[l] += d[l] * d[l];
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
    let mut lanes = black_box(lanes);
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
        for cols in [1, 37, 64, 100, 128, 1030, 2200] {
            for (planes, group_size) in [(1, 64), (1, 32), (1, 0), (2, 32), (2, 64), (3, 0)] {
                compare_with_a_plain_loop(cols, planes, group_size);
            }
        }
    }

    fn compare_with_a_plain_loop(cols: usize, planes: usize, group_size: usize) {
        let rows = 5;
        let w: Vec<f32> = (0..rows * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 20.0).collect();
        let options = Options { planes, group_size, ..Options::default() };
        let t = ternarize(Weights::F32(&w), (rows, cols), None, &options, 1).unwrap();
        let matrix = Canonical::new(&t.codes, &t.scales, planes, (rows, cols), group_size, 1).unwrap();
        let s = layer_statistics(Weights::F32(&w), &matrix, 2).unwrap();
        let d = matrix.dequantize(1).unwrap();
        let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            w.iter().zip(&d).map(|(&a, &b)| f(a as f64, b as f64)).sum()
        };
        let near = |a: f64, b: f64| {
            assert!((a - b).abs() <= 1e-6 * b.abs(), "{a} against {b} ({cols}, {planes}, {group_size})")
        };
        near(s.sum_w2, sum(&|a, _| a * a));
        near(s.sum_d2, sum(&|_, b| b * b));
        near(s.sum_wd, sum(&|a, b| a * b));
        near(s.sum_err2 + 1.0, sum(&|a, b| (a - b) * (a - b)) + 1.0);
        let trits = crate::packing::unpack(&t.codes, cols, 1).unwrap();
        let plane: Vec<&[i8]> = trits.chunks(rows * cols).collect();
        let zeros = |t: &[i8]| t.iter().filter(|&&t| t == 0).count() as u64;
        assert_eq!(s.zeros_per_plane, plane.iter().map(|t| zeros(t)).collect::<Vec<_>>());
        let all = (0..rows * cols).filter(|&i| plane.iter().all(|t| t[i] == 0)).count() as u64;
        assert_eq!((s.weights, s.zeros_all_planes), ((rows * cols) as u64, all));
        let (mut before, mut after) = (vec![0; BINS], vec![0; BINS]);
        let width = if group_size == 0 { cols } else { group_size };
        for (w, d) in w.chunks(cols).zip(d.chunks(cols)) {
            for (w, d) in w.chunks(width).zip(d.chunks(width)) {
                let mean = w.iter().map(|w| w.abs() as f64).sum::<f64>() / w.len() as f64;
                let place = |x: f32, counts: &mut Vec<u64>| {
                    let unit = x as f64 / mean * (BINS / 8) as f64 + (BINS / 2) as f64;
                    counts[unit.clamp(0.0, (BINS - 1) as f64) as usize] += 1;
                };
                w.iter().for_each(|&x| place(x, &mut before));
                d.iter().for_each(|&x| place(x, &mut after));
            }
        }
        // A weight on the edge of a bin may fall on either side of it in float32.
        for (found, expected) in [(&s.histogram_before, &before), (&s.histogram_after, &after)] {
            assert_eq!(found.iter().sum::<u64>(), s.weights);
            let moved: u64 = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).sum();
            assert!(moved * 20 <= s.weights, "{moved} moved ({cols}, {planes}, {group_size})");
        }
    }
}
