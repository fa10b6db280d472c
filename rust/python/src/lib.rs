//! The Python module `tritpress._core`: numpy arrays in and out, the GIL released while Rust works.

mod arrays;
mod attention;
mod files;
mod functions;
mod latent;
mod matrix;
mod sweep;

use pyo3::prelude::*;

use arrays::{raise, CoreError};

/// The path of the matrix products on this machine (TRITPRESS_ISA forces one).
#[pyfunction]
fn isa() -> PyResult<&'static str> {
    Ok(tritpress_core::kernel::isa().map_err(raise)?.name())
}

/// The path that so many tokens at once take in this process.
#[pyfunction]
fn isa_for(n: i64) -> PyResult<&'static str> {
    let n = arrays::count("n", n)?;
    Ok(tritpress_core::kernel::isa().map_err(raise)?.for_tokens(n).name())
}

/// All paths that this machine can run, best first.
#[pyfunction]
fn available_isas() -> Vec<&'static str> {
    tritpress_core::kernel::Isa::usable().into_iter().map(|isa| isa.name()).collect()
}

/// Threads that a call uses when it does not say (TRITPRESS_NUM_THREADS sets them).
#[pyfunction]
fn default_threads() -> PyResult<usize> {
    tritpress_core::pool::resolve_threads(None).map_err(raise)
}

/// What this machine reaches at most, measured for about a second: memory_gb_s and cache_gb_s (reads),
/// unpack_gop_s (on registers; by NEON and without vectors the kernel itself on one tile in the first-level cache) and
/// multiply_gop_s (the instructions of the path `isa`), matrix_gop_s where it has a matrix unit;
/// memory_streams and memory_ahead, how memory was read fastest; and how large matrices are read: tiles side by
/// side (streams) and bytes asked for ahead.
#[pyfunction]
#[pyo3(signature = (threads=None))]
fn machine_limits(py: Python<'_>, threads: Option<i64>) -> PyResult<Bound<'_, pyo3::types::PyDict>> {
    let threads = arrays::threads(threads)?;
    let isa = tritpress_core::kernel::isa().map_err(raise)?;
    let limits = py.detach(|| tritpress_core::kernel::limits::measure(isa, threads)).map_err(raise)?;
    let dict = pyo3::types::PyDict::new(py);
    dict.set_item("memory_gb_s", limits.memory.gb_s)?;
    dict.set_item("memory_streams", limits.memory.streams)?;
    dict.set_item("memory_ahead", limits.memory.ahead)?;
    dict.set_item("cache_gb_s", limits.cache.gb_s)?;
    dict.set_item("unpack_gop_s", limits.unpack_gop_s)?;
    dict.set_item("multiply_gop_s", limits.multiply_gop_s)?;
    if let Some(matrix) = limits.matrix_gop_s {
        dict.set_item("matrix_gop_s", matrix)?;
    }
    let reading = tritpress_core::kernel::Reading::of(isa, usize::MAX);
    dict.set_item("streams", reading.streams)?;
    dict.set_item("ahead", reading.ahead)?;
    Ok(dict)
}

/// When so many bytes are read again and again in the best way: gb_s (10^9 bytes a second), streams, ahead.
#[pyfunction]
#[pyo3(signature = (nbytes, threads=None))]
fn read_again(py: Python<'_>, nbytes: i64, threads: Option<i64>) -> PyResult<Bound<'_, pyo3::types::PyDict>> {
    let (nbytes, threads) = (arrays::count("nbytes", nbytes)?, arrays::threads(threads)?);
    let read = py.detach(|| tritpress_core::kernel::limits::read_again(nbytes, threads)).map_err(raise)?;
    let dict = pyo3::types::PyDict::new(py);
    dict.set_item("gb_s", read.gb_s)?;
    dict.set_item("streams", read.streams)?;
    dict.set_item("ahead", read.ahead)?;
    Ok(dict)
}

/// Read a matrix once, each thread its part, `streams` places of it in turn and `ahead` bytes asked for ahead: what
/// `tritpress bench` times beside products.
#[pyfunction]
#[pyo3(signature = (matrix, streams, ahead, threads=None))]
fn read_once(
    py: Python<'_>,
    matrix: &matrix::PackedMatrix,
    streams: i64,
    ahead: i64,
    threads: Option<i64>,
) -> PyResult<()> {
    let (streams, ahead) = (arrays::count("streams", streams)?, arrays::count("ahead", ahead)?);
    let threads = arrays::threads(threads)?;
    let bytes = matrix.as_bytes();
    py.detach(|| tritpress_core::kernel::limits::read_once(bytes, threads, streams, ahead));
    Ok(())
}

#[pymodule]
fn _core(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add("CoreError", m.py().get_type::<CoreError>())?;
    m.add_class::<matrix::PackedMatrix>()?;
    m.add_function(wrap_pyfunction!(isa, m)?)?;
    m.add_function(wrap_pyfunction!(isa_for, m)?)?;
    m.add_function(wrap_pyfunction!(available_isas, m)?)?;
    m.add_function(wrap_pyfunction!(default_threads, m)?)?;
    m.add_function(wrap_pyfunction!(machine_limits, m)?)?;
    m.add_function(wrap_pyfunction!(read_again, m)?)?;
    m.add_function(wrap_pyfunction!(read_once, m)?)?;
    m.add_function(wrap_pyfunction!(attention::attend, m)?)?;
    m.add_function(wrap_pyfunction!(functions::ternarize, m)?)?;
    m.add_function(wrap_pyfunction!(functions::pack, m)?)?;
    m.add_function(wrap_pyfunction!(functions::unpack, m)?)?;
    m.add_function(wrap_pyfunction!(functions::dequantize, m)?)?;
    m.add_function(wrap_pyfunction!(functions::sparsity_mask, m)?)?;
    m.add_function(wrap_pyfunction!(functions::layer_statistics, m)?)?;
    m.add_function(wrap_pyfunction!(latent::latent_codes, m)?)?;
    m.add_function(wrap_pyfunction!(latent::latent_largest, m)?)?;
    m.add_function(wrap_pyfunction!(latent::decode_trits, m)?)?;
    m.add_function(wrap_pyfunction!(latent::group_sums, m)?)?;
    m.add_function(wrap_pyfunction!(sweep::sweep_group, m)?)?;
    m.add_function(wrap_pyfunction!(sweep::descend_group, m)?)?;
    m.add_function(wrap_pyfunction!(sweep::zero_price, m)?)?;
    m.add_function(wrap_pyfunction!(sweep::alternate_scales, m)?)?;
    m.add_function(wrap_pyfunction!(files::ternarize_stream, m)?)?;
    m.add_function(wrap_pyfunction!(files::safetensors_header, m)?)?;
    Ok(())
}
