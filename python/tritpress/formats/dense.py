"""How tensors that are not ternarized are stored: float16, or int8 rows with a float16 scale each."""

from __future__ import annotations

import numpy as np

from tritpress.errors import InputError

HALF_MAX = 65504.0


def to_half(values: np.ndarray, name: str) -> np.ndarray:
    """float32 values rounded to float16. `InputError` names the tensor for NaN and for what float16 cannot
    hold.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        if np.isnan(values).any():
            raise InputError(f"tensor {name} holds NaN; repair the model first")
        worst = float(np.abs(values).max())
        raise InputError(
            f"tensor {name} holds {worst:g}, which float16 cannot (it ends at {HALF_MAX:g}); scale the "
            "tensor down"
        )
    return half


def quantize_rows(rows: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n, cols] -> (int8 [n, cols], float16 [n]).

    scale = float16(max|row| / 127), q = row / scale rounded half to even and held within +-127; a row whose
    scale is 0 has q = 0. `InputError` names the tensor when the decoded row would leave float16.
    """
    largest = np.abs(rows).max(axis=1) if rows.size else np.zeros(len(rows), dtype=np.float32)
    if not np.isfinite(largest).all():
        raise InputError(f"tensor {name} holds NaN or infinity; repair the model first")
    with np.errstate(over="ignore"):
        scales = (largest / np.float32(127)).astype(np.float16)
    wide = scales.astype(np.float32)[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        q = np.where(wide > 0, np.rint(rows / wide), 0)
    q8 = np.clip(q, -127, 127).astype(np.int8)
    decode_rows(q8, scales, name)
    return q8, scales


def decode_rows(q8: np.ndarray, scales: np.ndarray, name: str) -> np.ndarray:
    """(int8 [n, cols], float16 [n]) -> float16 [n, cols]: float32(q8) * scale, rounded once."""
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite scale is named by `to_half`
        values = q8.astype(np.float32) * scales.astype(np.float32)[:, None]
    return to_half(values, name)
