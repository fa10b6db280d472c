//! Ternarizing, packing and statistics on arrays.

use half::f16;
use numpy::{PyArrayDyn, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tritpress_core::packing::{self, groups_of, row_bytes};
use tritpress_core::stats::{self, Statistics};
use tritpress_core::ternary::{self, Fit, Options};

use crate::arrays::{
    array, count, raise, refuse, threads, to_array, to_half_array, PackedArrays, WeightArray,
};

/// Options as Python gives them, checked.
#[allow(clippy::too_many_arguments)]
pub fn options(
    fit: &str,
    group_size: i64,
    planes: i64,
    threshold: Option<f64>,
    sparsity: Option<f64>,
    max_sparsity: Option<f64>,
) -> PyResult<Options> {
    let options = Options {
        fit: Fit::parse(fit).map_err(raise)?,
        group_size: count("group_size", group_size)?,
        planes: count("planes", planes)?,
        threshold,
        sparsity,
        max_sparsity,
    };
    options.check().map_err(raise)?;
    Ok(options)
}

/// float32 [in], or None.
pub fn importance<'py>(object: Option<&Bound<'py, PyAny>>) -> PyResult<Option<PyReadonlyArrayDyn<'py, f32>>> {
    let Some(object) = object else { return Ok(None) };
    let array = array::<f32>(object, "importance", "float32")?;
    if array.ndim() != 1 {
        return refuse(format!("importance must have one dimension [in], not shape {:?}", array.shape()));
    }
    Ok(Some(array))
}

type TernaryArrays<'py> = (Bound<'py, PyArrayDyn<u8>>, Bound<'py, PyArrayDyn<f16>>);

#[pyfunction]
#[pyo3(signature = (w, *, fit="exact", group_size=64, planes=1, threshold=None, sparsity=None, max_sparsity=None,
                    importance=None, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn ternarize<'py>(
    py: Python<'py>,
    w: &Bound<'py, PyAny>,
    fit: &str,
    group_size: i64,
    planes: i64,
    threshold: Option<f64>,
    sparsity: Option<f64>,
    max_sparsity: Option<f64>,
    importance: Option<&Bound<'py, PyAny>>,
    threads: Option<i64>,
) -> PyResult<TernaryArrays<'py>> {
    let options = options(fit, group_size, planes, threshold, sparsity, max_sparsity)?;
    let threads = self::threads(threads)?;
    let w = WeightArray::new(w)?;
    let (rows, cols) = w.shape()?;
    let weights = w.weights()?;
    let importance = self::importance(importance)?;
    let importance = importance.as_ref().map(|h| h.as_slice()).transpose()?;
    let result = py
        .detach(|| ternary::ternarize(weights, (rows, cols), importance, &options, threads))
        .map_err(raise)?;
    let groups = groups_of(cols, options.group_size);
    Ok((
        to_array(py, result.codes, &[options.planes, rows, row_bytes(cols)])?,
        to_half_array(py, result.scales, &[options.planes, rows, groups])?,
    ))
}

/// The last dimension's length and all dimensions of an array.
fn last(shape: &[usize], name: &str) -> PyResult<usize> {
    match shape.last() {
        Some(&last) => Ok(last),
        None => refuse(format!("{name} must have at least one dimension")),
    }
}

fn with_last(shape: &[usize], last: usize) -> Vec<usize> {
    let mut out = shape.to_vec();
    out.pop();
    out.push(last);
    out
}

#[pyfunction]
#[pyo3(signature = (trits, *, threads=None))]
pub fn pack<'py>(
    py: Python<'py>,
    trits: &Bound<'py, PyAny>,
    threads: Option<i64>,
) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
    let threads = self::threads(threads)?;
    let trits = array::<i8>(trits, "trits", "int8")?;
    let cols = last(trits.shape(), "trits")?;
    let shape = with_last(trits.shape(), row_bytes(cols));
    let trits = trits.as_slice()?;
    let codes = py.detach(|| packing::pack(trits, cols, threads)).map_err(raise)?;
    to_array(py, codes, &shape)
}

