//! The exact fit of sixteen groups at a time, one in each lane: a sorting network on |w|, then A_k and B_k by
//! running sums. No branch depends on the data, so the loops vectorize, and the order is that of a full sort.
//! Whole rows come here when zeros are counted, each sorted by itself.

use std::sync::OnceLock;

use super::fit::{gain, required, sign, Band};
use super::held::Sorted;
use super::rows::Rows;
use super::Options;
use crate::half::{f16_to_f32, f64_to_f16, F16_MAX};
use crate::known::known;
use crate::scratch::Scratch;

pub(super) const L: usize = 16;
pub(super) type Lane = [f32; L];
/// Floats that are not negative, as bits: they order as numbers do, and whole numbers have min and max.
pub(super) type Bits = [u32; L];

/// Batcher's odd-even merge sort of `width` (a power of two) values, as pairs to be put in order.
fn network(width: usize) -> &'static Vec<(u16, u16)> {
    static NETWORKS: [OnceLock<Vec<(u16, u16)>>; 4] = [const { OnceLock::new() }; 4];
    known(&NETWORKS[(width.trailing_zeros() as usize - 5) & 3], || {
        let mut pairs = Vec::new();
        let mut p = 1;
        while p < width {
            let mut k = p;
            while k > 0 {
                for j in (k % p..width - k).step_by(2 * k) {
                    for i in j..(j + k).min(width - k) {
                        if i / (2 * p) == (i + k) / (2 * p) {
                            pairs.push((i as u16, (i + k) as u16));
                        }
                    }
                }
                k /= 2;
            }
            p *= 2;
        }
        pairs
    })
}

#[inline(always)]
fn sort(keys: &mut [Bits]) {
    for &(i, j) in network(keys.len()) {
        let (a, b) = (keys[i as usize], keys[j as usize]);
        for l in 0..L {
            keys[i as usize][l] = a[l].max(b[l]);
        }
        for l in 0..L {
            keys[j as usize][l] = a[l].min(b[l]);
        }
    }
}

/// The same with the importance of each weight carried along.
#[inline(always)]
fn sort_weighted(keys: &mut [Bits], h: &mut [Bits]) {
    for &(i, j) in network(keys.len()) {
        let (i, j) = (i as usize, j as usize);
        let (a, b, g, f) = (keys[i], keys[j], h[i], h[j]);
        let (mut key_change, mut h_change) = ([0u32; L], [0u32; L]);
        for l in 0..L {
            let swap = if a[l] < b[l] { u32::MAX } else { 0 };
            key_change[l] = (a[l] ^ b[l]) & swap;
            h_change[l] = (g[l] ^ f[l]) & swap;
        }
        for l in 0..L {
            keys[i][l] = a[l] ^ key_change[l];
            keys[j][l] = b[l] ^ key_change[l];
        }
        for l in 0..L {
            h[i][l] = g[l] ^ h_change[l];
            h[j][l] = f[l] ^ h_change[l];
        }
    }
}

/// The best scale of each lane before rounding, and the importance that it keeps (without `h` the number of
/// weights); fills `gains` if it is not empty.
#[inline(always)]
fn scan(keys: &[Bits], h: Option<&[Bits]>, gains: &mut [Lane]) -> ([f64; L], [f64; L]) {
    let (mut a, mut b) = ([0f64; L], [0f64; L]);
    let (mut best, mut best_a, mut best_b) = ([0f64; L], [0f64; L], [1f64; L]);
    for (k, key) in keys.iter().enumerate() {
        let key = key.map(f32::from_bits);
        let mut now = [0f64; L];
        match h {
            None => {
                let (count, inverse) = ((k + 1) as f64, 1.0 / (k + 1) as f64);
                for l in 0..L {
                    a[l] += key[l] as f64;
                    now[l] = a[l] * a[l] * inverse;
                    b[l] = count;
                }
            }
            Some(h) => {
                let h = h[k].map(f32::from_bits);
                for l in 0..L {
                    a[l] += key[l] as f64 * h[l] as f64;
                    b[l] += h[l] as f64;
                    now[l] = gain(a[l], b[l]);
                }
            }
        }
        for l in 0..L {
            let better = now[l] > best[l];
            best[l] = if better { now[l] } else { best[l] };
            best_a[l] = if better { a[l] } else { best_a[l] };
            best_b[l] = if better { b[l] } else { best_b[l] };
        }
        if let Some(gains) = gains.get_mut(k + 1) {
            for l in 0..L {
                gains[l] = if key[l] > 0.0 { now[l] as f32 } else { f32::NEG_INFINITY };
            }
        }
    }
    if let Some(none) = gains.first_mut() {
        *none = [0f32; L];
    }
    let mut sizes = [0f64; L];
    for l in 0..L {
        sizes[l] = best_a[l] / best_b[l];
    }
    (sizes, best_b)
}

