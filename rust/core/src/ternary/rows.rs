//! The exact fit of whole rows: wide groups, one after the other. A histogram says where the best number of weights
//! to keep can lie; only the weights in question are sorted.

use super::fit::{gain, Band};
use super::lanes::Bits;

/// Bits of |w| that a bucket leaves out: it keeps the exponent and four bits of the fraction.
const SHIFT: u32 = 19;

/// Buckets of a row: 32 octaves below its largest weight, the last of them with all that is smaller.
const BUCKETS: usize = 512;

/// Rows up to this many weights are sorted whole.
const SMALL: usize = 128;

/// What a weight adds to its tally, beside the bits that its bucket leaves out.
const ONE: u64 = 1 << 40;

/// What a bucket's weights add to A_k and B_k.
#[derive(Clone, Copy, Default)]
struct Bucket {
    a: f64,
    b: f64,
}

/// Room for the fit of one row after another.
pub(super) struct Rows {
    buckets: Vec<Bucket>,
    /// Of weights of equal importance: 2^40 for each and what the bits left out add to.
    tallies: Vec<u64>,
    /// Weights to be sorted, see [`gather`].
    keys: Vec<u64>,
}

impl Rows {
    pub fn new() -> Self {
        Rows { buckets: vec![Bucket::default(); BUCKETS], tallies: vec![0; 2 * BUCKETS], keys: Vec::new() }
    }

    /// The best scale of a row before rounding: A_k / B_k for the least k that maximises A_k^2 / B_k over weights
    /// by falling size. The answer is that of a full sort: between two edges of buckets at most
    /// max(A^2 / B, (A + b s)^2 / (B + b)) can be won, of the sums A and B before the bucket, its importance b and
    /// its largest size s (the quotient is convex in the importance kept), so a bucket of which that is less than
    /// what some edge wins holds no best k.
    #[inline(always)]
    pub fn best(&mut self, w: &[f32], h: Option<&[f32]>) -> f64 {
        let h = h.filter(|h| h.iter().any(|&x| x > 0.0));
        let top = w.iter().fold(0u32, |most, w| most.max(w.abs().to_bits()));
        if top == 0 {
            return 0.0;
        }
        if w.len() <= SMALL {
            return self.walk(w, h, Bucket::default(), 0, top);
        }
        // Bucket 0 is the row's smallest weights; the others are |w| >> SHIFT less `base`.
        let base = (top >> SHIFT).saturating_sub(BUCKETS as u32 - 1);
        let used = (top >> SHIFT) - base;
        match h {
            None if w.len() < 1 << 20 => self.tally(w, base, used),
            _ => self.sum(w, h, base),
        }
        let edge = |bucket: usize| if bucket == 0 { 0 } else { (bucket as u32 + base) << SHIFT };
        let (mut before, mut won) = (Bucket::default(), 0f64);
        for bucket in self.buckets[..=used as usize].iter().rev() {
            before = before.and(bucket);
            won = won.max(gain(before.a, before.b));
        }
        // Sums in another order differ in their last bits.
        let won = won * (1.0 - 1e-9);
        let (mut before, mut span) = (Bucket::default(), None::<(usize, usize, Bucket)>);
        for at in (0..=used as usize).rev() {
            let bucket = self.buckets[at];
            let most = f32::from_bits(edge(at + 1).min(top)) as f64;
            let all = gain(before.a + bucket.b * most, before.b + bucket.b);
            if bucket.b > 0.0 && gain(before.a, before.b).max(all) >= won {
                let (first, _, start) = span.unwrap_or((at, at, before));
                span = Some((first, at, start));
            }
            before = before.and(&bucket);
        }
        let Some((first, last, start)) = span else { return 0.0 };
        self.walk(w, h, start, edge(last), (edge(first + 1) - 1).min(top))
    }

