//! A tensor in one file -> its codes and scales in another, band by band, in constant memory.
//! Bytes are read and written at positions, never mapped: mapped pages would count as memory.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;

use crate::error::{Error, Result};
use crate::half::{bf16_to_f32, f16_to_f32};
use crate::kernel::vectorized;
use crate::packing::{groups_of, row_bytes, Canonical};
use crate::pool;
use crate::scratch::Scratch;
use crate::stats::{Statistics, Tally};
use crate::ternary::{band_rows, check_importance, part_rows, ternarize_band, Options};

/// Where a tensor lies and what it is: [rows, cols] as ternarized, stored as [cols, rows] if `transposed`.
pub struct Source<'a> {
    pub path: &'a Path,
    pub offset: u64,
    /// "F32", "F16" or "BF16", little-endian.
    pub dtype: &'a str,
    pub rows: usize,
    pub cols: usize,
    pub transposed: bool,
}

/// Where the packed tensor goes: planes one after the other from each offset, a plane's codes
/// `rows * ceil(cols / 4)` bytes and its scales `2 * rows * groups` bytes apart.
pub struct Target<'a> {
    pub path: &'a Path,
    pub codes_offset: u64,
    pub scales_offset: u64,
}

/// Ternarize a stored tensor; the bytes are those of [`crate::ternary::ternarize`] on the whole array.
/// Errors: files that cannot be read or written, an unknown dtype, weights not finite, scales beyond fp16.
pub fn ternarize_stream(
    source: &Source<'_>,
    target: &Target<'_>,
    importance: Option<&[f32]>,
    options: &Options,
    threads: usize,
) -> Result<Statistics> {
    options.check()?;
    let (rows, cols) = (source.rows, source.cols);
    check_importance(importance, cols)?;
    let element = match source.dtype {
        "F32" => 4u64,
        "F16" | "BF16" => 2,
        other => return Err(Error::option(format!("dtype must be F32, F16 or BF16, not '{other}'"))),
    };
    let shown = source.path.display();
    let read_error = |e| Error::Io("read", source.path.to_owned(), e);
    let write_error = |e| Error::Io("write", target.path.to_owned(), e);
    let input = File::open(source.path).map_err(read_error)?;
    let size = input.metadata().map_err(read_error)?.len();
    let end = (rows as u64)
        .checked_mul(cols as u64)
        .and_then(|n| n.checked_mul(element))
        .and_then(|n| n.checked_add(source.offset));
    if end.is_none_or(|end| end > size) {
        return Err(Error::format(format!(
            "{shown}: a {rows} x {cols} {} tensor at byte {} reaches past the end of the file ({size} bytes)",
            source.dtype, source.offset
        )));
    }
    check_target(source, target, options)?;
    let output = OpenOptions::new().write(true).open(target.path).map_err(write_error)?;
    let band = band_rows(cols);
    let bands = if cols == 0 { 0 } else { rows.div_ceil(band) };
    let (bytes, groups) = (row_bytes(cols), groups_of(cols, options.group_size));
    let parts: Vec<Mutex<Option<Result<Statistics>>>> = (0..bands).map(|_| Mutex::new(None)).collect();
    let failed = AtomicBool::new(false);
    let planes = options.planes;
    // A band is read and written at once and worked on in parts that stay in the second-level cache, unless its
    // zeros are counted together or its rows are columns of the file.
    let whole = source.transposed || options.bounded();
    let one = |index: usize| -> Result<Statistics> {
        let first = index * band;
        let height = band.min(rows - first);
        let mut raw = Scratch::<u8>::new(height * cols * element as usize);
        read_band(&input, source, element as usize, first, &mut raw).map_err(read_error)?;
        let mut codes = Scratch::<u8>::new(planes * height * bytes);
        let mut scales = Scratch::<u8>::new(planes * height * groups * 2);
        let mut tally = Tally::new(planes);
        let step = if whole { height } else { part_rows(cols) };
        for at in (0..height).step_by(step) {
            let rows = step.min(height - at);
            let mut w = Scratch::<f32>::new(rows * cols);
            to_floats(&raw[at * cols * element as usize..], source, &mut w);
            let t = if planes > 1 {
                let mut residual = Scratch::<f32>::new(w.len());
                residual.copy_from_slice(&w);
                ternarize_band(&mut residual, cols, importance, options, first + at)?
            } else {
                ternarize_band(&mut w, cols, importance, options, first + at)?
            };
            let matrix = Canonical {
                codes: &t.codes,
                scales: &t.scales,
                planes,
                rows,
                cols,
                group_size: options.group_size,
            };
            tally.add(&w, &matrix);
            for plane in 0..planes {
                codes[(plane * height + at) * bytes..][..rows * bytes]
                    .copy_from_slice(&t.codes[plane * rows * bytes..][..rows * bytes]);
                let scales = &mut scales[(plane * height + at) * groups * 2..][..rows * groups * 2];
                let found = &t.scales[plane * rows * groups..][..rows * groups];
                for (bytes, scale) in scales.chunks_exact_mut(2).zip(found) {
                    bytes.copy_from_slice(&scale.to_le_bytes());
                }
            }
        }
        let write = |all: &[u8], start: u64, row_bytes: usize| -> Result<()> {
            for plane in 0..planes {
                let at = start + ((plane * rows + first) * row_bytes) as u64;
                let plane = &all[plane * height * row_bytes..][..height * row_bytes];
                output.write_all_at(plane, at).map_err(write_error)?;
            }
            Ok(())
        };
        write(&codes, target.codes_offset, bytes)?;
        write(&scales, target.scales_offset, groups * 2)?;
        Ok(tally.finish())
    };
    pool::run(threads, bands, |index| {
        if failed.load(Ordering::Relaxed) {
            return; // some band has failed: the rest would be thrown away
        }
        let part = one(index);
        if part.is_err() {
            failed.store(true, Ordering::Relaxed);
        }
        *parts[index].lock().unwrap_or_else(|p| p.into_inner()) = Some(part);
    });
    let mut out = Statistics::new(options.planes);
    for part in parts {
        if let Some(part) = part.into_inner().unwrap_or_else(|p| p.into_inner()) {
            out.merge(&part?);
        }
    }
    Ok(out)
}

