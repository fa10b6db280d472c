//! Codes and scales as a packed file may hold them: refused, or a matrix that gives them back and multiplies as the
//! plain loops do, in both formats, by the path that `TRITPRESS_ISA` says.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use tritpress_core::kernel::{naive, Activations};
use tritpress_core::matrix::{Format, PackedMatrix};
use tritpress_core::packing::{groups_of, row_bytes, Canonical};

#[derive(arbitrary::Arbitrary, Debug)]
struct Input<'a> {
    rows: u8,
    cols: u16,
    planes: u8,
    group_size: u8,
    /// Whether codes and scales are made such that a writer could have written them.
    mended: bool,
    /// Bytes of codes that are missing.
    short: u8,
    tokens: u8,
    /// Each repeated as far as needed.
    codes: &'a [u8],
    scales: Vec<u16>,
    x: Vec<f32>,
}

fuzz_target!(|input: Input<'_>| {
    let (rows, cols, planes) =
        (input.rows as usize % 40, input.cols as usize % 600, input.planes as usize % 4);
    let group_size = [64, 0, 32, 128, 256, 48][input.group_size as usize % 6];
    let bytes = row_bytes(cols);
    let mut codes = fill(input.codes, 0x55, planes * rows * bytes);
    let mut scales = fill(&input.scales, 0x3c00, planes * rows * groups_of(cols, group_size));
    if input.mended {
        for (i, byte) in codes.iter_mut().enumerate() {
            *byte &= !((*byte & (*byte >> 1) & 0x55) << 1);
            if cols % 4 > 0 && i % bytes == bytes - 1 {
                let padding = 0xffu8 << (2 * (cols % 4));
                *byte = *byte & !padding | 0x55 & padding;
            }
        }
        for scale in &mut scales {
            *scale &= 0x7bff;
        }
    }
    codes.truncate(codes.len().saturating_sub(input.short.into()));
    let whole = codes.len() == planes * rows * bytes;
    let canonical = match Canonical::new(&codes, &scales, planes, (rows, cols), group_size, 1) {
        Ok(canonical) => canonical,
        Err(_) => return assert!(!(whole && input.mended && planes > 0 && group_size != 48)),
    };
    assert!(whole);
    let n = input.tokens as usize % 12;
    let x = fill(&input.x, 1.0, n * cols);
    for format in [Format::TwoBit, Format::OnePointSixBit] {
        let matrix = PackedMatrix::new(&canonical, format, 1).unwrap();
        assert_eq!(matrix.codes(1).unwrap(), codes);
        assert_eq!(matrix.scales(1).unwrap(), scales);
        assert_eq!(bits(&matrix.dequantize(1).unwrap()), bits(&canonical.dequantize(1).unwrap()));
        let found = matrix.matmul(&x, n, 1);
        if x.iter().any(|x| !x.is_finite()) {
            assert!(found.is_err());
            continue;
        }
        let mut expected = Vec::new();
        for token in 0..n {
            let x = Activations::quantize(&x[token * cols..][..cols], matrix.geometry()).unwrap();
            expected.extend(naive::matvec(&canonical, &x));
        }
        assert_eq!(bits(&found.unwrap()), bits(&expected));
    }
});

fn fill<T: Copy>(from: &[T], usual: T, length: usize) -> Vec<T> {
    if from.is_empty() {
        return vec![usual; length];
    }
    from.iter().copied().cycle().take(length).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
