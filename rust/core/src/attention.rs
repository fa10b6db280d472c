//! One token's attention over cached keys and values.
//!
//! Positions are taken in spans that threads claim; each span gives its largest score, the sum of its exponentials
//! and the values weighed by them, which are put together at the end (Milakov and Gimelshein 2018). The result does
//! not depend on the number of threads.

use crate::error::{Error, Result};
#[cfg(target_arch = "x86_64")]
use crate::kernel::{level, Level};
use crate::kernel::{vectorized, widen_halves};
use crate::memory::ask_for;
use crate::pool;
use crate::scratch::Scratch;

/// Positions of a block of the cache.
pub const BLOCK: usize = 64;

/// Blocks of a span.
const SPAN: usize = 4;

/// Numbers that are worked on at a time.
const LANES: usize = 16;

/// Queries that share what is read of the cache.
const TOGETHER: usize = 4;

/// Lines of the cache that a single query takes at a time, so that its sums do not wait for each other.
const ALONE: usize = 4;

/// Fewer products than this are not worth a second thread.
const WORTH: usize = 1 << 17;

/// What a cache holds its numbers as: float32, or fp16 as bits, which halves what has to be read for a token.
pub trait Stored: Copy + Sync {
    /// Numbers of room that [`Stored::numbers`] needs for `piece` of them.
    fn room(piece: usize) -> usize;

    /// A piece of the cache as float32.
    fn numbers<'a>(piece: &'a [Self], room: &'a mut [f32]) -> &'a [f32];
}

impl Stored for f32 {
    fn room(_: usize) -> usize {
        0
    }

    #[inline(always)]
    fn numbers<'a>(piece: &'a [f32], _: &'a mut [f32]) -> &'a [f32] {
        piece
    }
}

impl Stored for u16 {
    fn room(piece: usize) -> usize {
        piece
    }

    #[inline(always)]
    fn numbers<'a>(piece: &'a [u16], room: &'a mut [f32]) -> &'a [f32] {
        widen_halves(piece, room);
        room
    }
}

/// Keys [blocks, kv_heads, head_size, BLOCK] and values [blocks, kv_heads, BLOCK, head_size].
#[derive(Clone, Copy)]
pub struct Cache<'a, T: Stored> {
    pub keys: &'a [T],
    pub values: &'a [T],
    pub kv_heads: usize,
    pub head_size: usize,
}

impl<T: Stored> Cache<'_, T> {
    /// Numbers of a head in a block.
    fn piece(&self) -> usize {
        self.head_size * BLOCK
    }

    fn blocks(&self) -> usize {
        self.keys.len() / (self.kv_heads * self.piece()).max(1)
    }
}

