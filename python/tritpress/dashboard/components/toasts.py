"""Short notices in the corner of the page: what a button brought about, and alerts of the runs at work."""

from __future__ import annotations

import panel_material_ui as pmui

TYPES = {"bad": "error", "warning": "warning", "good": "success", "live": "info", "neutral": "info"}
SECONDS = {"error": 12, "warning": 10}


class Toasts:
    """Shows notices; nothing of them is kept."""

    def __init__(self) -> None:
        self.area = pmui.NotificationArea(
            position="bottom-right",
            max_notifications=5,
            js_events={
                "connection_lost": {"type": "error", "message": "The connection to the server is lost."}
            },
        )

    def show(self, tone: str, text: str) -> None:
        """Show `text` for some seconds."""
        kind = TYPES.get(tone, "info")
        self.area.send(text, duration=1000 * SECONDS.get(kind, 6), type=kind)