    /// Fill the buckets of weights of equal importance. Those of one bucket share exponent and scale, so the bits
    /// that it leaves out add up exactly.
    #[inline(always)]
    fn tally(&mut self, w: &[f32], base: u32, used: u32) {
        let used = used as usize + 1;
        let (even, odd) = self.tallies.split_at_mut(BUCKETS);
        even[..used].fill(0);
        odd[..used].fill(0);
        count(w, base, even, odd);
        let below = (1 + base) << SHIFT;
        let small = match even[0] + odd[0] {
            0 => 0.0,
            _ => w.iter().map(|w| if w.abs().to_bits() < below { w.abs() as f64 } else { 0.0 }).sum(),
        };
        for (at, (bucket, (even, odd))) in
            self.buckets[..used].iter_mut().zip(even.iter().zip(odd.iter())).enumerate()
        {
            let (count, rest) = ((even / ONE + odd / ONE) as f64, (even % ONE + odd % ONE) as f64);
            let first = (at as u32 + base) << SHIFT;
            let step = (f32::from_bits(first | 1) - f32::from_bits(first)) as f64;
            let a = if at == 0 { small } else { count * f32::from_bits(first) as f64 + rest * step };
            *bucket = Bucket { a, b: count };
        }
    }

    /// Fill the buckets of weights of any importance.
    #[inline(always)]
    fn sum(&mut self, w: &[f32], h: Option<&[f32]>, base: u32) {
        self.buckets.fill(Bucket::default());
        for (i, w) in w.iter().enumerate() {
            let bits = w.abs().to_bits();
            let bucket = &mut self.buckets[(bits >> SHIFT).saturating_sub(base) as usize % BUCKETS];
            let importance = h.map_or(1.0, |h| h[i] as f64);
            bucket.a += importance * w.abs() as f64;
            bucket.b += importance;
        }
    }

    /// The best scale that ends among the weights whose bits are from `low` to `high`; `start` is of all larger ones.
    #[inline(always)]
    fn walk(&mut self, w: &[f32], h: Option<&[f32]>, start: Bucket, low: u32, high: u32) -> f64 {
        let keys = gather(w, low, high, &mut self.keys);
        keys.sort_unstable();
        let (mut a, mut b) = (start.a, start.b);
        let (mut size, mut best) = (0.0, 0.0);
        for &key in keys.iter() {
            let w = f32::from_bits(!(key >> 32) as u32) as f64;
            if w == 0.0 {
                break;
            }
            let importance = h.map_or(1.0, |h| h[key as u32 as usize] as f64);
            a += importance * w;
            b += importance;
            if gain(a, b) > best {
                (best, size) = (gain(a, b), a / b);
            }
        }
        size
    }

    /// Sort the groups of a block: keys (and `h`) of each in a lane, what a group lacks is 0.
    #[inline(never)]
    pub fn load(&mut self, band: &Band, first: usize, lanes: usize, keys: &mut [Bits], h: &mut [Bits]) {
        if lanes < keys.first().map_or(0, |key| key.len()) {
            keys.fill(Bits::default());
            h.fill(Bits::default());
        }
        for lane in 0..lanes {
            let (w, importance) = band.group(first + lane);
            let sorted = gather(w, 0, u32::MAX, &mut self.keys);
            // By the high half; the sort is stable, so that equals stay in order.
            radsort::sort_by_key(sorted, |key| (key >> 32) as u32);
            for (key, sorted) in keys.iter_mut().zip(&*sorted) {
                key[lane] = !(sorted >> 32) as u32;
            }
            if let Some(importance) = importance {
                let none = !importance.iter().any(|&x| x > 0.0);
                for (h, &sorted) in h.iter_mut().zip(&*sorted) {
                    let x = importance[sorted as u32 as usize];
                    h[lane] = if none { 1f32.to_bits() } else { x.to_bits() };
                }
            }
        }
    }
}

/// Add a row to its tallies.
#[inline(never)]
fn count(w: &[f32], base: u32, even: &mut [u64], odd: &mut [u64]) {
    let even: &mut [u64; BUCKETS] = even.try_into().expect("a table");
    let odd: &mut [u64; BUCKETS] = odd.try_into().expect("a table");
    let place = |w: f32| {
        let bits = w.abs().to_bits();
        ((bits >> SHIFT).saturating_sub(base) as usize % BUCKETS, ONE + u64::from(bits & ((1 << SHIFT) - 1)))
    };
    // Two tables: an increment waits for the one before it of the same place.
    let (pairs, rest) = w.as_chunks::<2>();
    for pair in pairs {
        let (at, add) = place(pair[0]);
        even[at] += add;
        let (at, add) = place(pair[1]);
        odd[at] += add;
    }
    for &w in rest {
        let (at, add) = place(w);
        even[at] += add;
    }
}

