//! Safetensors files: headers, and tensors ternarized from file to file.

use std::path::PathBuf;
use std::time::Instant;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use tritpress_core::safetensors::read_header;
use tritpress_core::stream::{self, Source, Target};

use crate::arrays::{count, raise};
use crate::functions::{importance, options, statistics_dict};

#[pyfunction]
#[pyo3(signature = (src_path, offset, dtype, rows, cols, transposed, dst_path, codes_offset, scales_offset, *,
                    fit="exact", group_size=64, planes=1, threshold=None, sparsity=None, max_sparsity=None,
                    importance=None, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn ternarize_stream<'py>(
    py: Python<'py>,
    src_path: PathBuf,
    offset: u64,
    dtype: &str,
    rows: i64,
    cols: i64,
    transposed: bool,
    dst_path: PathBuf,
    codes_offset: u64,
    scales_offset: u64,
    fit: &str,
    group_size: i64,
    planes: i64,
    threshold: Option<f64>,
    sparsity: Option<f64>,
    max_sparsity: Option<f64>,
    importance: Option<&Bound<'py, PyAny>>,
    threads: Option<i64>,
) -> PyResult<Bound<'py, PyDict>> {
    let started = Instant::now();
    let options = options(fit, group_size, planes, threshold, sparsity, max_sparsity)?;
    let threads = crate::arrays::threads(threads)?;
    let (rows, cols) = (count("rows", rows)?, count("cols", cols)?);
    let importance = self::importance(importance)?;
    let importance = importance.as_ref().map(|h| h.as_slice()).transpose()?;
    let statistics = py
        .detach(|| {
            let source = Source { path: &src_path, offset, dtype, rows, cols, transposed };
            let target = Target { path: &dst_path, codes_offset, scales_offset };
            stream::ternarize_stream(&source, &target, importance, &options, threads)
        })
        .map_err(raise)?;
    let dict = statistics_dict(py, &statistics)?;
    dict.set_item("seconds", started.elapsed().as_secs_f64())?;
    Ok(dict)
}

#[pyfunction]
pub fn safetensors_header<'py>(py: Python<'py>, path: PathBuf) -> PyResult<Bound<'py, PyTuple>> {
    let header = py.detach(|| read_header(&path)).map_err(raise)?;
    let metadata = PyDict::new(py);
    for (key, value) in &header.metadata {
        metadata.set_item(key, value)?;
    }
    let tensors = PyList::empty(py);
    for t in &header.tensors {
        let shape = PyTuple::new(py, &t.shape)?;
        tensors.append((&t.name, &t.dtype, shape, t.begin, t.end))?;
    }
    PyTuple::new(py, [metadata.into_any(), tensors.into_any()])
}
