//! Ternary weights: fitting, 2-bit packing, packed matrix products.