/// The weights whose bits are from `low` to `high`: bits, turned so that the largest come first when sorted, in the
/// high half, position in the low one.
#[inline(never)]
fn gather<'a>(w: &[f32], low: u32, high: u32, keys: &'a mut Vec<u64>) -> &'a mut [u64] {
    keys.resize(w.len(), 0);
    let room = &mut keys[..w.len()];
    let mut found = 0;
    for (i, w) in w.iter().enumerate() {
        let bits = w.abs().to_bits();
        // `found` is at most i.
        room[found] = u64::from(!bits) << 32 | i as u64;
        found += usize::from(bits.wrapping_sub(low) <= high - low);
    }
    &mut room[..found]
}

impl Bucket {
    #[inline(always)]
    fn and(self, more: &Bucket) -> Bucket {
        Bucket { a: self.a + more.a, b: self.b + more.b }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::half::f64_to_f16;
    use proptest::prelude::*;

    /// By sorting everything.
    fn naive(w: &[f32], h: Option<&[f32]>) -> f64 {
        let h = h.filter(|h| h.iter().any(|&x| x > 0.0));
        let mut order: Vec<usize> = (0..w.len()).filter(|&i| w[i] != 0.0).collect();
        order.sort_by(|&i, &j| w[j].abs().total_cmp(&w[i].abs()));
        let (mut a, mut b, mut best, mut size) = (0f64, 0f64, 0f64, 0f64);
        for i in order {
            let importance = h.map_or(1.0, |h| h[i] as f64);
            a += importance * w[i].abs() as f64;
            b += importance;
            if gain(a, b) > best {
                (best, size) = (gain(a, b), a / b);
            }
        }
        size
    }

    fn row(len: usize, seed: u64, kind: usize) -> Vec<f32> {
        let mut numbers = crate::testing::numbers(4 * len, seed).into_iter();
        let mut unit = || numbers.next().expect("four a weight") / 2.0 + 0.5;
        (0..len)
            .map(|_| {
                let bell = unit() + unit() + unit() - 1.5;
                match kind {
                    0 => bell,
                    1 => f32::from_bits(bell.to_bits() & 0xffff_0000),
                    2 => (bell * 6.0).round() / 4.0,
                    3 => bell.signum() * (60.0 * unit() - 30.0f32).exp2(),
                    4 => bell * if unit() < 0.01 { 50.0 } else { 1e-20 },
                    _ => f32::from_bits((unit() * 100_000.0) as u32) * bell.signum(),
                }
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]
        #[test]
        fn the_best_scale_is_that_of_a_full_sort(
            len in prop_oneof![1usize..300, 1usize..5000], seed in any::<u64>(), kind in 0usize..6, weighted in 0usize..3,
        ) {
            let w = row(len, seed, kind);
            let h: Vec<f32> = row(len, seed ^ 99, 0).iter().map(|x| if weighted == 2 && *x < 0.2 { 0.0 } else { x.abs() }).collect();
            let h = (weighted > 0).then_some(&h[..]);
            let (ours, full) = (Rows::new().best(&w, h), naive(&w, h));
            prop_assert!((ours - full).abs() <= 1e-12 * full, "{ours} in place of {full}");
            if full > 1e-6 {
                prop_assert_eq!(f64_to_f16(ours), f64_to_f16(full));
            }
        }
    }

    #[test]
    fn a_room_is_used_again() {
        let mut rows = Rows::new();
        for seed in 1..40 {
            let (len, kind) = (seed * 97 % 4000 + 1, seed % 6);
            let w = row(len, seed as u64, kind);
            let full = naive(&w, None);
            assert!((rows.best(&w, None) - full).abs() <= 1e-12 * full, "{len} weights of kind {kind}");
        }
        assert_eq!(rows.best(&[0.0; 500], None), 0.0);
        assert_eq!(rows.best(&[], None), 0.0);
    }
}
