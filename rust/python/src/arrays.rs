//! Numpy arrays as slices, and errors as Python exceptions.

use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use numpy::{
    Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyMemoryError, PyOSError, PyValueError};
use pyo3::prelude::*;
use tritpress_core::packing::{check_group_size, row_bytes, Canonical};
use tritpress_core::ternary::Weights;
use tritpress_core::{pool, Error};

pyo3::create_exception!(
    tritpress._core,
    CoreError,
    PyValueError,
    "An argument, array or file that cannot be used; the message says which and what would be right."
);

/// An I/O failure becomes an `OSError` with its errno and file, missing memory a `MemoryError`, anything else a
/// `CoreError`.
pub fn raise(error: Error) -> PyErr {
    match error {
        Error::Io(_, ref path, ref source) => match source.raw_os_error() {
            Some(errno) => {
                // "No such file or directory (os error 2)": the number stands beside it already.
                let said = source.to_string();
                let reason = said.split(" (os error").next().unwrap_or(&said).to_owned();
                PyOSError::new_err((errno, reason, path.as_os_str().to_owned()))
            }
            None => PyOSError::new_err(error.to_string()),
        },
        Error::Memory(message) => PyMemoryError::new_err(message),
        other => CoreError::new_err(other.to_string()),
    }
}

pub fn refuse<T>(message: impl Into<String>) -> PyResult<T> {
    Err(CoreError::new_err(message.into()))
}

/// A count that Python gave, as an unsigned number.
pub fn count(name: &str, value: i64) -> PyResult<usize> {
    usize::try_from(value).or_else(|_| refuse(format!("{name} must not be negative (given: {value})")))
}

pub fn threads(threads: Option<i64>) -> PyResult<usize> {
    let threads = threads.map(|n| count("threads", n)).transpose()?;
    pool::resolve_threads(threads).map_err(raise)
}

/// `object` as a C-contiguous, aligned array of `T`, copied only if it is not one.
pub fn array<'py, T: Element>(
    object: &Bound<'py, PyAny>,
    name: &str,
    dtype: &str,
) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    let Ok(untyped) = object.cast::<PyUntypedArray>() else {
        return refuse(format!("{name} must be a numpy array of {dtype}, not {}", object.get_type().name()?));
    };
    let Ok(array) = object.cast::<PyArrayDyn<T>>() else {
        return refuse(format!("{name} must be {dtype}, not {}", untyped.dtype()));
    };
    let readonly = array.try_readonly()?;
    if untyped.is_c_contiguous() && readonly.as_slice().is_ok() {
        return Ok(readonly);
    }
    let contiguous =
        object.py().import("numpy")?.call_method1("require", (object, object.py().None(), ["C", "A"]))?;
    Ok(contiguous.cast::<PyArrayDyn<T>>()?.try_readonly()?)
}

/// An array to write into: it has to be used as it is, a copy would be lost.
pub fn target<'py, T: Element>(
    object: &Bound<'py, PyAny>,
    name: &str,
    dims: usize,
    dtype: &str,
) -> PyResult<PyReadwriteArrayDyn<'py, T>> {
    match object.cast::<PyArrayDyn<T>>() {
        Ok(array) if array.is_c_contiguous() && array.ndim() == dims => Ok(array.try_readwrite()?),
        _ => refuse(format!("{name} must be a contiguous array of {dtype} with {dims} dimensions")),
    }
}

/// Weights [out, in], float32 or float16.
pub enum WeightArray<'py> {
    F32(PyReadonlyArrayDyn<'py, f32>),
    F16(PyReadonlyArrayDyn<'py, f16>),
}

impl<'py> WeightArray<'py> {
    pub fn new(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let what = "float32 or float16";
        let out = match object.cast::<PyArrayDyn<f16>>() {
            Ok(_) => WeightArray::F16(array(object, "w", what)?),
            Err(_) => WeightArray::F32(array(object, "w", what)?),
        };
        out.shape()?;
        Ok(out)
    }

    pub fn shape(&self) -> PyResult<(usize, usize)> {
        let shape = match self {
            WeightArray::F32(w) => w.shape(),
            WeightArray::F16(w) => w.shape(),
        };
        match *shape {
            [rows, cols] => Ok((rows, cols)),
            _ => refuse(format!("w must have two dimensions [out, in], not shape {shape:?}")),
        }
    }

    pub fn weights(&self) -> PyResult<Weights<'_>> {
        Ok(match self {
            WeightArray::F32(w) => Weights::F32(w.as_slice()?),
            WeightArray::F16(w) => Weights::F16(w.as_slice()?.reinterpret_cast()),
        })
    }
}

/// Codes uint8 [planes, out, ceil(in / 4)] and scales float16 [planes, out, groups] of one matrix.
pub struct PackedArrays<'py> {
    codes: PyReadonlyArrayDyn<'py, u8>,
    scales: PyReadonlyArrayDyn<'py, f16>,
    planes: usize,
    shape: (usize, usize),
    group_size: usize,
}

impl<'py> PackedArrays<'py> {
    /// `rows` is checked when given; the number of columns cannot be read off the codes.
    pub fn new(
        codes: &Bound<'py, PyAny>,
        scales: &Bound<'py, PyAny>,
        rows: Option<usize>,
        cols: usize,
        group_size: i64,
    ) -> PyResult<Self> {
        let group_size = count("group_size", group_size)?;
        check_group_size(group_size).map_err(raise)?;
        let codes = array::<u8>(codes, "codes", "uint8")?;
        let scales = array::<f16>(scales, "scales", "float16")?;
        let (planes, out) = match *codes.shape() {
            [planes, out, bytes] if bytes == row_bytes(cols) => (planes, out),
            ref other => {
                return refuse(format!(
                    "codes must have shape [planes, out, {}] for {cols} inputs, not {other:?}",
                    row_bytes(cols)
                ))
            }
        };
        if rows.is_some_and(|rows| rows != out) {
            return refuse(format!("codes have {out} rows, but shape says {}", rows.unwrap_or(0)));
        }
        let groups = tritpress_core::packing::groups_of(cols, group_size);
        if scales.shape() != [planes, out, groups] {
            return refuse(format!(
                "scales must have shape [{planes}, {out}, {groups}] for these codes, not {:?}",
                scales.shape()
            ));
        }
        Ok(PackedArrays { codes, scales, planes, shape: (out, cols), group_size })
    }

    pub fn slices(&self) -> PyResult<(&[u8], &[u16])> {
        Ok((self.codes.as_slice()?, self.scales.as_slice()?.reinterpret_cast()))
    }

    /// The checked matrix, from what [`slices`](Self::slices) gave; runs without the GIL.
    pub fn canonical<'a>(
        &self,
        threads: usize,
    ) -> impl Fn(&'a [u8], &'a [u16]) -> tritpress_core::Result<Canonical<'a>> + Send + Sync {
        let (planes, shape, group_size) = (self.planes, self.shape, self.group_size);
        move |codes, scales| Canonical::new(codes, scales, planes, shape, group_size, threads)
    }

    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }
}

/// A vector as an array of that shape, without a copy.
pub fn to_array<'py, T: Element>(
    py: Python<'py>,
    values: Vec<T>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    numpy::PyArray1::from_vec(py, values).reshape(shape.to_vec())
}

/// fp16 bits as a float16 array.
pub fn to_half_array<'py>(
    py: Python<'py>,
    bits: Vec<u16>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyArrayDyn<f16>>> {
    to_array(py, bits.reinterpret_into::<f16>(), shape)
}
