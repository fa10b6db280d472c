//! Which weights a band keeps where it is told how many zeros it may have: counts for every group at the least squared
//! error, by a price for each weight kept.

use super::fit::Band;
use super::lanes::{beyond_usual, first_of_equals, kept_mean, Bits, Lane, L};
use crate::scratch::Scratch;

/// What the fit keeps of a band's groups; blocks of 16 groups, lane by lane.
pub(super) struct Sorted {
    pub(super) width: usize,
    /// |w| by falling size, [blocks, width].
    pub(super) keys: Scratch<Bits>,
    /// A_k^2 / B_k for k = 0..=width, [blocks, width + 1]; minus infinity where weights that are 0 would be kept.
    pub(super) gains: Scratch<Lane>,
    /// Weights that are not 0 in each group.
    pub(super) most: Vec<u32>,
    /// How many the best fit keeps; empty where weights have importance.
    pub(super) kept: Vec<u32>,
}

impl Sorted {
    /// Codes and scales of the best fit that keeps `total` weights of the band.
    #[inline(always)]
    pub(super) fn keep(&self, band: &Band, total: usize, sizes: &mut [f64], trits: &mut [i8]) {
        let counts = self.share_out(total);
        for (block, sizes) in sizes.chunks_mut(L).enumerate() {
            let counts: &[u32; L] = counts[block * L..].first_chunk().expect("counts for every lane");
            let (sums, last, equals) = self.first(block, counts);
            for (lane, size) in sizes.iter_mut().enumerate() {
                let index = block * L + lane;
                let (w, h) = band.group(index);
                let (count, trits) = (counts[lane], &mut trits[band.place(index)]);
                if equals[lane] {
                    first_of_equals(w, count as usize, last[lane], trits);
                } else {
                    beyond_usual(w, last[lane].next_down(), trits);
                }
                *size = match h {
                    None if count > 0 => sums[lane] / count as f64,
                    None => 0.0,
                    Some(_) => kept_mean(w, h, trits),
                };
            }
        }
    }

    /// Of the `counts` largest weights of each lane the sum and the last one (infinity where there is none), and
    /// whether one as large as the last follows it.
    #[inline(always)]
    fn first(&self, block: usize, counts: &[u32; L]) -> ([f64; L], Lane, [bool; L]) {
        let keys = &self.keys[block * self.width..][..self.width];
        let mut sums = [0f64; L];
        for (k, key) in keys.iter().enumerate() {
            let mut kept = [0f32; L];
            for l in 0..L {
                kept[l] = f32::from_bits(key[l] & 0u32.wrapping_sub((counts[l] > k as u32) as u32));
            }
            for l in 0..L {
                sums[l] += kept[l] as f64;
            }
        }
        let (mut last, mut equals) = ([f32::INFINITY; L], [false; L]);
        for l in 0..L {
            let count = counts[l] as usize;
            if count > 0 {
                last[l] = f32::from_bits(keys[count - 1][l]);
                equals[l] = keys.get(count).is_some_and(|key| key[l] == keys[count - 1][l]);
            }
        }
        (sums, last, equals)
    }

    /// For every group the least k from `few` to `many` that maximises gain + lambda k; returns their sum.
    #[inline(always)]
    fn best(&self, lambda: f32, few: &[u32], many: &[u32], counts: &mut [u32]) -> usize {
        let mut sum = 0usize;
        let bounds = few.chunks_exact(L).zip(many.chunks_exact(L));
        let blocks = self.gains.chunks_exact(self.width + 1).zip(counts.chunks_exact_mut(L));
        for ((gains, counts), (few, many)) in blocks.zip(bounds) {
            let from = few.iter().fold(u32::MAX, |a, &b| a.min(b));
            let to = many.iter().fold(0, |a, &b| a.max(b));
            let (mut best, mut at) = ([f32::NEG_INFINITY; L], [from as f32; L]);
            for (k, gains) in (from..=to).zip(&gains[from as usize..=to as usize]) {
                let (k, extra) = (k as f32, lambda * k as f32);
                for l in 0..L {
                    let value = gains[l] + extra;
                    let better = value > best[l];
                    best[l] = if better { value } else { best[l] };
                    at[l] = if better { k } else { at[l] };
                }
            }
            for (count, at) in counts.iter_mut().zip(at) {
                *count = at as u32;
                sum += at as usize;
            }
        }
        sum
    }

    /// Counts that sum to `total` (or to all that can be kept, if that is less) at the least squared error: a
    /// Lagrange multiplier per kept weight, searched for until few enough weights are in question; those are
    /// filled in order of the groups, all of them worth nearly the same.
    ///
    /// A group keeps no fewer weights under a larger multiplier, so what it keeps under those on both sides bounds
    /// where the next pass looks: a third of the gains and less.
    #[inline(always)]
    fn share_out(&self, total: usize) -> Vec<u32> {
        let all: usize = self.most.iter().map(|&m| m as usize).sum();
        if total >= all {
            return self.most.clone();
        }
        let (mut few, mut few_sum) = (vec![0u32; self.most.len()], 0);
        let (mut many, mut many_sum) = (self.most.clone(), all);
        let (mut low, mut high) = (f32::NEG_INFINITY, f32::INFINITY);
        let (mut lambda, mut counts) = (0.0, vec![0u32; self.most.len()]);
        counts[..self.kept.len()].copy_from_slice(&self.kept);
        for step in 0..200 {
            let sum = match step {
                0 if !self.kept.is_empty() => counts.iter().map(|&count| count as usize).sum(),
                _ => self.best(lambda, &few, &many, &mut counts),
            };
            if sum == total {
                return counts;
            }
            if sum < total {
                (low, few_sum) = (lambda, sum);
                std::mem::swap(&mut few, &mut counts);
            } else {
                (high, many_sum) = (lambda, sum);
                std::mem::swap(&mut many, &mut counts);
            }
            if low.is_finite() && (many_sum - few_sum <= all / 1024 || total - few_sum <= all / 8192) {
                break;
            }
            lambda = if low.is_finite() && high.is_finite() {
                // By the line between both sides, every third time by halving, which needs no such line.
                let line = (total - few_sum) as f32 / (many_sum - few_sum) as f32;
                low + (high - low) * if step % 3 == 0 { 0.5 } else { line }
            } else if step == 0 {
                // The multiplier is of the size of a squared scale.
                let size = sum.abs_diff(total) as f32 / all as f32 * self.largest() / self.width as f32 * 2.0;
                if sum < total {
                    size
                } else {
                    -size
                }
            } else {
                2.0 * lambda
            };
            if lambda <= low || lambda >= high || !lambda.is_finite() {
                break;
            }
        }
        fill(&mut few, &many, total - few_sum);
        few
    }

    /// The largest gain of any group.
    #[inline(always)]
    fn largest(&self) -> f32 {
        let mut lanes = [0f32; L];
        for gains in self.gains.iter() {
            for l in 0..L {
                lanes[l] = if gains[l] > lanes[l] { gains[l] } else { lanes[l] };
            }
        }
        lanes.iter().fold(0f32, |a, &b| a.max(b))
    }
}

/// Raise counts towards `many`, in order of the groups, by `missing` in all.
fn fill(few: &mut [u32], many: &[u32], mut missing: usize) {
    for (few, &many) in few.iter_mut().zip(many) {
        let add = (many.saturating_sub(*few) as usize).min(missing);
        *few += add as u32;
        missing -= add;
    }
}
