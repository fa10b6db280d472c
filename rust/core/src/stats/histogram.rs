//! Counting bins. A weight's bin is found in vectors; what cannot be done in vectors is the increment, so weights
//! are counted in pairs: one increment in a table of 128 x 128 for two of them.

use super::{folded, sum_lanes, BINS, L};
use crate::scratch::Scratch;
use std::hint::black_box;

/// Pairs whose places are found at a time.
const BLOCK: usize = 128;

/// Counts of bins, of values one by one and of pairs of values.
pub struct Histogram {
    /// By the bin of the first and 128 times that of the second; 16 bits, so that it fits the first-level cache.
    pairs: Scratch<u16>,
    /// Pairs counted since `pairs` was last emptied.
    held: usize,
    single: [u64; BINS],
}

impl Histogram {
    /// `of_pairs`: whether [`Histogram::count`] will be called.
    #[inline(always)]
    pub fn new(of_pairs: bool) -> Self {
        let mut pairs = Scratch::new(if of_pairs { BINS * BINS } else { 0 });
        pairs.fill(0);
        Histogram { pairs, held: 0, single: [0; BINS] }
    }

    /// Count values times `factor`.
    #[inline(always)]
    pub fn count(&mut self, values: &[f32], factor: f32) {
        for values in values.chunks(2 * BLOCK) {
            match <&[f32; 64]>::try_from(values) {
                // The usual group again with a length known when compiled.
                Ok(values) => self.count_block(values, factor),
                _ => self.count_block(values, factor),
            }
        }
    }

    #[inline(always)]
    fn count_block(&mut self, values: &[f32], factor: f32) {
        let half = values.len() / 2;
        if self.held + half > u16::MAX as usize {
            self.empty();
        }
        self.held += half;
        let mut places = [0u32; BLOCK];
        let places = &mut places[..half];
        for (place, (&a, &b)) in places.iter_mut().zip(values[..half].iter().zip(&values[half..2 * half])) {
            *place = bin(a, factor) | bin(b, factor) << 7;
        }
        // From memory: LLVM would take every place out of its vector by two instructions.
        let places = &*black_box(places);
        let pairs = &mut self.pairs[..BINS * BINS];
        for &place in places {
            pairs[place as usize % (BINS * BINS)] += 1;
        }
        if values.len() % 2 == 1 {
            self.add(bin(values[2 * half], factor), 1);
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

/// The bin of a value, below [`BINS`].
#[inline(always)]
pub fn bin(value: f32, factor: f32) -> u32 {
    let place = value * factor + (BINS / 2) as f32;
    let place = if place > 0.0 { place } else { 0.0 };
    let place = if place < (BINS - 1) as f32 { place } else { (BINS - 1) as f32 };
    // Above 256 the mantissa is place * 2^15: its whole part without a conversion.
    (place + 256.0).to_bits() >> 15 & 0xff
}

/// What a weight of a group is multiplied with to count bins: [`BINS`] / 8 a mean |w|.
#[inline(always)]
pub fn bins_per_unit(w: &[f32]) -> f32 {
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
    let mut sum = folded(&lanes);
    let mut all = w.len() as f32 * (BINS as f32 / 8.0);
    if sum.is_infinite() {
        (sum, all) = ((sum_lanes(w, |x| x.abs() as f64) / w.len() as f64) as f32, BINS as f32 / 8.0);
    }
    let factor = if sum > 0.0 { all / sum } else { 0.0 };
    if factor < f32::MAX {
        factor
    } else {
        f32::MAX
    }
}
