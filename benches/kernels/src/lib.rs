//! Nothing but benches: see `benches/kernels.rs`.