/// q [kv_heads, group, head_size], scaled already, over the positions start..stop -> [kv_heads, group, head_size].
/// Errors: lengths that do not fit together, positions that the cache does not have, or none at all.
pub fn attend<T: Stored>(
    q: &[f32],
    cache: &Cache<'_, T>,
    (start, stop): (usize, usize),
    threads: usize,
) -> Result<Vec<f32>> {
    let (heads, size) = (cache.kv_heads, cache.head_size);
    if heads == 0 || size == 0 || q.is_empty() || !q.len().is_multiple_of(heads * size) {
        return Err(Error::shape(format!("q has {} values, not a multiple of {heads} x {size}", q.len())));
    }
    if cache.keys.len() != cache.values.len() || cache.blocks() * heads * cache.piece() != cache.keys.len() {
        return Err(Error::shape(format!(
            "keys ({}) and values ({}) must be whole blocks of {heads} x {size} x {BLOCK} values",
            cache.keys.len(),
            cache.values.len()
        )));
    }
    if start >= stop || stop > cache.blocks() * BLOCK {
        return Err(Error::shape(format!(
            "positions {start} to {stop} are not among the cache's {}",
            cache.blocks() * BLOCK
        )));
    }
    let group = q.len() / (heads * size);
    let (first, end) = (start / BLOCK, stop.div_ceil(BLOCK));
    let spans = (end - first).div_ceil(SPAN);
    // Of each head and span: [group, 2 + head_size], the largest score, the sum and the weighed values.
    let width = group * (2 + size);
    let mut parts = vec![0f32; heads * spans * width];
    let threads = if (stop - start) * q.len() < WORTH { 1 } else { threads };
    pool::chunks_mut(&mut parts, width, threads, |item, part| {
        let (head, span) = (item / spans, item % spans);
        let blocks = (first + span * SPAN, (first + (span + 1) * SPAN).min(end));
        let seen = (start.max(blocks.0 * BLOCK), stop.min(blocks.1 * BLOCK));
        span_of(cache, head, &q[head * group * size..][..group * size], seen, part);
    });
    let mut out = vec![0f32; q.len()];
    for (at, out) in out.chunks_exact_mut(size).enumerate() {
        let (head, query) = (at / group, at % group);
        let of_span = |span: usize| &parts[(head * spans + span) * width + query * (2 + size)..][..2 + size];
        let largest = (0..spans).fold(f32::NEG_INFINITY, |a, span| a.max(of_span(span)[0]));
        let mut total = 0f32;
        for span in 0..spans {
            let [score, sum, values @ ..] = of_span(span) else { unreachable!("two and the values") };
            let weight = (score - largest).exp();
            total += weight * sum;
            out.iter_mut().zip(values).for_each(|(out, value)| *out += weight * value);
        }
        out.iter_mut().for_each(|out| *out /= total);
    }
    Ok(out)
}

