//! Ternary weights: fitting, 2-bit packing, packed matrix products. Knows nothing of Python.
//!
//! * [`ternary`]: weights -> codes and scales (absmean, fixed threshold, exact least squares, planes);
//! * [`packing`]: the canonical 2-bit file layout; [`tiles`]: the layout of the kernels;
//! * [`matrix`]: a packed matrix and its products with int8 activations, run by [`kernel`] on [`pool`];
//! * [`attention`]: one token's attention over cached keys and values;
//! * [`latent`]: weights in training -> codes and what they stand for;
//! * [`stream`]: tensors in a safetensors file -> packed tensors in another, in constant memory;
//! * [`sweep`]: the inner loops of a second-order fit;
//! * [`safetensors`]: a header reader that trusts nothing.

// Loops over lanes index several arrays at once.
#![allow(clippy::needless_range_loop)]

pub mod attention;
pub mod error;
pub mod half;
pub mod kernel;
mod known;
pub mod latent;
pub mod matrix;
mod memory;
pub mod packing;
pub mod pool;
pub mod safetensors;
mod scratch;
pub mod stats;
pub mod stream;
pub mod sweep;
pub mod ternary;
#[cfg(test)]
mod testing;
pub mod tiles;

pub use error::{Error, Result};
