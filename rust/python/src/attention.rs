//! One token's attention over cached keys and values.

use half::f16;
use half::slice::HalfFloatSliceExt;
use numpy::{PyArrayDyn, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use tritpress_core::attention::{self, Cache, Stored, BLOCK};

use crate::arrays::{array, count, raise, refuse, threads, to_array};

/// q float32 [kv_heads, group, head_size] over the positions start..stop of keys [blocks, kv_heads, head_size, 64]
/// and values [blocks, kv_heads, 64, head_size], both float32 or both float16 -> float32 of q's shape.
#[pyfunction]
#[pyo3(signature = (q, keys, values, start, stop, *, threads=None))]
pub fn attend<'py>(
    py: Python<'py>,
    q: &Bound<'py, PyAny>,
    keys: &Bound<'py, PyAny>,
    values: &Bound<'py, PyAny>,
    start: i64,
    stop: i64,
    threads: Option<i64>,
) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let threads = self::threads(threads)?;
    let seen = (count("start", start)?, count("stop", stop)?);
    let q = array::<f32>(q, "q", "float32")?;
    match keys.cast::<PyArrayDyn<f16>>() {
        Ok(_) => {
            let (keys, values) =
                (array::<f16>(keys, "keys", "float16")?, array::<f16>(values, "values", "float16")?);
            let (kv_heads, head_size) = sizes(q.shape(), keys.shape(), values.shape())?;
            let (keys, values) = (keys.as_slice()?.reinterpret_cast(), values.as_slice()?.reinterpret_cast());
            attended(py, &q, Cache { keys, values, kv_heads, head_size }, seen, threads)
        }
        _ => {
            let (keys, values) =
                (array::<f32>(keys, "keys", "float32")?, array::<f32>(values, "values", "float32")?);
            let (kv_heads, head_size) = sizes(q.shape(), keys.shape(), values.shape())?;
            let (keys, values) = (keys.as_slice()?, values.as_slice()?);
            attended(py, &q, Cache { keys, values, kv_heads, head_size }, seen, threads)
        }
    }
}

/// (kv_heads, head_size), if the shapes fit together.
fn sizes(q: &[usize], keys: &[usize], values: &[usize]) -> PyResult<(usize, usize)> {
    let &[blocks, kv_heads, head_size, BLOCK] = keys else {
        return refuse(format!("keys must be [blocks, kv_heads, head_size, {BLOCK}], not {keys:?}"));
    };
    if *values != [blocks, kv_heads, BLOCK, head_size] {
        return refuse(format!(
            "values must be [blocks, kv_heads, {BLOCK}, head_size] as keys, not {values:?}"
        ));
    }
    match *q {
        [heads, _, size] if heads == kv_heads && size == head_size => Ok((kv_heads, head_size)),
        _ => refuse(format!("q must be [{kv_heads}, group, {head_size}], not {q:?}")),
    }
}

fn attended<'py, T: Stored>(
    py: Python<'py>,
    q: &PyReadonlyArrayDyn<'py, f32>,
    cache: Cache<'_, T>,
    seen: (usize, usize),
    threads: usize,
) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let (shape, q) = (q.shape().to_vec(), q.as_slice()?);
    let out = py.detach(|| attention::attend(q, &cache, seen, threads)).map_err(raise)?;
    to_array(py, out, &shape)
}
