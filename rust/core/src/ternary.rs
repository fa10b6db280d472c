//! Weights -> ternary codes and scales.
//!
//! A scale is fitted for each row and group of inputs, rounded to fp16, and only then are the codes and the next
//! plane's residual taken against the rounded scale. Work goes by bands of rows whose height depends on the
//! number of columns alone, so the result does not depend on threads or on how a tensor is read.

mod fit;
mod held;
mod lanes;
mod rows;

use std::sync::Mutex;

use crate::error::{Error, Result};
use crate::half::bf16_to_f32;
use crate::kernel::{vectorized, widen_halves};
use crate::packing::{check_group_size, groups_of, row_bytes};
use crate::pool;
use crate::scratch::Scratch;

pub use fit::fit_plane;

/// Weights in a band of rows, about; a zero ceiling or target is met in each band.
pub const BAND_WEIGHTS: usize = 1 << 18;

/// More planes than this are refused.
pub const MAX_PLANES: usize = 8;

/// Rows of a band.
pub fn band_rows(cols: usize) -> usize {
    (BAND_WEIGHTS / cols.max(1)).max(1)
}

/// Weights of the rows of a band that are worked on at a time where the band as a whole does not matter: they
/// stay in the second-level cache from the first pass to the last.
const PART_WEIGHTS: usize = 1 << 15;

/// Rows of a part of a band.
pub fn part_rows(cols: usize) -> usize {
    (PART_WEIGHTS / cols.max(1)).max(1)
}

/// How one group's scale and codes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Least squares, exactly: the first k of the weights by falling |w|, k = argmax A_k^2 / B_k.
    Exact,
    /// Zero where |w| <= 0.7 mean|w|; the scale is the mean of the rest (Ternary Weight Networks).
    Twn,
    /// Scale mean|w|, codes clip(round(w / scale), -1, 1) (BitNet b1.58).
    Absmean,
}

impl Fit {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "exact" => Ok(Fit::Exact),
            "twn" => Ok(Fit::Twn),
            "absmean" => Ok(Fit::Absmean),
            _ => Err(Error::option(format!("fit must be 'exact', 'twn' or 'absmean', not '{name}'"))),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    pub fit: Fit,
    /// 32, 64, 128, 256 or 0 (the whole row).
    pub group_size: usize,
    pub planes: usize,
    /// Zero where |w| <= threshold * mean|w| of the group.
    pub threshold: Option<f64>,
    /// Share of zero codes to reach, in every plane.
    pub sparsity: Option<f64>,
    /// Share of zero codes not to exceed, in every plane. A weight of exactly 0 stays 0 all the same.
    pub max_sparsity: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            fit: Fit::Exact,
            group_size: 64,
            planes: 1,
            threshold: None,
            sparsity: None,
            max_sparsity: None,
        }
    }
}

impl Options {
    /// Whether the zeros of a band are counted together, so that it must be fitted as a whole.
    pub fn bounded(&self) -> bool {
        self.sparsity.is_some() || self.max_sparsity.is_some()
    }

    /// Errors: values out of range, or a threshold together with a target sparsity.
    pub fn check(&self) -> Result<()> {
        check_group_size(self.group_size)?;
        if !(1..=MAX_PLANES).contains(&self.planes) {
            return Err(Error::option(format!("planes must be from 1 to {MAX_PLANES}, not {}", self.planes)));
        }
        if let Some(t) = self.threshold {
            if !(t.is_finite() && t >= 0.0) {
                return Err(Error::option(format!("threshold must be a number from 0 up, not {t}")));
            }
            if self.sparsity.is_some() {
                return Err(Error::option("give threshold or sparsity, not both: each decides the zeros"));
            }
        }
        for (name, share) in [("sparsity", self.sparsity), ("max_sparsity", self.max_sparsity)] {
            if let Some(s) = share {
                if !(0.0..=1.0).contains(&s) {
                    return Err(Error::option(format!("{name} must be a share from 0 to 1, not {s}")));
                }
            }
        }
        Ok(())
    }
}

/// Weights as they lie in memory or in a file.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
    BF16(&'a [u16]),
}