/// Refuse a target whose codes and scales would lie over each other, over the source or beyond any file.
fn check_target(source: &Source<'_>, target: &Target<'_>, options: &Options) -> Result<()> {
    let many = options.planes.checked_mul(source.rows);
    let end = |start: u64, bytes: usize| start.checked_add(many?.checked_mul(bytes)? as u64);
    let codes = end(target.codes_offset, row_bytes(source.cols));
    let scales =
        groups_of(source.cols, options.group_size).checked_mul(2).and_then(|b| end(target.scales_offset, b));
    let (Some(codes), Some(scales)) = (codes, scales) else {
        return Err(Error::option("codes_offset or scales_offset is beyond any file"));
    };
    let (no_codes, no_scales) = (codes == target.codes_offset, scales == target.scales_offset);
    if !no_codes && !no_scales && target.codes_offset < scales && target.scales_offset < codes {
        return Err(Error::option(format!(
            "codes at [{}, {codes}) and scales at [{}, {scales}) overlap",
            target.codes_offset, target.scales_offset
        )));
    }
    let same = |path: &Path| std::fs::canonicalize(path).ok();
    if same(source.path).is_some_and(|path| Some(path) == same(target.path)) {
        return Err(Error::option(format!("{} cannot be source and target", source.path.display())));
    }
    Ok(())
}

