//! The oracle: plain loops over the canonical layout.

use super::Activations;
use crate::half::f16_to_f32;
use crate::packing::Canonical;

/// The exact sum of T * q over one group.
pub fn group_sum(matrix: &Canonical<'_>, plane: usize, row: usize, group: usize, q: &[i8]) -> i32 {
    let width = if matrix.group_size == 0 { matrix.cols } else { matrix.group_size };
    let codes = matrix.codes_row(plane, row);
    (group * width..((group + 1) * width).min(matrix.cols))
        .map(|c| (((codes[c / 4] >> (2 * (c % 4))) & 3) as i32 - 1) * q[c] as i32)
        .sum()
}

/// float32 [rows]: what every path must return, bit for bit.
pub fn matvec(matrix: &Canonical<'_>, x: &Activations) -> Vec<f32> {
    (0..matrix.rows)
        .map(|row| {
            let mut sum = 0f32;
            for group in 0..matrix.groups() {
                for plane in 0..matrix.planes {
                    let exact = group_sum(matrix, plane, row, group, &x.q) as f32;
                    sum = exact.mul_add(f16_to_f32(matrix.scales_row(plane, row)[group]), sum);
                }
            }
            sum * x.scale
        })
        .collect()
}