impl Weights<'_> {
    pub fn len(&self) -> usize {
        match self {
            Weights::F32(w) => w.len(),
            Weights::F16(w) | Weights::BF16(w) => w.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Convert `out.len()` weights from `start` on to float32.
    pub fn read(&self, start: usize, out: &mut [f32]) {
        vectorized! { fn read(from: &Weights<'_>, start: usize, out: &mut [f32]) = Weights::read_inlined; }
        read(self, start, out);
    }

    #[inline(always)]
    fn read_inlined(&self, start: usize, out: &mut [f32]) {
        let range = start..start + out.len();
        match self {
            Weights::F32(w) => out.copy_from_slice(&w[range]),
            Weights::F16(w) => widen_halves(&w[range], out),
            Weights::BF16(w) => out.iter_mut().zip(&w[range]).for_each(|(o, &b)| *o = bf16_to_f32(b)),
        }
    }
}

vectorized! {
    fn all_finite(w: &[f32]) -> bool = all_finite_inlined;
}

#[inline(always)]
fn all_finite_inlined(w: &[f32]) -> bool {
    w.iter().fold(0u32, |most, x| most.max(x.to_bits() & 0x7fff_ffff)) < 0x7f80_0000
}

/// Refuse NaN and infinity, saying where.
pub fn check_finite(w: &[f32], cols: usize, first_row: usize) -> Result<()> {
    if all_finite(w) {
        return Ok(());
    }
    let at = w.iter().position(|x| !x.is_finite()).unwrap_or(0);
    Err(Error::data(format!(
        "the weight at row {}, column {} is {}: weights must be finite",
        first_row + at / cols,
        at % cols,
        w[at]
    )))
}

/// Errors: wrong length, or a value that is negative, NaN or infinite.
pub fn check_importance(importance: Option<&[f32]>, cols: usize) -> Result<()> {
    let Some(h) = importance else { return Ok(()) };
    if h.len() != cols {
        return Err(Error::shape(format!("importance has {} values for {cols} columns", h.len())));
    }
    match h.iter().position(|x| !(x.is_finite() && *x >= 0.0)) {
        None => Ok(()),
        Some(bad) => {
            Err(Error::data(format!("importance[{bad}] is {}: it must be finite and not negative", h[bad])))
        }
    }
}

/// Codes and scales in the canonical layout: codes [planes, rows, ceil(cols / 4)], scales (fp16 bits)
/// [planes, rows, groups].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ternary {
    pub codes: Vec<u8>,
    pub scales: Vec<u16>,
}

/// Ternarize one band; `w` (float32 [rows, cols]) is overwritten with residuals if there are several planes.
/// Errors: weights not finite, a scale beyond fp16; `first_row` is what messages count from.
pub fn ternarize_band(
    w: &mut [f32],
    cols: usize,
    importance: Option<&[f32]>,
    options: &Options,
    first_row: usize,
) -> Result<Ternary> {
    check_finite(w, cols, first_row)?;
    let rows = w.len().checked_div(cols).unwrap_or(0);
    let (bytes, groups) = (row_bytes(cols), groups_of(cols, options.group_size));
    let mut out = Ternary {
        codes: vec![0; options.planes * rows * bytes],
        scales: vec![0; options.planes * rows * groups],
    };
    for plane in 0..options.planes {
        let codes = &mut out.codes[plane * rows * bytes..(plane + 1) * rows * bytes];
        let scales = &mut out.scales[plane * rows * groups..(plane + 1) * rows * groups];
        let more = plane + 1 < options.planes;
        fit_plane(w, cols, importance, options, codes, scales, more).map_err(|big| {
            Error::data(format!(
                "the scale {:e} of row {}, group {} is beyond fp16 (65504)",
                big.scale,
                first_row + big.row,
                big.group
            ))
        })?;
    }
    Ok(out)
}

/// Ternarize a matrix [rows, cols].
pub fn ternarize(
    weights: Weights<'_>,
    (rows, cols): (usize, usize),
    importance: Option<&[f32]>,
    options: &Options,
    threads: usize,
) -> Result<Ternary> {
    options.check()?;
    check_importance(importance, cols)?;
    if rows.checked_mul(cols) != Some(weights.len()) {
        return Err(Error::shape(format!("{} weights are not {rows} x {cols}", weights.len())));
    }
    let (bytes, groups) = (row_bytes(cols), groups_of(cols, options.group_size));
    let band = band_rows(cols);
    let bands = if cols == 0 { 0 } else { rows.div_ceil(band) };
    let results: Vec<Mutex<Option<Result<Ternary>>>> = (0..bands).map(|_| Mutex::new(None)).collect();
    pool::run(threads, bands, |index| {
        let first = index * band;
        let mut w = Scratch::<f32>::new(band.min(rows - first) * cols);
        weights.read(first * cols, &mut w);
        let result = ternarize_band(&mut w, cols, importance, options, first);
        *results[index].lock().unwrap_or_else(|p| p.into_inner()) = Some(result);
    });
    let mut out = Ternary {
        codes: vec![0; options.planes * rows * bytes],
        scales: vec![0; options.planes * rows * groups],
    };
    for (index, slot) in results.into_iter().enumerate() {
        let Some(result) = slot.into_inner().unwrap_or_else(|p| p.into_inner()) else { continue };
        let part = result?;
        let first = index * band;
        let height = band.min(rows - first);
        for plane in 0..options.planes {
            let to = (plane * rows + first) * bytes;
            let from = plane * height * bytes;
            out.codes[to..to + height * bytes].copy_from_slice(&part.codes[from..from + height * bytes]);
            let to = (plane * rows + first) * groups;
            let from = plane * height * groups;
            out.scales[to..to + height * groups].copy_from_slice(&part.scales[from..from + height * groups]);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