/// The bytes of as many rows from `first` on as `raw` has place for; a transposed tensor's come as
/// [cols, those rows].
fn read_band(
    file: &File,
    source: &Source<'_>,
    element: usize,
    first: usize,
    raw: &mut [u8],
) -> std::io::Result<()> {
    let (rows, cols) = (source.rows, source.cols);
    if !source.transposed {
        return file.read_exact_at(raw, source.offset + (first * cols * element) as u64);
    }
    let stored = raw.len() / cols.max(1);
    for (col, part) in raw.chunks_exact_mut(stored.max(1)).enumerate() {
        file.read_exact_at(part, source.offset + ((col * rows + first) * element) as u64)?;
    }
    Ok(())
}

/// Bytes as they were read -> float32 [rows, cols] (if transposed of all that was read, else from its start).
fn to_floats(raw: &[u8], source: &Source<'_>, w: &mut [f32]) {
    if !source.transposed {
        return decode(raw, source.dtype, w);
    }
    let mut stored = Scratch::<f32>::new(w.len());
    decode(raw, source.dtype, &mut stored);
    const BLOCK: usize = 16;
    let (cols, height) = (source.cols, w.len() / source.cols.max(1));
    for row in (0..height).step_by(BLOCK) {
        for (col, stored) in stored.chunks_exact(height).enumerate() {
            for r in row..(row + BLOCK).min(height) {
                w[r * cols + col] = stored[r];
            }
        }
    }
}

vectorized! {
    /// Little-endian bytes -> float32.
    fn decode(raw: &[u8], dtype: &str, out: &mut [f32]) = decode_inlined;
}

#[inline(always)]
fn decode_inlined(raw: &[u8], dtype: &str, out: &mut [f32]) {
    let halves = raw.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        "F32" => out
            .iter_mut()
            .zip(raw.chunks_exact(4))
            .for_each(|(w, b)| *w = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        "F16" => out.iter_mut().zip(halves).for_each(|(w, h)| *w = f16_to_f32(h)),
        _ => out.iter_mut().zip(halves).for_each(|(w, h)| *w = bf16_to_f32(h)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::layer_statistics;
    use crate::ternary::{ternarize, Weights};

    fn temporary(name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("tritpress-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn equals_the_call_in_memory() {
        let (rows, cols) = (300, 1100);
        let halves: Vec<u16> =
            (0..rows * cols).map(|i| 0x3c00 + ((i * 7919) % 997) as u16 + ((i % 2) << 15) as u16).collect();
        let w: Vec<f32> = halves.iter().map(|&h| bf16_to_f32(h)).collect();
        let options = Options { planes: 2, max_sparsity: Some(0.4), ..Options::default() };
        let whole = ternarize(Weights::F32(&w), (rows, cols), None, &options, 2).unwrap();
        let canonical = Canonical::new(&whole.codes, &whole.scales, 2, (rows, cols), 64, 1).unwrap();
        let expected = layer_statistics(Weights::BF16(&halves), &canonical, 2).unwrap();
        for transposed in [false, true] {
            let mut raw = vec![7u8; 10];
            for i in 0..rows * cols {
                let at = if transposed { i % rows * cols + i / rows } else { i };
                raw.extend_from_slice(&halves[at].to_le_bytes());
            }
            let from = temporary(&format!("in-{transposed}"), &raw);
            let to = temporary(&format!("out-{transposed}"), &[]);
            let source = Source { path: &from, offset: 10, dtype: "BF16", rows, cols, transposed };
            let codes_offset = 6 + 2 * whole.scales.len() as u64;
            let target = Target { path: &to, codes_offset, scales_offset: 6 };
            let statistics = ternarize_stream(&source, &target, None, &options, 3).unwrap();
            assert_eq!(statistics, expected);
            let written = std::fs::read(&to).unwrap();
            assert_eq!(written[codes_offset as usize..], whole.codes);
            let scales: Vec<u8> = whole.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
            assert_eq!(written[6..codes_offset as usize], scales);
            let past = Source { offset: 12, ..source };
            assert!(ternarize_stream(&past, &target, None, &options, 1)
                .unwrap_err()
                .to_string()
                .contains("past the end"));
            std::fs::remove_file(from).unwrap();
            std::fs::remove_file(to).unwrap();
        }
    }
}
