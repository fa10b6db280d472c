//! `PackedMatrix`: a ternary matrix laid out for the kernels.

use half::f16;
use numpy::{PyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use tritpress_core::matrix::{Format, PackedMatrix as Matrix};
use tritpress_core::packing::row_bytes;

use crate::arrays::{array, count, raise, refuse, threads, to_array, to_half_array, PackedArrays};

#[pyclass(module = "tritpress._core", frozen)]
pub struct PackedMatrix {
    inner: Matrix,
}

impl PackedMatrix {
    pub fn as_bytes(&self) -> &[u8] {
        self.inner.as_bytes()
    }
}

#[pymethods]
impl PackedMatrix {
    #[new]
    #[pyo3(signature = (codes, scales, group_size, shape, format="2bit", *, threads=None))]
    fn new<'py>(
        py: Python<'py>,
        codes: &Bound<'py, PyAny>,
        scales: &Bound<'py, PyAny>,
        group_size: i64,
        shape: (i64, i64),
        format: &str,
        threads: Option<i64>,
    ) -> PyResult<Self> {
        let threads = self::threads(threads)?;
        let format = Format::parse(format).map_err(raise)?;
        let (rows, cols) = (count("shape[0]", shape.0)?, count("shape[1]", shape.1)?);
        let arrays = PackedArrays::new(codes, scales, Some(rows), cols, group_size)?;
        let (codes, scales) = arrays.slices()?;
        let canonical = arrays.canonical(threads);
        let inner = py
            .detach(|| canonical(codes, scales).and_then(|m| Matrix::new(&m, format, threads)))
            .map_err(raise)?;
        Ok(PackedMatrix { inner })
    }

    #[pyo3(signature = (x, threads=None))]
    fn matvec<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        threads: Option<i64>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let threads = self::threads(threads)?;
        let x = array::<f32>(x, "x", "float32")?;
        let (rows, cols) = self.shape();
        if x.shape() != [cols] {
            return refuse(format!("x must have shape [{cols}], not {:?}", x.shape()));
        }
        let x = x.as_slice()?;
        let out = py.detach(|| self.inner.matvec(x, threads)).map_err(raise)?;
        to_array(py, out, &[rows])
    }

    #[pyo3(signature = (x, threads=None))]
    fn matmul<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        threads: Option<i64>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let threads = self::threads(threads)?;
        let x = array::<f32>(x, "x", "float32")?;
        let (rows, cols) = self.shape();
        let n = match *x.shape() {
            [n, width] if width == cols => n,
            ref other => return refuse(format!("x must have shape [n, {cols}], not {other:?}")),
        };
        let x = x.as_slice()?;
        let out = py.detach(|| self.inner.matmul(x, n, threads)).map_err(raise)?;
        to_array(py, out, &[n, rows])
    }

    #[pyo3(signature = (threads=None))]
    fn dequantize<'py>(
        &self,
        py: Python<'py>,
        threads: Option<i64>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let threads = self::threads(threads)?;
        let out = py.detach(|| self.inner.dequantize(threads)).map_err(raise)?;
        let (rows, cols) = self.shape();
        to_array(py, out, &[rows, cols])
    }

    #[pyo3(signature = (threads=None))]
    fn codes<'py>(&self, py: Python<'py>, threads: Option<i64>) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
        let threads = self::threads(threads)?;
        let out = py.detach(|| self.inner.codes(threads)).map_err(raise)?;
        let (rows, cols) = self.shape();
        to_array(py, out, &[self.planes(), rows, row_bytes(cols)])
    }

    #[pyo3(signature = (threads=None))]
    fn scales<'py>(&self, py: Python<'py>, threads: Option<i64>) -> PyResult<Bound<'py, PyArrayDyn<f16>>> {
        let threads = self::threads(threads)?;
        let out = py.detach(|| self.inner.scales(threads)).map_err(raise)?;
        to_half_array(py, out, &[self.planes(), self.shape().0, self.inner.geometry().groups])
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.inner.bytes()
    }

    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.inner.geometry().rows, self.inner.geometry().cols)
    }

    #[getter]
    fn planes(&self) -> usize {
        self.inner.geometry().planes
    }

    #[getter]
    fn group_size(&self) -> usize {
        self.inner.geometry().group_size
    }

    #[getter]
    fn format(&self) -> &'static str {
        self.inner.format().name()
    }

    #[getter]
    fn isa(&self) -> &'static str {
        self.inner.isa().name()
    }

    fn isa_for(&self, n: i64) -> PyResult<&'static str> {
        Ok(self.inner.isa_for(count("n", n)?).name())
    }

    /// The tiles themselves, read-only and without a copy; the view keeps the matrix alive.
    ///
    /// # Safety
    /// Python calls it with a view to fill.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut pyo3::ffi::Py_buffer,
        flags: std::ffi::c_int,
    ) -> PyResult<()> {
        let bytes = slf.get().inner.as_bytes();
        let (start, len) = (bytes.as_ptr().cast_mut().cast(), bytes.len() as pyo3::ffi::Py_ssize_t);
        // SAFETY: a frozen class never moves or changes its bytes, and the view holds a reference to it; the 1
        // says read-only, so that nobody writes through the pointer.
        match unsafe { pyo3::ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, len, 1, flags) } {
            0 => Ok(()),
            _ => Err(PyErr::fetch(slf.py())),
        }
    }

    fn __repr__(&self) -> String {
        let (rows, cols) = self.shape();
        format!(
            "PackedMatrix({rows} x {cols}, planes={}, group_size={}, format='{}', isa='{}', nbytes={})",
            self.planes(),
            self.group_size(),
            self.format(),
            self.isa(),
            self.nbytes()
        )
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let (py, this) = (slf.py(), slf.get());
        let arguments =
            (this.codes(py, None)?, this.scales(py, None)?, this.group_size(), this.shape(), this.format());
        (slf.get_type(), arguments).into_pyobject(py)
    }
}
