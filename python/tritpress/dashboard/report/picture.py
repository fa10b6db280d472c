"""A chart as a file: its name, its sizes, the map of colours."""

from __future__ import annotations

from dataclasses import dataclass

from tritpress.dashboard.report.svg import Drawing

CIVIDIS = (
    "#00204c", "#002a66", "#00346e", "#273f6c", "#3c4a6b", "#4c556b",
    "#5b5f6d", "#686a70", "#757575", "#838178", "#928c78", "#a19876",
    "#b0a572", "#c0b16d", "#d1bf66", "#e1cc5c", "#f3db4f", "#ffe945",
)  # fmt: skip
"""The page's map, readable for colour-blind people, at eighteen even places."""

COLOURS = 128
"""Steps of the map that cells are drawn in."""

WIDTH, HEIGHT = 760, 320
NARROW = 560
"""Width of charts that stand in pairs."""


@dataclass(frozen=True)
class Picture:
    """A chart with the name of its file."""

    key: str
    drawing: Drawing

    @property
    def title(self) -> str:
        return self.drawing.title


def colour(share: float) -> str:
    """The map's colour at `share` (0 to 1)."""
    at = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    low = min(int(at), len(CIVIDIS) - 2)
    a, b = (tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in CIVIDIS[low : low + 2])
    return "#" + "".join(f"{round(x + (y - x) * (at - low)):02x}" for x, y in zip(a, b))


def slug(text: str) -> str:
    """`text` as part of a file's name."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())
    return "-".join(part for part in kept.split("-") if part)[:80] or "chart"
