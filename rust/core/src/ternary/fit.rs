//! One plane of a band: scales, codes, and the residual left in place of the weights.

use super::lanes::{self, as_stored, beyond, halfway, kept_mean, nearest};
use super::rows::Rows;
use super::{Fit, Options};
use crate::half::{f64_to_f16, scale_to_f32, F16_MAX};
use crate::kernel::vectorized;
use crate::packing::{groups_of, pack_row, row_bytes};
use crate::scratch::Scratch;
use crate::stats::sum_lanes;

/// A scale that fp16 cannot hold; `row` counts from the band's start.
#[derive(Debug)]
pub struct TooBig {
    pub row: usize,
    pub group: usize,
    pub scale: f64,
}

/// The weights of a band, group by group.
pub(super) struct Band<'a> {
    pub w: &'a [f32],
    pub cols: usize,
    pub width: usize,
    pub groups: usize,
    pub importance: Option<&'a [f32]>,
}

impl<'a> Band<'a> {
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.w.len() / self.cols.max(1) * self.groups
    }

    #[inline(always)]
    pub fn group(&self, index: usize) -> (&'a [f32], Option<&'a [f32]>) {
        let (row, g) = (index / self.groups, index % self.groups);
        let (start, stop) = self.columns(g);
        let importance = self.importance.map(|h| &h[start..stop]);
        (&self.w[row * self.cols + start..row * self.cols + stop], importance)
    }

    #[inline(always)]
    fn columns(&self, g: usize) -> (usize, usize) {
        let start = g * self.width;
        (start, (start + self.width).min(self.cols))
    }

    /// Where a group's weights are in the band.
    #[inline(always)]
    pub fn place(&self, index: usize) -> std::ops::Range<usize> {
        let (row, g) = (index / self.groups, index % self.groups);
        let (start, stop) = self.columns(g);
        row * self.cols + start..row * self.cols + stop
    }
}

#[inline(always)]
pub(super) fn gain(a: f64, b: f64) -> f64 {
    if b > 0.0 {
        a * a / b
    } else {
        0.0
    }
}

vectorized! {
    /// Fit one plane. `codes` [rows, ceil(cols / 4)] and `scales` [rows, groups] are written; `w` becomes the
    /// residual if `more` planes follow.
    pub fn fit_plane(
        w: &mut [f32],
        cols: usize,
        importance: Option<&[f32]>,
        options: &Options,
        codes: &mut [u8],
        scales: &mut [u16],
        more: bool,
    ) -> Result<(), TooBig> = fit_plane_inlined;
}

#[inline(always)]
fn fit_plane_inlined(
    w: &mut [f32],
    cols: usize,
    importance: Option<&[f32]>,
    options: &Options,
    codes: &mut [u8],
    scales: &mut [u16],
    more: bool,
) -> Result<(), TooBig> {
    let groups = groups_of(cols, options.group_size);
    let width = if options.group_size == 0 { cols.max(1) } else { options.group_size };
    let band = Band { w, cols, width, groups, importance };
    let mut trits = Scratch::<i8>::new(band.w.len());
    let sizes = match (options.fit, options.threshold) {
        (Fit::Exact, None) if options.group_size == 0 && !options.bounded() => whole_rows(&band, &mut trits),
        (Fit::Exact, None) => lanes::exact(&band, options, &mut trits),
        _ => by_threshold(&band, options, &mut trits),
    };
    if let Some(index) = first_beyond(&sizes) {
        return Err(TooBig { row: index / groups, group: index % groups, scale: sizes[index] });
    }
    for (scale, &size) in scales.iter_mut().zip(&sizes) {
        *scale = f64_to_f16(size);
    }
    let bytes = row_bytes(cols);
    for (row, w) in w.chunks_mut(cols.max(1)).enumerate() {
        let trits = &mut trits[row * cols..(row + 1) * cols];
        let scales = &scales[row * groups..(row + 1) * groups];
        for ((w, t), &scale) in w.chunks_mut(width).zip(trits.chunks_mut(width)).zip(scales) {
            let scale = scale_to_f32(scale);
            if scale == 0.0 {
                t.fill(0); // an underflown scale has no codes
                continue;
            }
            if more {
                for (w, &mut t) in w.iter_mut().zip(t) {
                    *w -= scale * t as f32;
                }
            }
        }
        pack_row(trits, &mut codes[row * bytes..(row + 1) * bytes]);
    }
    Ok(())
}

/// The exact fit of every row as one group. Returns the scales before rounding.
#[inline(always)]
fn whole_rows(band: &Band, trits: &mut [i8]) -> Vec<f64> {
    let mut rows = Rows::new();
    let mut sizes = vec![0f64; band.len()];
    for (index, size) in sizes.iter_mut().enumerate() {
        let (w, h) = band.group(index);
        *size = rows.best(w, h);
        nearest(w, *size, &mut trits[band.place(index)]);
    }
    sizes
}

/// The first of the scales that fp16 cannot hold.
#[inline(always)]
fn first_beyond(sizes: &[f64]) -> Option<usize> {
    // By bits, in which numbers that are not negative have the same order: their maximum vectorizes.
    let most = sizes.iter().fold(0, |most, size| size.to_bits().max(most));
    (most > F16_MAX.to_bits()).then(|| sizes.iter().position(|&size| size > F16_MAX)).flatten()
}

