"""Colours and type of the page; good, warning and bad stay apart for those who do not see red and green."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FONT = "Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"

APP_BAR = "#14232e"

BREAKPOINTS = {"xs": 0, "sm": 1000, "md": 1200, "lg": 1536, "xl": 1920}
"""Below `sm` the sidebar is a drawer over the page instead of a column beside it."""


HEADINGS = {
    "h1": "h1",
    "h2": "h2",
    "h3": "h1",
    "h4": "h2",
    "h5": "div",
    "h6": "h2",
    "subtitle1": "h6",
    "subtitle2": "h6",
    "body1": "p",
    "body2": "p",
    "inherit": "p",
}

STEPPERS: dict[str, Any] = {
    "components": {
        "MuiIconButton": {"defaultProps": {"tabIndex": -1, "aria-hidden": True, "color": "inherit"}}
    }
}
"""For number fields: plus and minus are for the mouse, keyboards and screen readers have the arrow keys."""


def _palette(dark: bool) -> dict[str, Any]:
    if dark:
        return {
            "primary": {"main": "#6fb7dd"},
            "success": {"main": "#4fc3a1"},
            "warning": {"main": "#e6b34a"},
            "error": {"main": "#f08a5d"},
            "background": {"default": "#11181d", "paper": "#161f25"},
        }
    return {
        "primary": {"main": "#0b6190"},
        "success": {"main": "#00735c"},
        "warning": {"main": "#8a5a00"},
        "error": {"main": "#b23c0e"},
        "background": {"default": "#f6f8f9", "paper": "#ffffff"},
    }


def _theme(dark: bool) -> dict[str, Any]:
    return {
        "palette": _palette(dark),
        "typography": {
            "fontFamily": FONT,
            "h3": {"fontSize": "1.15rem", "fontWeight": 500, "letterSpacing": "0.01em"},
        },
        "shape": {"borderRadius": 6},
        "breakpoints": {"values": BREAKPOINTS},
        "components": {
            "MuiAppBar": {
                "styleOverrides": {
                    "root": {
                        "backgroundColor": APP_BAR,
                        "backgroundImage": "none",
                        "color": "#fff",
                        "boxShadow": "none",
                    }
                }
            },
            "MuiToolbar": {"styleOverrides": {"root": {"minHeight": "52px !important"}}},
            "MuiTab": {
                "styleOverrides": {
                    "root": {
                        "textTransform": "none",
                        "fontSize": "0.95rem",
                        "minHeight": "44px",
                        "minWidth": "0",
                        "padding": "10px 14px",
                    }
                }
            },
            # The page's title is its first heading; what the library only uses as a spacer is none.
            "MuiTypography": {"defaultProps": {"variantMapping": HEADINGS}},
            # The library's own bar of the page at work, which is never shown, has no name for screen readers.
            "MuiLinearProgress": {"styleOverrides": {"root": {"display": "none"}}},
            "MuiButton": {"styleOverrides": {"root": {"textTransform": "none"}}},
            "MuiToggleButton": {"styleOverrides": {"root": {"textTransform": "none", "padding": "4px 12px"}}},
        },
    }


THEME: dict[str, Any] = {"light": _theme(False), "dark": _theme(True)}

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#B8A500")
"""Eight colours that stay apart for colour-blind readers (Okabe and Ito, black and yellow greyer)."""

MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "plus", "x")
"""A shape for each colour, so that no chart rests on colour alone."""

NEUTRAL = "#8a979f"
"""Lines and marks that must be seen on white and on near-black alike."""

WAITING = "rgba(128, 145, 155, 0.13)"
CURRENT = "#D55E00"

STYLES = (Path(__file__).parent / "theme.css").read_text(encoding="utf-8")
"""Style sheet of every HTML fragment."""
