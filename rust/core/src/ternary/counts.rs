//! How many codes of each group are non-zero when the sum over a band is given.

/// Gains of the groups of a band: `gain[g * (width + 1) + k]` is what the best scale wins in squared error
/// with the first k weights of group g kept (0 for k = 0).
pub struct Gains {
    pub width: usize,
    pub gain: Vec<f64>,
    /// Weights of the group that are not 0: no more can be kept.
    pub most: Vec<u32>,
}

impl Gains {
    fn group(&self, g: usize) -> &[f64] {
        let at = g * (self.width + 1);
        &self.gain[at..at + self.most[g] as usize + 1]
    }

    /// For every group the k that maximises gain + lambda k (the least such k); returns their sum.
    fn best(&self, lambda: f64, counts: &mut [u32]) -> usize {
        let mut sum = 0;
        for (g, count) in counts.iter_mut().enumerate() {
            let (mut best, mut at) = (f64::NEG_INFINITY, 0);
            for (k, &gain) in self.group(g).iter().enumerate() {
                let value = gain + lambda * k as f64;
                if value > best {
                    (best, at) = (value, k);
                }
            }
            *count = at as u32;
            sum += at;
        }
        sum
    }

    /// Counts that sum to `total` (or to all that can be kept, if that is less) at the least squared error:
    /// a Lagrange multiplier per kept weight, found by bisection; where several groups change at the last
    /// multiplier, they are filled in their order.
    pub fn share_out(&self, total: usize) -> Vec<u32> {
        let all: usize = self.most.iter().map(|&m| m as usize).sum();
        if total >= all {
            return self.most.clone();
        }
        let largest = self.gain.iter().fold(0f64, |a, &b| a.max(b));
        let (mut low, mut high) = (-largest * 1.001, largest * 1.001);
        let mut few = vec![0u32; self.most.len()];
        let mut few_sum = 0;
        let mut many = self.most.clone();
        let mut many_sum = all;
        let mut counts = vec![0u32; self.most.len()];
        let mut lambda = 0.0;
        for _ in 0..100 {
            let sum = self.best(lambda, &mut counts);
            if sum == total {
                return counts;
            }
            if sum < total {
                low = lambda;
                few_sum = sum;
                std::mem::swap(&mut few, &mut counts);
            } else {
                high = lambda;
                many_sum = sum;
                std::mem::swap(&mut many, &mut counts);
            }
            lambda = low + (high - low) / 2.0;
            if lambda <= low || lambda >= high || many_sum - few_sum <= 1 {
                break;
            }
        }
        fill(&mut few, &many, total - few_sum);
        few
    }
}

/// Raise counts towards `many`, in order of the groups, by `missing` in all.
pub(super) fn fill(few: &mut [u32], many: &[u32], mut missing: usize) {
    for (few, &many) in few.iter_mut().zip(many) {
        let add = (many.saturating_sub(*few) as usize).min(missing);
        *few += add as u32;
        missing -= add;
    }
}
