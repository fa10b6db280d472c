//! One token's attention over cached keys and values.

use numpy::{PyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use tritpress_core::attention::{self, Cache, BLOCK};

use crate::arrays::{array, count, raise, refuse, threads, to_array};

/// q float32 [kv_heads, group, head_size] over the positions start..stop of keys [blocks, kv_heads, head_size, 64]
/// and values [blocks, kv_heads, 64, head_size] -> float32 of q's shape.
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
    let (keys, values) = (array::<f32>(keys, "keys", "float32")?, array::<f32>(values, "values", "float32")?);
    let (kv_heads, head_size) = match *keys.shape() {
        [_, kv_heads, head_size, BLOCK] => (kv_heads, head_size),
        ref shape => {
            return refuse(format!("keys must be [blocks, kv_heads, head_size, {BLOCK}], not {shape:?}"))
        }
    };
    if values.shape() != [keys.shape()[0], kv_heads, BLOCK, head_size] {
        let shape = values.shape();
        return refuse(format!(
            "values must be [blocks, kv_heads, {BLOCK}, head_size] as keys, not {shape:?}"
        ));
    }
    match *q.shape() {
        [heads, _, size] if heads == kv_heads && size == head_size => {}
        ref shape => return refuse(format!("q must be [{kv_heads}, group, {head_size}], not {shape:?}")),
    }
    let shape = q.shape().to_vec();
    let cache = Cache { keys: keys.as_slice()?, values: values.as_slice()?, kv_heads, head_size };
    let q = q.as_slice()?;
    let out = py.detach(|| attention::attend(q, &cache, seen, threads)).map_err(raise)?;
    to_array(py, out, &shape)
}