/// The exact fit: for each group of a band the k that maximises A_k^2 / B_k; with a ceiling or a target the ks that
/// give the least error for the number of zeros. Returns the scales before rounding.
#[inline(always)]
pub(super) fn exact(band: &Band, options: &Options, trits: &mut [i8]) -> Vec<f64> {
    let width = band.width;
    let groups = band.len();
    let blocks = groups.div_ceil(L);
    let bounded = options.bounded();
    let kept_blocks = if bounded { blocks } else { 1 };
    let mut sorted = Sorted {
        width,
        keys: Scratch::new(kept_blocks * width),
        gains: Scratch::new(if bounded { blocks * (width + 1) } else { 0 }),
        most: vec![0; if bounded { blocks * L } else { 0 }],
        kept: vec![0; if bounded && band.importance.is_none() { blocks * L } else { 0 }],
    };
    let mut rows = (options.group_size == 0).then(Rows::new);
    let mut h = vec![[0u32; L]; if band.importance.is_some() { width } else { 0 }];
    let mut sizes = vec![0f64; blocks * L];
    let mut zeros = trits.len();
    for block in 0..blocks {
        let keys = &mut sorted.keys[if bounded { block * width } else { 0 }..][..width];
        let lanes = (groups - block * L).min(L);
        match &mut rows {
            Some(rows) => rows.load(band, block * L, lanes, keys, &mut h),
            None => {
                load(band, block, lanes, keys, &mut h);
                match band.importance {
                    Some(_) => sort_weighted(keys, &mut h),
                    None => sort(keys),
                }
            }
        }
        let gains = match bounded {
            true => &mut sorted.gains[block * (width + 1)..][..width + 1],
            false => &mut [],
        };
        let (found, kept) = match band.importance {
            Some(_) => scan(keys, Some(&h), gains),
            None => scan(keys, None, gains),
        };
        sizes[block * L..][..L].copy_from_slice(&found);
        if bounded {
            // Codes are written when it is known how many there may be.
            zeros -= above(keys, found.map(|size| halfway(as_stored(size)).to_bits())).iter().sum::<u32>()
                as usize;
            sorted.most[block * L..][..L].copy_from_slice(&above(keys, [0; L]));
            if let Some(counts) = sorted.kept.get_mut(block * L..(block + 1) * L) {
                let most = &sorted.most[block * L..];
                // A group of zeros alone keeps none.
                for l in 0..L {
                    counts[l] = (kept[l] as u32).min(most[l]);
                }
            }
        } else {
            for lane in 0..lanes {
                let index = block * L + lane;
                nearest(band.group(index).0, found[lane], &mut trits[band.place(index)]);
            }
        }
    }
    sizes.truncate(groups);
    if bounded {
        match required(options, trits.len(), zeros) {
            Some(kept) => sorted.keep(band, kept, &mut sizes, trits),
            None => {
                for (index, &size) in sizes.iter().enumerate() {
                    nearest(band.group(index).0, size, &mut trits[band.place(index)]);
                }
            }
        }
    }
    sizes
}

/// How many keys of each lane are above `cut`.
#[inline(always)]
fn above(keys: &[Bits], cut: Bits) -> [u32; L] {
    let mut count = [0u32; L];
    for key in keys {
        for l in 0..L {
            count[l] += (key[l] > cut[l]) as u32;
        }
    }
    count
}

/// |w| (and h) of a block's groups, one in each lane; what a group lacks is 0.
#[inline(always)]
fn load(band: &Band, block: usize, lanes: usize, keys: &mut [Bits], h: &mut [Bits]) {
    if lanes == L && band.cols.is_multiple_of(band.width) && band.importance.is_none() {
        // The groups lie one after the other: 16 weights of each at a time.
        let w = &band.w[block * L * band.width..][..L * band.width];
        for (part, keys) in keys.as_chunks_mut::<L>().0.iter_mut().enumerate() {
            let rows: [&Lane; L] = std::array::from_fn(|l| {
                w[l * band.width + part * L..].first_chunk().expect("a group's weights")
            });
            for (i, key) in keys.iter_mut().enumerate() {
                for l in 0..L {
                    key[l] = rows[l][i].abs().to_bits();
                }
            }
        }
        return;
    }
    if lanes < L || !band.cols.is_multiple_of(band.width) {
        keys.fill([0; L]);
        h.fill([0; L]);
    }
    for lane in 0..lanes {
        let (w, importance) = band.group(block * L + lane);
        for (key, w) in keys.iter_mut().zip(w) {
            key[lane] = w.abs().to_bits();
        }
        if let Some(importance) = importance {
            // A group without any importance counts as one of equal importance.
            let none = !importance.iter().any(|&x| x > 0.0);
            for (h, &x) in h.iter_mut().zip(importance) {
                h[lane] = if none { 1f32.to_bits() } else { x.to_bits() };
            }
        }
    }
}

