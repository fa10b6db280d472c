//! Latent weights in training: all results go into arrays that the caller made, so that memory is used again.

use numpy::{Element, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use tritpress_core::latent::{self, Shape};

use crate::arrays::{array, count, raise, refuse, target, threads};

fn shape_of(
    array: &PyReadonlyArrayDyn<'_, impl Element>,
    group_size: i64,
    planes: usize,
    name: &str,
) -> PyResult<Shape> {
    match *array.shape() {
        [rows, cols] => Ok(Shape { rows, cols, group: count("group_size", group_size)?, planes }),
        ref shape => refuse(format!("{name} must have two dimensions [out, in], not shape {shape:?}")),
    }
}

#[pyfunction]
#[pyo3(signature = (latent, borders, steps, group_size, out, *, threads=None))]
pub fn latent_codes(
    py: Python<'_>,
    latent: &Bound<'_, PyAny>,
    borders: &Bound<'_, PyAny>,
    steps: &Bound<'_, PyAny>,
    group_size: i64,
    out: &Bound<'_, PyAny>,
    threads: Option<i64>,
) -> PyResult<u64> {
    let threads = self::threads(threads)?;
    let latent = array::<f32>(latent, "latent", "float32")?;
    let borders = array::<f32>(borders, "borders", "float32")?;
    let steps = array::<i8>(steps, "steps", "int8")?;
    let mut out = target::<i8>(out, "out", 3, "int8")?;
    let shape = shape_of(&latent, group_size, out.shape()[0], "latent")?;
    let (latent, borders, steps, out) =
        (latent.as_slice()?, borders.as_slice()?, steps.as_slice()?, out.as_slice_mut()?);
    py.detach(|| latent::codes(latent, shape, borders, steps, threads, out)).map_err(raise)
}

#[pyfunction]
#[pyo3(signature = (latent, borders, nonzero, group_size, out, *, threads=None))]
pub fn latent_largest(
    py: Python<'_>,
    latent: &Bound<'_, PyAny>,
    borders: &Bound<'_, PyAny>,
    nonzero: i64,
    group_size: i64,
    out: &Bound<'_, PyAny>,
    threads: Option<i64>,
) -> PyResult<()> {
    let threads = self::threads(threads)?;
    let latent = array::<f32>(latent, "latent", "float32")?;
    let borders = array::<f32>(borders, "borders", "float32")?;
    let mut out = target::<i8>(out, "out", 3, "int8")?;
    let shape = shape_of(&latent, group_size, 1, "latent")?;
    let nonzero = count("nonzero", nonzero)?;
    let (latent, borders, out) = (latent.as_slice()?, borders.as_slice()?, out.as_slice_mut()?);
    py.detach(|| latent::largest(latent, shape, borders, nonzero, threads, out)).map_err(raise)
}

#[pyfunction]
#[pyo3(signature = (trits, scales, group_size, out, *, threads=None))]
pub fn decode_trits(
    py: Python<'_>,
    trits: &Bound<'_, PyAny>,
    scales: &Bound<'_, PyAny>,
    group_size: i64,
    out: &Bound<'_, PyAny>,
    threads: Option<i64>,
) -> PyResult<()> {
    let threads = self::threads(threads)?;
    let trits = array::<i8>(trits, "trits", "int8")?;
    let scales = array::<f32>(scales, "scales", "float32")?;
    let mut out = target::<f32>(out, "out", 2, "float32")?;
    let &[planes, ..] = trits.shape() else {
        return refuse("trits must have the dimensions [planes, out, in]");
    };
    let shape =
        Shape { rows: out.shape()[0], cols: out.shape()[1], group: count("group_size", group_size)?, planes };
    let (trits, scales, out) = (trits.as_slice()?, scales.as_slice()?, out.as_slice_mut()?);
    py.detach(|| latent::decode(trits, scales, shape, threads, out)).map_err(raise)
}

#[pyfunction]
#[pyo3(signature = (gradient, trits, group_size, out, *, threads=None))]
pub fn group_sums(
    py: Python<'_>,
    gradient: &Bound<'_, PyAny>,
    trits: &Bound<'_, PyAny>,
    group_size: i64,
    out: &Bound<'_, PyAny>,
    threads: Option<i64>,
) -> PyResult<()> {
    let threads = self::threads(threads)?;
    let gradient = array::<f32>(gradient, "gradient", "float32")?;
    let trits = array::<i8>(trits, "trits", "int8")?;
    let mut out = target::<f32>(out, "out", 3, "float32")?;
    let shape = shape_of(&gradient, group_size, out.shape()[0], "gradient")?;
    let (gradient, trits, out) = (gradient.as_slice()?, trits.as_slice()?, out.as_slice_mut()?);
    py.detach(|| latent::group_sums(gradient, trits, shape, threads, out)).map_err(raise)
}
