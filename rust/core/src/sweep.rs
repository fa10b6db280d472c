//! The inner loops of a second-order fit: one group of columns coded one after the other, each error passed on.
//!
//! Every row is on its own, so sixteen of them go side by side. Shapes: R rows, G columns of the group, K
//! points (sums of planes) that a weight can stand for. A weight takes the point with the least squared error
//! plus `price` times the point's zero codes; the first of equals.

mod scales;

use std::sync::Mutex;

use crate::error::{Error, Result};
use crate::kernel::vectorized;
use crate::pool;

pub use scales::alternate;

const LANES: usize = 16;
type Lanes = [f32; LANES];

/// The points of a group and what their zeros cost.
pub struct Points<'a> {
    /// [R, K]
    pub table: &'a [f32],
    /// Zero codes of each point, [K].
    pub zeros: &'a [f32],
    pub price: Option<f32>,
}

/// What a group's columns do to each other.
pub enum Passing<'a> {
    /// Rows of the upper Cholesky factor [G, G] of the inverse Hessian: a column's error over its pivot is
    /// taken from the columns after it (GPTQ).
    Factor(&'a [f32]),
    /// The group's part [G, G] of the Hessian and the gradient (W - Q) H [R, G] that the codes so far leave:
    /// coordinate descent.
    Descent { hessian: &'a [f32], gradient: &'a [f32] },
}

/// Code a group. `values` [R, G] are the weights (`Factor`) or what the codes stand for so far (`Descent`);
/// afterwards they are the error over the pivot, or what the new codes stand for. `index` [R, G] gets the
/// points taken.
pub fn code_group(
    values: &mut [f32],
    width: usize,
    points: &Points,
    passing: &Passing,
    threads: usize,
    index: &mut [i64],
) -> Result<()> {
    let rows = values.len() / width.max(1);
    let count = points.zeros.len();
    let fits = |given: usize, wanted: usize, what: &str| match given == wanted {
        true => Ok(()),
        false => Err(Error::shape(format!("{what} must have {wanted} values, not {given}"))),
    };
    fits(values.len(), rows * width, "a group")?;
    fits(points.table.len(), rows * count, "the points")?;
    fits(index.len(), rows * width, "the index")?;
    match passing {
        Passing::Factor(factor) => fits(factor.len(), width * width, "the factor")?,
        Passing::Descent { hessian, gradient } => {
            fits(hessian.len(), width * width, "the Hessian")?;
            fits(gradient.len(), rows * width, "the gradient")?;
        }
    }
    if rows == 0 || width == 0 || count == 0 {
        return Ok(());
    }
    let size = LANES * width;
    let blocks: Vec<_> = values.chunks_mut(size).zip(index.chunks_mut(size)).map(Mutex::new).collect();
    pool::run(threads, blocks.len(), |number| {
        let mut block = blocks[number].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (values, index) = &mut *block;
        let rows = values.len() / width;
        let first = number * LANES;
        let table = turned(&points.table[first * count..(first + rows) * count], count);
        let mut across = turned(values, width);
        let mut taken = vec![[0i32; LANES]; width];
        match passing {
            Passing::Factor(factor) => sweep(&mut across, factor, &table, points, &mut taken),
            Passing::Descent { hessian, gradient } => {
                let mut local = turned(&gradient[first * width..(first + rows) * width], width);
                descend(&mut across, &mut local, hessian, &table, points, &mut taken);
            }
        }
        for lane in 0..rows {
            for column in 0..width {
                values[lane * width + column] = across[column][lane];
                index[lane * width + column] = i64::from(taken[column][lane]);
            }
        }
    });
    Ok(())
}

/// Rows [n <= 16, columns] -> one entry a column; rows that are missing are zero.
fn turned(rows: &[f32], columns: usize) -> Vec<Lanes> {
    let mut out = vec![[0.0; LANES]; columns];
    for (lane, row) in rows.chunks(columns).enumerate() {
        for (out, &value) in out.iter_mut().zip(row) {
            out[lane] = value;
        }
    }
    out
}

