//! The inner loops of a second-order fit.

use numpy::{PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use tritpress_core::sweep::{self, Passing, Points};

use crate::arrays::{array, count, raise, refuse, target, threads};

/// [R, G] of `values`, checked against the rows of the points [R, K].
fn shape_of(values: &[usize], table: &PyReadonlyArrayDyn<'_, f32>) -> PyResult<usize> {
    match (values, table.shape()) {
        (&[rows, width], &[same, _]) if rows == same => Ok(width),
        (values, table) => refuse(format!("a group {values:?} and points {table:?} must have the same rows")),
    }
}

#[pyfunction]
#[pyo3(signature = (values, table, zeros, price, factor, out, *, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn sweep_group(
    py: Python<'_>,
    values: &Bound<'_, PyAny>,
    table: &Bound<'_, PyAny>,
    zeros: &Bound<'_, PyAny>,
    price: Option<f32>,
    factor: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    threads: Option<i64>,
) -> PyResult<()> {
    let threads = self::threads(threads)?;
    let mut values = target::<f32>(values, "values", 2, "float32")?;
    let table = array::<f32>(table, "table", "float32")?;
    let zeros = array::<f32>(zeros, "zeros", "float32")?;
    let factor = array::<f32>(factor, "factor", "float32")?;
    let mut out = target::<i64>(out, "out", 2, "int64")?;
    let width = shape_of(values.shape(), &table)?;
    let points = Points { table: table.as_slice()?, zeros: zeros.as_slice()?, price };
    let passing = Passing::Factor(factor.as_slice()?);
    let (values, out) = (values.as_slice_mut()?, out.as_slice_mut()?);
    py.detach(|| sweep::code_group(values, width, &points, &passing, threads, out)).map_err(raise)
}

#[pyfunction]
#[pyo3(signature = (values, gradient, table, zeros, price, hessian, out, *, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn descend_group(
    py: Python<'_>,
    values: &Bound<'_, PyAny>,
    gradient: &Bound<'_, PyAny>,
    table: &Bound<'_, PyAny>,
    zeros: &Bound<'_, PyAny>,
    price: Option<f32>,
    hessian: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    threads: Option<i64>,
) -> PyResult<()> {
    let threads = self::threads(threads)?;
    let mut values = target::<f32>(values, "values", 2, "float32")?;
    let gradient = array::<f32>(gradient, "gradient", "float32")?;
    let table = array::<f32>(table, "table", "float32")?;
    let zeros = array::<f32>(zeros, "zeros", "float32")?;
    let hessian = array::<f32>(hessian, "hessian", "float32")?;
    let mut out = target::<i64>(out, "out", 2, "int64")?;
    let width = shape_of(values.shape(), &table)?;
    let points = Points { table: table.as_slice()?, zeros: zeros.as_slice()?, price };
    let passing = Passing::Descent { hessian: hessian.as_slice()?, gradient: gradient.as_slice()? };
    let (values, out) = (values.as_slice_mut()?, out.as_slice_mut()?);
    py.detach(|| sweep::code_group(values, width, &points, &passing, threads, out)).map_err(raise)
}

#[pyfunction]
#[pyo3(signature = (weights, importance, table, zeros, allowed, both_ways, *, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn zero_price(
    py: Python<'_>,
    weights: &Bound<'_, PyAny>,
    importance: &Bound<'_, PyAny>,
    table: &Bound<'_, PyAny>,
    zeros: &Bound<'_, PyAny>,
    allowed: f64,
    both_ways: bool,
    threads: Option<i64>,
) -> PyResult<f32> {
    let threads = self::threads(threads)?;
    let weights = array::<f32>(weights, "weights", "float32")?;
    let importance = array::<f32>(importance, "importance", "float32")?;
    let table = array::<f32>(table, "table", "float32")?;
    let zeros = array::<f32>(zeros, "zeros", "float32")?;
    let width = shape_of(weights.shape(), &table)?;
    if importance.len() != width {
        return refuse(format!("importance must have {width} values, not {}", importance.len()));
    }
    let points = Points { table: table.as_slice()?, zeros: zeros.as_slice()?, price: None };
    let (weights, importance) = (weights.as_slice()?, importance.as_slice()?);
    py.detach(|| sweep::zero_price(weights, importance, &points, allowed, both_ways, threads)).map_err(raise)
}

#[pyfunction]
#[pyo3(signature = (weights, importance, scales, rounds, *, threads=None))]
pub fn alternate_scales(
    py: Python<'_>,
    weights: &Bound<'_, PyAny>,
    importance: &Bound<'_, PyAny>,
    scales: &Bound<'_, PyAny>,
    rounds: i64,
    threads: Option<i64>,
) -> PyResult<()> {
    let (threads, rounds) = (self::threads(threads)?, count("rounds", rounds)?);
    let weights = array::<f32>(weights, "weights", "float32")?;
    let importance = array::<f32>(importance, "importance", "float32")?;
    let mut scales = target::<f32>(scales, "scales", 2, "float32")?;
    let planes = scales.shape()[1];
    match (weights.shape(), scales.shape()) {
        (&[rows, width], &[same, _]) if rows == same && width == importance.len() => {}
        (weights, scales) => {
            let given = importance.len();
            return refuse(format!(
                "weights {weights:?}, importance of {given} and scales {scales:?} do not fit each other"
            ));
        }
    }
    let (weights, importance, scales) = (weights.as_slice()?, importance.as_slice()?, scales.as_slice_mut()?);
    py.detach(|| sweep::alternate(weights, importance, scales, planes, rounds, threads)).map_err(raise)
}