/// Codes nearest to w / scale for the scale as it will be stored.
#[inline(always)]
pub(super) fn nearest(w: &[f32], size: f64, trits: &mut [i8]) {
    beyond_usual(w, halfway(as_stored(size)), trits);
}

/// `beyond` for one group.
#[inline(always)]
pub(super) fn beyond_usual(w: &[f32], cut: f32, trits: &mut [i8]) {
    match (<&[f32; 64]>::try_from(w), <&mut [i8; 64]>::try_from(&mut *trits)) {
        // The usual group again with a length known when compiled.
        (Ok(w), Ok(trits)) => beyond(w, cut, trits),
        _ => beyond(w, cut, trits),
    }
}

/// A scale as fp16 keeps it; one that is too large as the largest.
#[inline(always)]
pub(super) fn as_stored(size: f64) -> f32 {
    f16_to_f32(f64_to_f16(size.min(F16_MAX)))
}

/// Above what |w| a code is nearer to `scale` than 0 is; a scale of 0 has no codes.
#[inline(always)]
pub(super) fn halfway(scale: f32) -> f32 {
    let half = scale / 2.0;
    if half > 0.0 {
        half
    } else {
        f32::INFINITY
    }
}

/// The signs of weights beyond `cut`, 0 for the others.
#[inline(always)]
pub(super) fn beyond(w: &[f32], cut: f32, trits: &mut [i8]) {
    for (t, &w) in trits.iter_mut().zip(w) {
        *t = (w > cut) as i8 - (w < -cut) as i8;
    }
}

/// Codes of the `count` weights that are not below `last` in size; of those of that very size the first in order.
#[inline(always)]
pub(super) fn first_of_equals(w: &[f32], count: usize, last: f32, trits: &mut [i8]) {
    let above = w.iter().filter(|w| w.abs() > last).count();
    let mut more = count - above;
    for (t, &w) in trits.iter_mut().zip(w) {
        let equal = w.abs() == last;
        *t = if w.abs() > last || (equal && more > 0) { sign(w) } else { 0 };
        more -= (equal && more > 0) as usize;
    }
}

/// The weighted mean |w| of what is kept (the plain mean where nothing kept has importance), 0 if nothing is.
#[inline(always)]
pub(super) fn kept_mean(w: &[f32], h: Option<&[f32]>, trits: &[i8]) -> f64 {
    let (mut a, mut b) = ([0f64; 8], [0f64; 8]);
    if let Some(h) = h {
        for (i, ((w, t), h)) in w.iter().zip(trits).zip(h).enumerate() {
            let h = if *t != 0 { *h as f64 } else { 0.0 };
            a[i & 7] += h * w.abs() as f64;
            b[i & 7] += h;
        }
        let total: f64 = b.iter().sum();
        if total > 0.0 {
            return a.iter().sum::<f64>() / total;
        }
        (a, b) = ([0f64; 8], [0f64; 8]);
    }
    let (whole, rest) = (w.len() / 8 * 8, w.len() % 8);
    for (w, t) in w.chunks_exact(8).zip(trits.chunks_exact(8)) {
        for l in 0..8 {
            let kept = if t[l] != 0 { 1f64 } else { 0.0 };
            a[l] += kept * w[l].abs() as f64;
            b[l] += kept;
        }
    }
    for l in 0..rest {
        let kept = if trits[whole + l] != 0 { 1f64 } else { 0.0 };
        a[l] += kept * w[whole + l].abs() as f64;
        b[l] += kept;
    }
    let total: f64 = b.iter().sum();
    if total > 0.0 {
        a.iter().sum::<f64>() / total
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_networks_sort() {
        for width in [32usize, 64, 128, 256] {
            let mut keys = vec![[0u32; L]; width];
            let mut h = keys.clone();
            let mut state = width as u64;
            for key in keys.iter_mut() {
                for x in key.iter_mut() {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    *x = ((state % 50) as f32).to_bits();
                }
            }
            let mut weighted = keys.clone();
            h.copy_from_slice(&keys);
            sort(&mut keys);
            sort_weighted(&mut weighted, &mut h);
            assert_eq!(keys, weighted);
            assert_eq!(keys, h, "what is carried along stays with its key");
            for l in 0..L {
                assert!(keys.windows(2).all(|pair| pair[0][l] >= pair[1][l]), "width {width}, lane {l}");
            }
        }
    }
}