/// The nearest point of each lane: (its number, its value). `extra` [K] is added to the squared distances.
#[inline(always)]
fn nearest(aim: &Lanes, table: &[Lanes], zeros: &[f32], extra: Option<f32>) -> ([i32; LANES], Lanes) {
    let (mut least, mut number, mut value) = ([0.0; LANES], [0i32; LANES], [0.0; LANES]);
    for (k, point) in table.iter().enumerate() {
        let more = extra.map_or(0.0, |extra| zeros[k] * extra);
        for lane in 0..LANES {
            let distance = aim[lane] - point[lane];
            let cost = distance * distance + more;
            let better = k == 0 || cost < least[lane];
            least[lane] = if better { cost } else { least[lane] };
            number[lane] = if better { k as i32 } else { number[lane] };
            value[lane] = if better { point[lane] } else { value[lane] };
        }
    }
    (number, value)
}

/// `target[j] += by * row[j]` for the columns from `from` on.
#[inline(always)]
fn pass_on(target: &mut [Lanes], row: &[f32], by: &Lanes, from: usize) {
    for (target, &factor) in target[from..].iter_mut().zip(&row[from..]) {
        for lane in 0..LANES {
            target[lane] += by[lane] * factor;
        }
    }
}

vectorized! {
    fn sweep(w: &mut [Lanes], factor: &[f32], table: &[Lanes], points: &Points, taken: &mut [[i32; LANES]])
        = sweep_inner;
}

#[inline(always)]
fn sweep_inner(
    w: &mut [Lanes],
    factor: &[f32],
    table: &[Lanes],
    points: &Points,
    taken: &mut [[i32; LANES]],
) {
    let width = w.len();
    for column in 0..width {
        let row = &factor[column * width..(column + 1) * width];
        let pivot = row[column];
        let extra = points.price.map(|price| price * pivot * pivot);
        let (number, value) = nearest(&w[column], table, points.zeros, extra);
        taken[column] = number;
        let mut back = [0.0; LANES];
        for lane in 0..LANES {
            let error = (w[column][lane] - value[lane]) / pivot;
            w[column][lane] = error;
            back[lane] = -error;
        }
        pass_on(w, row, &back, column + 1);
    }
}

vectorized! {
    fn descend(
        q: &mut [Lanes], local: &mut [Lanes], hessian: &[f32], table: &[Lanes], points: &Points,
        taken: &mut [[i32; LANES]],
    ) = descend_inner;
}

#[inline(always)]
fn descend_inner(
    q: &mut [Lanes],
    local: &mut [Lanes],
    hessian: &[f32],
    table: &[Lanes],
    points: &Points,
    taken: &mut [[i32; LANES]],
) {
    let width = q.len();
    for column in 0..width {
        let row = &hessian[column * width..(column + 1) * width];
        let diagonal = row[column];
        let mut aim = [0.0; LANES];
        for lane in 0..LANES {
            aim[lane] = q[column][lane] + local[column][lane] / diagonal;
        }
        let (number, value) = nearest(&aim, table, points.zeros, points.price.map(|price| price / diagonal));
        taken[column] = number;
        let mut step = [0.0; LANES];
        for lane in 0..LANES {
            step[lane] = q[column][lane] - value[lane];
        }
        q[column] = value;
        pass_on(local, row, &step, column + 1);
    }
}

/// Zero codes of a point at most: as many as it has planes, of which nobody asks for so many.
const MOST_ZEROS: f32 = 64.0;

