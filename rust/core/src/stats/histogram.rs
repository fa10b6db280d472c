//! Counting bins. A weight's bin is found in vectors; what cannot be done in vectors is the increment, so weights
//! are counted in pairs: one increment in a table of 128 x 128 for two of them.

use super::{folded, sum_lanes, BINS};
use crate::scratch::Scratch;
use std::hint::black_box;

/// Pairs that are counted at a time, at most.
const BLOCK: usize = 1 << 14;

/// Counts of bins, of values one by one and of pairs of values.
pub struct Histogram {
    /// By the bin of the first and 128 times that of the second; 16 bits, so that it fits the first-level cache.
    pairs: Scratch<u16>,
    /// Pairs counted since `pairs` was last emptied.
    held: usize,
    single: [u64; BINS],
    /// Where the pairs of a row are counted.
    places: Scratch<u16>,
}

impl Histogram {
    /// `of_pairs`: whether [`Histogram::count`] will be called.
    #[inline(always)]
    pub fn new(of_pairs: bool) -> Self {
        let mut pairs = Scratch::new(if of_pairs { BINS * BINS } else { 0 });
        pairs.fill(0);
        Histogram { pairs, held: 0, single: [0; BINS], places: Scratch::new(0) }
    }

    /// Count values, those of each group of `width` times its factor.
    #[inline(always)]
    pub fn count(&mut self, values: &[f32], width: usize, factors: &[f32]) {
        let half = width / 2;
        let whole = values.len() / width;
        self.places.resize(whole * half);
        let (grouped, last) = values.split_at(whole * width);
        let places = &mut self.places[..whole * half];
        if width == 64 {
            // The usual groups again with a length known when compiled.
            let (usual, _) = grouped.as_chunks::<64>();
            let (usual_places, _) = places.as_chunks_mut::<32>();
            for ((values, places), &factor) in usual.iter().zip(usual_places).zip(factors) {
                find_places(values, factor, places);
            }
        } else {
            for (g, values) in grouped.chunks_exact(width).enumerate() {
                find_places(values, factors[g], &mut places[g * half..(g + 1) * half]);
                if width % 2 == 1 {
                    self.single[bin(values[width - 1], factors[g]) as usize % BINS] += 1;
                }
            }
        }
        for &value in last {
            self.add(bin(value, factors[whole]), 1);
        }
        for from in (0..whole * half).step_by(BLOCK) {
            let to = (from + BLOCK).min(whole * half);
            if self.held + (to - from) > u16::MAX as usize {
                self.empty();
            }
            self.held += to - from;
            let pairs = &mut self.pairs[..BINS * BINS];
            let (eights, rest) = self.places[from..to].as_chunks::<8>();
            for eight in eights {
                for &place in eight {
                    pairs[place as usize % (BINS * BINS)] += 1;
                }
            }
            for &place in rest {
                pairs[place as usize % (BINS * BINS)] += 1;
            }
        }
    }

    #[inline(always)]
    pub fn add(&mut self, bin: u32, count: u64) {
        self.single[bin as usize % BINS] += count;
    }

    /// Pairs to single counts.
    #[inline(always)]
    fn empty(&mut self) {
        let mut counts = [0u32; BINS];
        for (second, row) in self.pairs.chunks_exact_mut(BINS).enumerate() {
            let row = <&mut [u16; BINS]>::try_from(row).expect("a row has a place for every bin");
            let (mut firsts, mut sum) = (counts, 0u32);
            for i in 0..BINS {
                firsts[i] += row[i] as u32;
                sum += row[i] as u32;
            }
            firsts[second] += sum;
            counts = firsts;
            *row = [0; BINS];
        }
        self.held = 0;
        for (single, count) in self.single.iter_mut().zip(counts) {
            *single += count as u64;
        }
    }

    #[inline(always)]
    pub fn total(&mut self, out: &mut [u64]) {
        self.empty();
        out.iter_mut().zip(self.single).for_each(|(out, count)| *out += count);
    }
}

/// Places of pairs: each value of the first half with that of the second.
#[inline(always)]
fn find_places(values: &[f32], factor: f32, places: &mut [u16]) {
    let half = values.len() / 2;
    for (place, (&a, &b)) in places.iter_mut().zip(values[..half].iter().zip(&values[half..])) {
        *place = (bin(a, factor) | bin(b, factor) << 7) as u16;
    }
}

/// The bin of a value, below [`BINS`].
#[inline(always)]
pub fn bin(value: f32, factor: f32) -> u32 {
    let place = value * factor + (BINS / 2) as f32;
    let place = if place > 0.0 { place } else { 0.0 };
    let place = if place < (BINS - 1) as f32 { place } else { (BINS - 1) as f32 };
    // Above 256 the mantissa is place * 2^15: its whole part without a conversion.
    (place + 256.0).to_bits() >> 15 & 0xff
}

/// What the weights of each group of `width` are multiplied with to count bins: [`BINS`] / 8 a mean |w|.
#[inline(always)]
pub fn find_bins_per_unit(w: &[f32], width: usize, factors: &mut [f32]) {
    const UNITS: f32 = BINS as f32 / 8.0;
    let (usual, _) = w.as_chunks::<64>();
    if width == 64 && usual.len() == factors.len() {
        // The usual groups again with a length known when compiled.
        for (sum, w) in factors.iter_mut().zip(usual) {
            *sum = sum_of_sizes(w);
        }
    } else {
        for (sum, w) in factors.iter_mut().zip(w.chunks(width)) {
            *sum = sum_of_sizes(w);
        }
    }
    let full = width as f32 * UNITS;
    let mut largest = 0;
    for factor in factors.iter_mut() {
        let sum = *factor;
        largest = sum.to_bits().max(largest);
        // The division first: under a condition it would be done for one group at a time.
        let found = full / sum;
        let found = if found < f32::MAX { found } else { f32::MAX };
        *factor = if sum > 0.0 { found } else { 0.0 };
    }
    if largest < f32::INFINITY.to_bits() && w.len().is_multiple_of(width) {
        return;
    }
    // A last group may be shorter, and a sum beyond float32.
    for (factor, w) in factors.iter_mut().zip(w.chunks(width)) {
        if w.len() < width || largest == f32::INFINITY.to_bits() {
            let mean = (sum_lanes(w, |x| x.abs() as f64) / w.len() as f64) as f32;
            *factor = if mean > 0.0 { (UNITS / mean).min(f32::MAX) } else { 0.0 };
        }
    }
}

/// The sum of |w|, in sixteen lanes whose order is fixed.
#[inline(always)]
fn sum_of_sizes(w: &[f32]) -> f32 {
    const L: usize = 16;
    let mut lanes = [0f32; L];
    let (whole, rest) = w.as_chunks::<L>();
    for w in whole {
        for l in 0..L {
            lanes[l] += w[l].abs();
        }
    }
    let mut lanes = black_box(lanes);
    for (lane, w) in lanes.iter_mut().zip(rest) {
        *lane += w.abs();
    }
    folded(&lanes)
}