/// How many codes of `weights`, of which `zeros` are 0, must not be; None when the fit may stand as it is.
#[inline(always)]
pub(super) fn required(options: &Options, weights: usize, zeros: usize) -> Option<usize> {
    let ceiling = options.max_sparsity.map(|s| (s * weights as f64).floor() as usize);
    if let Some(share) = options.sparsity {
        let wanted = (share * weights as f64).round() as usize;
        let wanted = ceiling.map_or(wanted, |most| wanted.min(most));
        return (wanted != zeros).then(|| weights - wanted);
    }
    ceiling.filter(|&most| zeros > most).map(|most| weights - most)
}

#[inline(always)]
fn zeros_of(trits: &[i8]) -> usize {
    let mut zeros = 0;
    for part in trits.chunks(255) {
        let mut count = 0u8;
        for &t in part {
            count += (t == 0) as u8;
        }
        zeros += count as usize;
    }
    zeros
}

#[inline(always)]
pub(super) fn sign(w: f32) -> i8 {
    (w > 0.0) as i8 - (w < 0.0) as i8
}

/// Fits that zero what is small beside the group's mean |w|: TWN, absmean, and any fit with a threshold.
#[inline(always)]
fn by_threshold(band: &Band, options: &Options, trits: &mut [i8]) -> Vec<f64> {
    let mut means = vec![0f64; band.len()];
    let (cols, groups) = (band.cols.max(1), band.groups.max(1));
    // Loops, not closures over iterators: those would not be compiled for the CPU's best. By rows and then by
    // groups: finding a group by its number takes two divisions.
    for (w, means) in band.w.chunks(cols).zip(means.chunks_mut(groups)) {
        let (usual, _) = w.as_chunks::<64>();
        if band.width == 64 && usual.len() == means.len() {
            // The usual groups again with a length known when compiled.
            for (mean, w) in means.iter_mut().zip(usual) {
                *mean = sum_lanes(w, |x| x.abs() as f64) / 64.0;
            }
            continue;
        }
        for (mean, w) in means.iter_mut().zip(w.chunks(band.width)) {
            *mean = sum_lanes(w, |x| x.abs() as f64) / w.len() as f64;
        }
    }
    let mut cuts = vec![0f32; means.len()];
    if options.fit == Fit::Absmean && options.threshold.is_none() {
        for (cut, &mean) in cuts.iter_mut().zip(&means) {
            *cut = halfway(as_stored(mean));
        }
    } else {
        let threshold = options.threshold.unwrap_or(0.7);
        for (near, &mean) in cuts.iter_mut().zip(&means) {
            // The largest float32 that is not above the cut: comparing with it is comparing with the cut.
            let cut = threshold * mean;
            *near = cut as f32;
            if *near as f64 > cut {
                *near = near.next_down();
            }
        }
    }
    let rows = band.w.chunks(cols).zip(trits.chunks_mut(cols)).zip(cuts.chunks(groups));
    for ((w, trits), cuts) in rows {
        let ((usual, _), (usual_trits, _)) = (w.as_chunks::<64>(), trits.as_chunks_mut::<64>());
        if band.width == 64 && usual.len() == cuts.len() {
            for ((w, trits), &cut) in usual.iter().zip(usual_trits).zip(cuts) {
                beyond(w, cut, trits);
            }
            continue;
        }
        for ((w, trits), &cut) in w.chunks(band.width).zip(trits.chunks_mut(band.width)).zip(cuts) {
            beyond(w, cut, trits);
        }
    }
    if options.bounded() {
        if let Some(kept) = required(options, trits.len(), zeros_of(trits)) {
            keep_largest(band, &means, kept, trits);
        }
    }
    if options.fit == Fit::Absmean {
        return means;
    }
    (0..band.len())
        .map(|index| {
            let (w, h) = band.group(index);
            kept_mean(w, h, &trits[band.place(index)])
        })
        .collect()
}

/// Keep the `kept` weights of the band that are largest beside their group's mean (in order where equal).
fn keep_largest(band: &Band, means: &[f64], kept: usize, trits: &mut [i8]) {
    let relative = |index: usize, w: f32| {
        if means[index] > 0.0 {
            (w.abs() as f64 / means[index]) as f32
        } else {
            0.0
        }
    };
    let mut all = Vec::with_capacity(band.w.len());
    for index in 0..band.len() {
        all.extend(band.group(index).0.iter().map(|&w| relative(index, w)));
    }
    let cut = if kept == 0 {
        f32::INFINITY
    } else {
        *all.select_nth_unstable_by(kept - 1, |a, b| b.total_cmp(a)).1
    };
    let above = all.iter().filter(|&&r| r > cut).count();
    let mut equal = kept.saturating_sub(above);
    for index in 0..band.len() {
        let (w, _) = band.group(index);
        for (t, &w) in trits[band.place(index)].iter_mut().zip(w) {
            let r = relative(index, w);
            let keep = r > cut || (r == cut && equal > 0);
            equal -= (r == cut && equal > 0) as usize;
            *t = if keep { sign(w) } else { 0 };
        }
    }
}
