//! Scales of a group with several planes: codes by the nearest point and scales by least squares, in turn.

use std::sync::Mutex;

use super::{nearest, turned, Lanes, LANES};
use crate::error::{Error, Result};
use crate::half::{f16_to_f32, f32_to_f16, F16_MAX};
use crate::kernel::vectorized;
use crate::pool;

/// More planes than this have more points than are worth trying.
const MOST_PLANES: usize = 3;

/// A scale is drawn to what it was by this share of the mean diagonal of its least squares.
const RIDGE: f64 = 1e-4;

/// Improve `scales` [R, P] (values of fp16, 1 to 3 planes) for `weights` [R, G], whose squared errors count with
/// `importance` [G]: `rounds` times each weight takes the nearest of the 3^P sums of planes, the first of equals
/// (none with a nonzero code in a plane whose scale is 0), and the scales are solved for by ridge least squares
/// and rounded to fp16. A plane without a nonzero code keeps its scale.
///
/// Errors: lengths that do not fit, more than three planes, a scale beyond fp16.
pub fn alternate(
    weights: &[f32],
    importance: &[f32],
    scales: &mut [f32],
    planes: usize,
    rounds: usize,
    threads: usize,
) -> Result<()> {
    let width = importance.len();
    if !(1..=MOST_PLANES).contains(&planes) {
        return Err(Error::option(format!("planes must be from 1 to {MOST_PLANES}, not {planes}")));
    }
    let rows = scales.len() / planes;
    if scales.len() != rows * planes || weights.len() != rows * width {
        return Err(Error::shape("weights, importance and scales of a group do not fit each other"));
    }
    if rows == 0 || width == 0 {
        return Ok(());
    }
    let blocks: Vec<_> = scales.chunks_mut(LANES * planes).map(|block| Mutex::new((block, 0f64))).collect();
    pool::run(threads, blocks.len(), |number| {
        let mut block = blocks[number].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (scales, beyond) = &mut *block;
        let first = number * LANES;
        let rows = scales.len() / planes;
        let across = turned(&weights[first * width..(first + rows) * width], width);
        for _ in 0..rounds {
            let found = match planes {
                1 => sums_1(&across, importance, scales),
                2 => sums_2(&across, importance, scales),
                _ => sums_3(&across, importance, scales),
            };
            for (lane, scales) in scales.chunks_exact_mut(planes).enumerate() {
                solve(&found, lane, scales, beyond);
            }
            if *beyond > 0.0 {
                return;
            }
        }
    });
    let beyond = blocks
        .into_iter()
        .map(|block| block.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).1)
        .fold(0.0, f64::max);
    if beyond > 0.0 {
        return Err(Error::data(format!("a group needs the scale {beyond}, above float16's {F16_MAX}")));
    }
    Ok(())
}

/// Sums over a group of sixteen rows: importance t_p t_q and importance t_p w.
struct Sums {
    normal: [[Lanes; MOST_PLANES]; MOST_PLANES],
    right: [Lanes; MOST_PLANES],
}

vectorized! {
    fn sums_1(weights: &[Lanes], importance: &[f32], scales: &[f32]) -> Sums = sums::<1>;
}
vectorized! {
    fn sums_2(weights: &[Lanes], importance: &[f32], scales: &[f32]) -> Sums = sums::<2>;
}
vectorized! {
    fn sums_3(weights: &[Lanes], importance: &[f32], scales: &[f32]) -> Sums = sums::<3>;
}

/// The code in plane `P - 1 - place` of the point of this number, below 27.
#[inline(always)]
fn digit(number: i32, place: usize) -> f32 {
    // number / 3 and number / 9
    let left = number * [9, 3, 1][place] / 9;
    (left - left / 3 * 3 - 1) as f32
}

/// The points that the scales of sixteen rows stand for: the last plane's code changes fastest.
#[inline(always)]
fn points<const P: usize>(scales: &[f32]) -> [Lanes; 27] {
    let mut table = [[0.0; LANES]; 27];
    for (k, values) in table[..3usize.pow(P as u32)].iter_mut().enumerate() {
        for (value, scales) in values.iter_mut().zip(scales.chunks_exact(P)) {
            let codes = scales.iter().enumerate().map(|(p, &scale)| (digit(k as i32, P - 1 - p), scale));
            let empty = codes.clone().any(|(code, scale)| scale == 0.0 && code != 0.0);
            let sum = codes.fold(0.0, |sum, (code, scale)| sum + scale * code);
            *value = if empty { f32::INFINITY } else { sum };
        }
    }
    table
}