/// The price on one zero code at which the weights [R, G], each with its cheapest point, have about `allowed`
/// zeros: errors count with `importance` [G]. Without `both_ways` zeros may only be made dearer, and cost
/// nothing where the free choice has no more than that.
pub fn zero_price(
    weights: &[f32],
    importance: &[f32],
    points: &Points,
    allowed: f64,
    both_ways: bool,
    threads: usize,
) -> Result<f32> {
    let width = importance.len().max(1);
    let rows = weights.len() / width;
    let count = points.zeros.len();
    if weights.len() != rows * width || points.table.len() != rows * count {
        return Err(Error::shape("weights, importance and points of a group do not fit each other"));
    }
    if points.zeros.iter().any(|&zeros| !(0.0..=MOST_ZEROS).contains(&zeros) || zeros.fract() != 0.0) {
        return Err(Error::option(format!("zeros of a point must be whole numbers from 0 to {MOST_ZEROS}")));
    }
    let most = points.zeros.iter().fold(0.0f32, |a, &b| a.max(b)) as usize;
    // levels[row][z][column]: the least cost with z zero codes
    let mut levels = vec![f32::INFINITY; rows * (most + 1) * width];
    pool::rows_mut(&mut levels, (most + 1) * width, width * count, threads, |row, levels| {
        let weights = &weights[row * width..(row + 1) * width];
        for (&point, &zeros) in points.table[row * count..(row + 1) * count].iter().zip(points.zeros) {
            lower(weights, importance, point, &mut levels[zeros as usize * width..][..width]);
        }
    });
    let zeros = |price: f64| -> f64 {
        let mut counts = vec![0u64; rows];
        pool::rows_mut(&mut counts, 1, width * (most + 1), threads, |row, out| {
            out[0] = zeros_of(&levels[row * (most + 1) * width..][..(most + 1) * width], width, price);
        });
        counts.iter().sum::<u64>() as f64
    };
    if !both_ways && zeros(0.0) <= allowed {
        return Ok(0.0);
    }
    let mut spread = 0.0f64;
    for levels in levels.chunks((most + 1) * width) {
        for (low, high) in levels.iter().zip(&levels[width..]) {
            let step = (high - low).abs();
            if step.is_finite() {
                spread = spread.max(f64::from(step));
            }
        }
    }
    let (mut low, mut high) = (if both_ways { -2.0 * spread } else { 0.0 }, 2.0 * spread);
    for _ in 0..30 {
        let middle = (low + high) / 2.0;
        if zeros(middle) > allowed {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(high as f32)
}

vectorized! {
    fn lower(weights: &[f32], importance: &[f32], point: f32, least: &mut [f32]) = lower_inner;
}

#[inline(always)]
fn lower_inner(weights: &[f32], importance: &[f32], point: f32, least: &mut [f32]) {
    for ((least, &w), &h) in least.iter_mut().zip(weights).zip(importance) {
        let cost = (w - point) * (w - point) * h;
        *least = if cost < *least { cost } else { *least };
    }
}

vectorized! {
    fn zeros_of(levels: &[f32], width: usize, price: f64) -> u64 = zeros_inner;
}

#[inline(always)]
fn zeros_inner(levels: &[f32], width: usize, price: f64) -> u64 {
    let mut total = 0;
    for start in (0..width).step_by(LANES) {
        let lanes = LANES.min(width - start);
        let (mut best, mut count) = ([f32::INFINITY; LANES], [0u32; LANES]);
        best[..lanes].copy_from_slice(&levels[start..start + lanes]);
        for (number, level) in levels.chunks_exact(width).enumerate().skip(1) {
            let more = (price * number as f64) as f32;
            let mut here = [f32::INFINITY; LANES];
            here[..lanes].copy_from_slice(&level[start..start + lanes]);
            for lane in 0..LANES {
                let priced = here[lane] + more;
                let better = priced < best[lane];
                count[lane] = if better { number as u32 } else { count[lane] };
                best[lane] = if better { priced } else { best[lane] };
            }
        }
        total += u64::from(count.iter().sum::<u32>());
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::numbers;
    use proptest::prelude::*;

    fn naive_nearest(aim: f32, points: &[f32], zeros: &[f32], extra: Option<f32>) -> usize {
        let cost = |k: usize| {
            let distance = aim - points[k];
            distance * distance + extra.map_or(0.0, |extra| zeros[k] * extra)
        };
        (1..points.len()).fold(0, |best, k| if cost(k) < cost(best) { k } else { best })
    }

    proptest! {
        #[test]
        fn groups_are_coded_as_by_plain_loops(
            rows in 1usize..40, width in 1usize..70, count in prop::sample::select(vec![3usize, 9, 27]),
            seed in any::<u64>(), priced in any::<bool>(), down in any::<bool>(), threads in 1usize..4,
        ) {
            let table = numbers(rows * count, seed);
            let zeros: Vec<f32> = (0..count).map(|k| (k % 3) as f32).collect();
            let points = Points { table: &table, zeros: &zeros, price: priced.then_some(0.02) };
            let start = numbers(rows * width, seed ^ 1);
            let mut matrix = numbers(width * width, seed ^ 2);
            (0..width).for_each(|i| matrix[i * width + i] = 1.0 + matrix[i * width + i].abs());
            let gradient = numbers(rows * width, seed ^ 3);
            let passing = match down {
                false => Passing::Factor(&matrix),
                true => Passing::Descent { hessian: &matrix, gradient: &gradient },
            };
            let (mut values, mut index) = (start.clone(), vec![-1i64; rows * width]);
            code_group(&mut values, width, &points, &passing, threads, &mut index).unwrap();
            for r in 0..rows {
                let mut w = start[r * width..(r + 1) * width].to_vec();
                let mut local = gradient[r * width..(r + 1) * width].to_vec();
                let points = &table[r * count..(r + 1) * count];
                for i in 0..width {
                    let pivot = matrix[i * width + i];
                    let price = priced.then_some(0.02f32);
                    let (aim, extra) = match down {
                        false => (w[i], price.map(|p| p * pivot * pivot)),
                        true => (w[i] + local[i] / pivot, price.map(|p| p / pivot)),
                    };
                    let k = naive_nearest(aim, points, &zeros, extra);
                    prop_assert_eq!(index[r * width + i], k as i64);
                    if down {
                        let step = w[i] - points[k];
                        w[i] = points[k];
                        (i + 1..width).for_each(|j| local[j] += step * matrix[i * width + j]);
                    } else {
                        let error = (w[i] - points[k]) / pivot;
                        w[i] = error;
                        (i + 1..width).for_each(|j| w[j] += -error * matrix[i * width + j]);
                    }
                    prop_assert_eq!(values[r * width + i], w[i]);
                }
            }
        }

        #[test]
        fn the_price_makes_the_zeros(
            rows in 1usize..30, width in 1usize..70, seed in any::<u64>(), share in 0.0f64..1.0,
            both_ways in any::<bool>(), threads in 1usize..4,
        ) {
            let weights = numbers(rows * width, seed);
            let importance: Vec<f32> = numbers(width, seed ^ 1).iter().map(|h| 0.5 + h.abs()).collect();
            let table: Vec<f32> = (0..rows).flat_map(|_| [-0.6f32, 0.0, 0.6]).collect();
            let points = Points { table: &table, zeros: &[0.0, 1.0, 0.0], price: None };
            let allowed = share * (rows * width) as f64;
            let price = zero_price(&weights, &importance, &points, allowed, both_ways, threads).unwrap();
            let zeros = |price: f32| {
                (0..weights.len())
                    .filter(|&i| {
                        let (w, h) = (weights[i], importance[i % width]);
                        w * w * h + price < (w.abs() - 0.6) * (w.abs() - 0.6) * h
                    })
                    .count() as f64
            };
            prop_assert!(both_ways || price >= 0.0);
            prop_assert!(zeros(price + price.abs() * 1e-5 + 1e-6) <= allowed);
            if price > 0.0 {
                prop_assert!(zeros(price - price.abs() * 1e-5 - 1e-5) + 1.0 > allowed.floor());
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let points = Points { table: &[0.0; 6], zeros: &[0.0, 1.0, 0.0], price: None };
        let group = |factor: &[f32], index: &mut [i64]| {
            code_group(&mut [0.0; 8], 4, &points, &Passing::Factor(factor), 1, index)
        };
        assert!(group(&[1.0; 16], &mut [0; 8]).is_ok());
        assert!(group(&[1.0; 15], &mut [0; 8]).is_err());
        assert!(group(&[1.0; 16], &mut [0; 7]).is_err());
        assert!(zero_price(&[0.0; 8], &[1.0; 3], &points, 1.0, true, 1).is_err());
    }
}