/// What `each` makes of codes whose last dimension is that of `cols` values.
fn of_codes<'py, T: numpy::Element + Send>(
    py: Python<'py>,
    codes: &Bound<'py, PyAny>,
    cols: i64,
    threads: Option<i64>,
    each: fn(&[u8], usize, usize) -> tritpress_core::Result<Vec<T>>,
) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    let (cols, threads) = (count("cols", cols)?, self::threads(threads)?);
    let codes = array::<u8>(codes, "codes", "uint8")?;
    if last(codes.shape(), "codes")? != row_bytes(cols) {
        return refuse(format!(
            "codes must end in a dimension of {} bytes for {cols} columns, not have shape {:?}",
            row_bytes(cols),
            codes.shape()
        ));
    }
    let shape = with_last(codes.shape(), cols);
    let codes = codes.as_slice()?;
    let values = py.detach(|| each(codes, cols, threads)).map_err(raise)?;
    to_array(py, values, &shape)
}

#[pyfunction]
#[pyo3(signature = (codes, cols, *, threads=None))]
pub fn unpack<'py>(
    py: Python<'py>,
    codes: &Bound<'py, PyAny>,
    cols: i64,
    threads: Option<i64>,
) -> PyResult<Bound<'py, PyArrayDyn<i8>>> {
    of_codes(py, codes, cols, threads, packing::unpack)
}

#[pyfunction]
#[pyo3(signature = (codes, cols, *, threads=None))]
pub fn sparsity_mask<'py>(
    py: Python<'py>,
    codes: &Bound<'py, PyAny>,
    cols: i64,
    threads: Option<i64>,
) -> PyResult<Bound<'py, PyArrayDyn<bool>>> {
    of_codes(py, codes, cols, threads, packing::sparsity_mask)
}

#[pyfunction]
#[pyo3(signature = (codes, scales, cols, group_size, *, threads=None))]
pub fn dequantize<'py>(
    py: Python<'py>,
    codes: &Bound<'py, PyAny>,
    scales: &Bound<'py, PyAny>,
    cols: i64,
    group_size: i64,
    threads: Option<i64>,
) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let threads = self::threads(threads)?;
    let arrays = PackedArrays::new(codes, scales, None, count("cols", cols)?, group_size)?;
    let (codes, scales) = arrays.slices()?;
    let canonical = arrays.canonical(threads);
    let out = py.detach(|| canonical(codes, scales).and_then(|m| m.dequantize(threads))).map_err(raise)?;
    let (rows, cols) = arrays.shape();
    to_array(py, out, &[rows, cols])
}

#[pyfunction]
#[pyo3(signature = (w, codes, scales, group_size, *, threads=None))]
pub fn layer_statistics<'py>(
    py: Python<'py>,
    w: &Bound<'py, PyAny>,
    codes: &Bound<'py, PyAny>,
    scales: &Bound<'py, PyAny>,
    group_size: i64,
    threads: Option<i64>,
) -> PyResult<Bound<'py, PyDict>> {
    let threads = self::threads(threads)?;
    let w = WeightArray::new(w)?;
    let (rows, cols) = w.shape()?;
    let arrays = PackedArrays::new(codes, scales, Some(rows), cols, group_size)?;
    let (codes, scales) = arrays.slices()?;
    let canonical = arrays.canonical(threads);
    let weights = w.weights()?;
    let statistics = py
        .detach(|| canonical(codes, scales).and_then(|m| stats::layer_statistics(weights, &m, threads)))
        .map_err(raise)?;
    statistics_dict(py, &statistics)
}

pub fn statistics_dict<'py>(py: Python<'py>, s: &Statistics) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("weights", s.weights)?;
    dict.set_item("zeros_per_plane", &s.zeros_per_plane)?;
    dict.set_item("zeros_all_planes", s.zeros_all_planes)?;
    dict.set_item("sum_w2", s.sum_w2)?;
    dict.set_item("sum_d2", s.sum_d2)?;
    dict.set_item("sum_wd", s.sum_wd)?;
    dict.set_item("sum_err2", s.sum_err2)?;
    dict.set_item("histogram_before", &s.histogram_before)?;
    dict.set_item("histogram_after", &s.histogram_after)?;
    Ok(dict)
}