#[inline(always)]
fn sums<const P: usize>(weights: &[Lanes], importance: &[f32], scales: &[f32]) -> Sums {
    let table = points::<P>(scales);
    let table = &table[..3usize.pow(P as u32)];
    let mut out =
        Sums { normal: [[[0.0; LANES]; MOST_PLANES]; MOST_PLANES], right: [[0.0; LANES]; MOST_PLANES] };
    for (w, &h) in weights.iter().zip(importance) {
        let (number, _) = nearest(w, table, &[], None);
        let mut trits = [[0.0; LANES]; P];
        for p in 0..P {
            for lane in 0..LANES {
                trits[p][lane] = digit(number[lane], P - 1 - p);
            }
        }
        for p in 0..P {
            let mut weighed = [0.0; LANES];
            for lane in 0..LANES {
                weighed[lane] = trits[p][lane] * h;
                out.right[p][lane] += weighed[lane] * w[lane];
            }
            for q in p..P {
                for lane in 0..LANES {
                    out.normal[p][q][lane] += weighed[lane] * trits[q][lane];
                }
            }
        }
    }
    out
}

/// The scales of one row by ridge least squares (Cholesky in float64: the ridge keeps the matrix positive).
fn solve(found: &Sums, lane: usize, scales: &mut [f32], beyond: &mut f64) {
    let planes = scales.len();
    let normal = |p: usize, q: usize| f64::from(found.normal[p.min(q)][p.max(q)][lane]);
    let mean = (0..planes).map(|p| normal(p, p)).sum::<f64>() / planes as f64;
    let ridge = RIDGE * mean + f64::from(f32::MIN_POSITIVE);
    let mut lower = [[0f64; MOST_PLANES]; MOST_PLANES];
    let mut x = [0f64; MOST_PLANES];
    for p in 0..planes {
        let dead = normal(p, p) <= 0.0;
        let before = f64::from(scales[p]);
        let mut right = if dead { before } else { f64::from(found.right[p][lane]) + ridge * before };
        for q in 0..p {
            let between = (0..q).fold(normal(p, q), |sum, r| sum - lower[p][r] * lower[q][r]);
            lower[p][q] = between / lower[q][q];
            right -= lower[p][q] * x[q];
        }
        let own = normal(p, p) + if dead { 1.0 } else { ridge };
        lower[p][p] = (0..p).fold(own, |sum, r| sum - lower[p][r] * lower[p][r]).sqrt();
        x[p] = right / lower[p][p];
    }
    for p in (0..planes).rev() {
        let right = (p + 1..planes).fold(x[p], |sum, q| sum - lower[q][p] * x[q]);
        x[p] = right / lower[p][p];
    }
    for (scale, x) in scales.iter_mut().zip(x) {
        let size = x.abs() as f32;
        if size.is_nan() || f64::from(size) > F16_MAX {
            *beyond = beyond.max(if size.is_nan() { f64::INFINITY } else { f64::from(size) });
            return;
        }
        *scale = f16_to_f32(f32_to_f16(size));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::numbers;
    use proptest::prelude::*;

    /// (codes [G, P], weighted squared error) of the nearest points.
    fn naive_codes(w: &[f32], h: &[f32], scales: &[f32]) -> (Vec<Vec<f64>>, f64) {
        let (mut codes, mut error) = (vec![], 0.0);
        for (&w, &h) in w.iter().zip(h) {
            let mut best = (f32::INFINITY, vec![]);
            for k in 0..3usize.pow(scales.len() as u32) {
                let code: Vec<f32> = (0..scales.len())
                    .map(|p| (k / 3usize.pow((scales.len() - 1 - p) as u32) % 3) as f32 - 1.0)
                    .collect();
                if code.iter().zip(scales).any(|(&c, &s)| c != 0.0 && s == 0.0) {
                    continue;
                }
                let value = code.iter().zip(scales).fold(0.0, |sum, (c, s)| sum + c * s);
                if (w - value).powi(2) < best.0 {
                    best = ((w - value).powi(2), code.iter().map(|&c| c as f64).collect());
                }
            }
            error += best.0 as f64 * h as f64;
            codes.push(best.1);
        }
        (codes, error)
    }

    /// The scales of one row by Gaussian elimination with the largest pivot, in float64 throughout.
    fn naive_scales(codes: &[Vec<f64>], w: &[f32], h: &[f32], before: &[f32]) -> Vec<f64> {
        let n = before.len();
        let sum = |f: &dyn Fn(usize) -> f64| -> f64 { (0..w.len()).map(|g| h[g] as f64 * f(g)).sum() };
        let mut m: Vec<Vec<f64>> = (0..n)
            .map(|p| {
                let mut row: Vec<f64> = (0..n).map(|q| sum(&|g| codes[g][p] * codes[g][q])).collect();
                row.push(sum(&|g| codes[g][p] * w[g] as f64));
                row
            })
            .collect();
        let ridge = RIDGE * (0..n).map(|p| m[p][p]).sum::<f64>() / n as f64;
        for p in 0..n {
            let dead = m[p][p] == 0.0;
            m[p][n] = if dead { before[p] as f64 } else { m[p][n] + ridge * before[p] as f64 };
            m[p][p] += if dead { 1.0 } else { ridge };
        }
        for p in 0..n {
            let top = (p..n).max_by(|&a, &b| m[a][p].abs().total_cmp(&m[b][p].abs())).unwrap();
            m.swap(p, top);
            let pivot = m[p].clone();
            for (_, row) in m.iter_mut().enumerate().filter(|(q, _)| *q != p) {
                let factor = row[p] / pivot[p];
                row.iter_mut().zip(&pivot).for_each(|(x, y)| *x -= factor * y);
            }
        }
        (0..n).map(|p| m[p][n] / m[p][p]).collect()
    }

    proptest! {
        #[test]
        fn scales_are_those_of_plain_loops(
            rows in 1usize..40, width in 1usize..100, planes in 1usize..4, seed in any::<u64>(),
            threads in 1usize..4,
        ) {
            let weights = numbers(rows * width, seed);
            let importance: Vec<f32> = numbers(width, seed ^ 1).iter().map(|h| 0.3 + h.abs()).collect();
            let start: Vec<f32> = numbers(rows * planes, seed ^ 2)
                .iter()
                .map(|s| f16_to_f32(f32_to_f16(if s.abs() < 0.05 { 0.0 } else { s.abs() })))
                .collect();
            let mut scales = start.clone();
            alternate(&weights, &importance, &mut scales, planes, 1, threads).unwrap();
            for ((w, before), after) in
                weights.chunks(width).zip(start.chunks(planes)).zip(scales.chunks(planes))
            {
                let (codes, _) = naive_codes(w, &importance, before);
                let wanted = naive_scales(&codes, w, &importance, before);
                let largest = wanted.iter().fold(0f64, |a, b| a.max(b.abs()));
                for (&found, wanted) in after.iter().zip(&wanted) {
                    // fp16 rounds by 2^-11; sums in float32 are solved with a ridge of 1e-4
                    let room = wanted.abs() / 1024.0 + largest * 2e-3 + 1e-7;
                    prop_assert!((found as f64 - wanted.abs()).abs() <= room, "{found} for {wanted}");
                }
            }
        }
    }

    #[test]
    fn rounds_bring_the_error_down() {
        let (rows, width) = (50, 64);
        let weights = numbers(rows * width, 5);
        let importance = vec![1.0; width];
        for planes in [2, 3] {
            let error = |scales: &[f32]| -> f64 {
                weights
                    .chunks(width)
                    .zip(scales.chunks(planes))
                    .map(|(w, s)| naive_codes(w, &importance, s).1)
                    .sum()
            };
            let start: Vec<f32> = (0..rows * planes).map(|i| 0.5 / (1 + i % planes) as f32).collect();
            let mut scales = start.clone();
            let mut before = error(&scales);
            for _ in 0..4 {
                alternate(&weights, &importance, &mut scales, planes, 1, 2).unwrap();
                assert!(error(&scales) < before * 1.0001);
                before = error(&scales);
            }
            let mut at_once = start.clone();
            alternate(&weights, &importance, &mut at_once, planes, 4, 1).unwrap();
            assert_eq!(at_once, scales);
            assert!(before < 0.9 * error(&start));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut scales = [1.0f32; 4];
        let mut run = |weights: &[f32], importance: &[f32], planes: usize| {
            alternate(weights, importance, &mut scales, planes, 1, 1).map_err(|e| e.to_string())
        };
        assert!(run(&[0.5; 8], &[1.0; 4], 2).is_ok());
        assert!(run(&[0.5; 7], &[1.0; 4], 2).unwrap_err().contains("do not fit"));
        assert!(run(&[0.5; 4], &[1.0; 4], 4).unwrap_err().contains("planes"));
        assert!(run(&[1e9; 8], &[1.0; 4], 2).unwrap_err().contains("float16"));
        assert!(run(&[], &[], 2).is_ok());
    }
}