vectorized! {
    /// The positions `seen` of one head, at most a span, for all of its queries: `part` [group, 2 + head_size].
    fn span_of<T: Stored>(cache: &Cache<'_, T>, head: usize, q: &[f32], seen: (usize, usize), part: &mut [f32]) =
        span_inlined;
}

#[inline(always)]
fn span_inlined<T: Stored>(
    cache: &Cache<'_, T>,
    head: usize,
    q: &[f32],
    seen: (usize, usize),
    part: &mut [f32],
) {
    // AVX-512 has registers for the sums of two lines.
    match registers() {
        #[cfg(target_arch = "x86_64")]
        Registers::Many => span_by::<T, true, 2>(cache, head, q, seen, part),
        Registers::Few => span_by::<T, true, 1>(cache, head, q, seen, part),
        Registers::Unfused => span_by::<T, false, 1>(cache, head, q, seen, part),
    }
}

/// What the machine offers to loops of [`vectorized`].
enum Registers {
    #[cfg(target_arch = "x86_64")]
    Many,
    Few,
    /// No fused multiply-add: one that is none would take a hundred times as long.
    Unfused,
}

#[inline(always)]
fn registers() -> Registers {
    #[cfg(target_arch = "x86_64")]
    match level() {
        Level::Avx512 => Registers::Many,
        Level::Avx2 => Registers::Few,
        Level::Portable => Registers::Unfused,
    }
    #[cfg(not(target_arch = "x86_64"))]
    if cfg!(target_arch = "aarch64") {
        Registers::Few
    } else {
        Registers::Unfused
    }
}

#[inline(always)]
fn span_by<T: Stored, const FUSED: bool, const LINES: usize>(
    cache: &Cache<'_, T>,
    head: usize,
    q: &[f32],
    (start, stop): (usize, usize),
    part: &mut [f32],
) {
    let (size, piece) = (cache.head_size, cache.piece());
    let (first, end) = (start / BLOCK, stop.div_ceil(BLOCK));
    let length = (end - first) * BLOCK;
    let place = |block: usize| (block * cache.kv_heads + head) * piece;
    let at = |of: &[T], block: usize| of[place(block)..].as_ptr();
    let group = q.len() / size;
    let mut room = Scratch::<f32>::new(T::room(piece));
    let mut scores = Scratch::<f32>::new(group * length);
    // Side by side what is multiplied with one line of the cache, so that the loops below need no index.
    let mut factors = Scratch::<f32>::new(group * length.max(size));
    side_by_side(q, size, &mut factors);
    // A line of the next piece is asked for with each line used: reading a head jumps from block to block, which the
    // machine does not foresee.
    for block in first..end {
        let ahead = if block + 1 < end { at(cache.keys, block + 1) } else { at(cache.values, first) };
        let keys = T::numbers(&cache.keys[place(block)..][..piece], &mut room);
        let scores = &mut scores[(block - first) * BLOCK..];
        for query in (0..group).step_by(TOGETHER) {
            let (q, scores) = (&factors[query * size..], &mut scores[query * length..]);
            match group - query {
                1 => score::<T, 1, FUSED, ALONE>(keys, q, ahead, scores, length),
                2 => score::<T, 2, FUSED, LINES>(keys, q, ahead, scores, length),
                3 => score::<T, 3, FUSED, LINES>(keys, q, ahead, scores, length),
                _ => score::<T, TOGETHER, FUSED, LINES>(keys, q, ahead, scores, length),
            }
        }
    }
    for (scores, part) in scores.chunks_exact_mut(length).zip(part.chunks_exact_mut(2 + size)) {
        // Positions of the first and last block that are not asked for.
        scores[..start - first * BLOCK].fill(f32::NEG_INFINITY);
        scores[stop - first * BLOCK..].fill(f32::NEG_INFINITY);
        (part[0], part[1]) = exponentials(scores);
        part[2..].fill(0.0);
    }
    side_by_side(&scores, length, &mut factors);
    for block in first..end {
        let ahead = at(cache.values, (block + 1).min(end - 1));
        let values = T::numbers(&cache.values[place(block)..][..piece], &mut room);
        for query in (0..group).step_by(TOGETHER) {
            let together = TOGETHER.min(group - query);
            let weights = &factors[query * length + (block - first) * BLOCK * together..];
            let part = &mut part[query * (2 + size)..];
            match together {
                1 => weigh::<T, 1, FUSED, ALONE>(values, weights, ahead, part, size),
                2 => weigh::<T, 2, FUSED, LINES>(values, weights, ahead, part, size),
                3 => weigh::<T, 3, FUSED, LINES>(values, weights, ahead, part, size),
                _ => weigh::<T, TOGETHER, FUSED, LINES>(values, weights, ahead, part, size),
            }
        }
    }
}

/// `rows` [n, length] with each [`TOGETHER`] rows (the last ones fewer) transposed: [length, together].
#[inline(always)]
fn side_by_side(rows: &[f32], length: usize, out: &mut [f32]) {
    for (rows, out) in rows.chunks(TOGETHER * length).zip(out.chunks_mut(TOGETHER * length)) {
        let together = rows.len() / length;
        if together == TOGETHER {
            // Written so that vectors are interleaved.
            let [a, b, c, d] = std::array::from_fn(|query| &rows[query * length..][..length]);
            for (i, out) in out.as_chunks_mut().0[..length].iter_mut().enumerate() {
                *out = [a[i], b[i], c[i], d[i]];
            }
            continue;
        }
        for (query, row) in rows.chunks_exact(length).enumerate() {
            out.iter_mut().skip(query).step_by(together).zip(row).for_each(|(out, &x)| *out = x);
        }
    }
}

/// Scores of one block's keys [head_size, BLOCK] with Q queries, `q` [head_size, Q]: `scores` [Q, length].
#[inline(always)]
fn score<T, const Q: usize, const FUSED: bool, const LINES: usize>(
    keys: &[f32],
    q: &[f32],
    ahead: *const T,
    scores: &mut [f32],
    length: usize,
) {
    let q = q.as_chunks::<Q>().0;
    for start in (0..BLOCK).step_by(LINES * LANES) {
        let mut sums = [[[0f32; LANES]; LINES]; Q];
        for (d, (keys, q)) in keys.chunks_exact(BLOCK).zip(q).enumerate() {
            ask_for(ahead.wrapping_add(d * BLOCK + start));
            add_products::<Q, FUSED, LINES>(&mut sums, q, lines(&keys[start..]));
        }
        for (query, sums) in sums.iter().enumerate() {
            scores[query * length + start..][..LINES * LANES].copy_from_slice(sums.as_flattened());
        }
    }
}

/// Add one block's values [BLOCK, head_size] weighed by `weights` [BLOCK, Q] to `part` [Q, 2 + head_size].
#[inline(always)]
fn weigh<T, const Q: usize, const FUSED: bool, const LINES: usize>(
    values: &[f32],
    weights: &[f32],
    ahead: *const T,
    part: &mut [f32],
    size: usize,
) {
    let weights = &weights.as_chunks::<Q>().0[..BLOCK];
    for start in (0..size).step_by(LINES * LANES) {
        let count = (LINES * LANES).min(size - start);
        let mut sums = [[[0f32; LANES]; LINES]; Q];
        for (position, (values, weights)) in values.chunks_exact(size).zip(weights).enumerate() {
            ask_for(ahead.wrapping_add(position * size + start));
            if count == LINES * LANES {
                add_products::<Q, FUSED, LINES>(&mut sums, weights, lines(&values[start..]));
            } else {
                let mut some = [[0f32; LANES]; LINES];
                some.as_flattened_mut()[..count].copy_from_slice(&values[start..]);
                add_products::<Q, FUSED, LINES>(&mut sums, weights, &some);
            }
        }
        for (query, sums) in sums.iter().enumerate() {
            let out = &mut part[query * (2 + size) + 2 + start..][..count];
            out.iter_mut().zip(sums.as_flattened()).for_each(|(out, sum)| *out += sum);
        }
    }
}

#[inline(always)]
fn lines<const LINES: usize>(from: &[f32]) -> &[[f32; LANES]; LINES] {
    from.as_chunks().0.first_chunk().expect("as many lines as asked for")
}

/// Add each of `factors` times `lines`.
#[inline(always)]
fn add_products<const Q: usize, const FUSED: bool, const LINES: usize>(
    sums: &mut [[[f32; LANES]; LINES]; Q],
    factors: &[f32; Q],
    lines: &[[f32; LANES]; LINES],
) {
    for query in 0..Q {
        for line in 0..LINES {
            for i in 0..LANES {
                let (sum, factor, x) = (sums[query][line][i], factors[query], lines[line][i]);
                sums[query][line][i] = if FUSED { factor.mul_add(x, sum) } else { sum + factor * x };
            }
        }
    }
}

/// Scores (a multiple of [`LANES`] of them) become exp(score - largest); returns the largest and the sum.
#[inline(always)]
fn exponentials(scores: &mut [f32]) -> (f32, f32) {
    let mut most = [f32::NEG_INFINITY; LANES];
    for scores in scores.chunks_exact(LANES) {
        for i in 0..LANES {
            most[i] = if scores[i] > most[i] { scores[i] } else { most[i] };
        }
    }
    let largest = most.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let mut sums = [0f32; LANES];
    for scores in scores.chunks_exact_mut(LANES) {
        for i in 0..LANES {
            scores[i] = exp(scores[i] - largest);
            sums[i] += scores[i];
        }
    }
    (largest, sums.iter().sum())
}

/// exp of a number that is not above 0, to 2e-7 of it; 0 below -87. In steps that a compiler vectorizes: the power of
/// two next to it from the bits, the rest by a polynomial (Cephes).
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding it rounds to a whole number, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LEAST: f32 = -87.0;
    // NaN stays what it is.
    let bounded = if x < LEAST { LEAST } else { x };
    let rounded = bounded * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = bounded - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let p = p * r * r + r + 1.0;
    let power = f32::from_bits((rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23);
    if x <= LEAST {
        0.0
    } else {
        p * power
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::half::{f16_to_f32, f32_to_f16};
    use proptest::prelude::*;

    fn value(i: usize) -> f32 {
        ((i * 7919 + 13) % 2003) as f32 / 1000.0 - 1.0
    }

    /// The definition, in float64.
    fn naive(q: &[f32], cache: &Cache<'_, f32>, (start, stop): (usize, usize)) -> Vec<f64> {
        let (heads, size) = (cache.kv_heads, cache.head_size);
        let group = q.len() / heads / size;
        let mut out = Vec::new();
        for (at, q) in q.chunks(size).enumerate() {
            let place = |p: usize| ((p / BLOCK) * heads + at / group) * cache.piece();
            let scores: Vec<f64> = (start..stop)
                .map(|p| {
                    let key = |d: usize| cache.keys[place(p) + d * BLOCK + p % BLOCK] as f64;
                    (0..size).map(|d| q[d] as f64 * key(d)).sum()
                })
                .collect();
            let largest = scores.iter().fold(f64::MIN, |a, &b| a.max(b));
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..size {
                let value = |p: usize| cache.values[place(p) + p % BLOCK * size + d] as f64;
                let sum: f64 = (start..stop).zip(&weights).map(|(p, w)| w * value(p)).sum();
                out.push(sum / total);
            }
        }
        out
    }

    proptest! {
        #[test]
        fn attention_is_that_of_the_definition(
            kv_heads in 1usize..4, group in 1usize..10, size in 1usize..70, blocks in 1usize..12,
            from in 0f64..1.0, to in 0f64..1.0, threads in 1usize..4, sharp in 0.1f32..4.0,
        ) {
            let held = blocks * BLOCK;
            let start = (from * held as f64) as usize;
            let stop = start + 1 + (to * (held - start - 1) as f64) as usize;
            let count = held * kv_heads * size;
            let keys: Vec<f32> = (0..count).map(value).collect();
            let values: Vec<f32> = (0..count).map(|i| value(i + 5)).collect();
            let q: Vec<f32> = (0..kv_heads * group * size).map(|i| sharp * value(i + 9)).collect();
            let cache = Cache { keys: &keys, values: &values, kv_heads, head_size: size };
            let found = attend(&q, &cache, (start, stop), threads).unwrap();
            prop_assert_eq!(&found, &attend(&q, &cache, (start, stop), 1).unwrap());
            for (found, expected) in found.iter().zip(naive(&q, &cache, (start, stop))) {
                prop_assert!((*found as f64 - expected).abs() < 3e-5, "{found} {expected}");
            }
            // Halves give to the bit what the numbers that they stand for give.
            let halves = |of: &[f32]| of.iter().map(|&x| f32_to_f16(x)).collect::<Vec<u16>>();
            let back = |of: &[u16]| of.iter().map(|&h| f16_to_f32(h)).collect::<Vec<f32>>();
            let (keys, values) = (halves(&keys), halves(&values));
            let cache = Cache { keys: &keys, values: &values, kv_heads, head_size: size };
            let (keys, values) = (back(&keys), back(&values));
            let wide = Cache { keys: &keys, values: &values, kv_heads, head_size: size };
            let found = attend(&q, &cache, (start, stop), threads).unwrap();
            prop_assert_eq!(found, attend(&q, &wide, (start, stop), threads).unwrap());
        }

        #[test]
        fn exponentials_are_near(x in -90f32..0.0) {
            let (found, expected) = (exp(x) as f64, (x as f64).exp());
            prop_assert!((found - expected).abs() <= 2e-7 * expected + 1.7e-38, "{x}: {found} {expected}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let held = vec![0f32; 2 * 8 * BLOCK];
        let cache = Cache { keys: &held, values: &held, kv_heads: 2, head_size: 8 };
        assert!(attend(&[0.0; 16], &cache, (0, BLOCK), 1).is_ok());
        for (q, seen) in [(15, (0, 1)), (0, (0, 1)), (16, (0, 0)), (16, (5, 4)), (16, (0, BLOCK + 1))] {
            assert!(attend(&vec![0.0; q], &cache, seen, 1).is_err(), "{q} {seen:?}");
        }
        let short = Cache { values: &held[1..], ..cache };
        assert!(attend(&[0.0; 16], &short, (0, 1), 1).is_err());
    }
}
