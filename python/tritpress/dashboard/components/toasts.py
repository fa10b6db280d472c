"""Short notices in the corner of the page: what a button brought about, and alerts of the runs at work."""

from __future__ import annotations

from collections import deque

import panel_material_ui as pmui

from tritpress.dashboard.components.soon import soon

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

        self._waiting: deque[tuple[str, str]] = deque()

    def show(self, tone: str, text: str) -> None:
        """Show `text` for some seconds."""
        self._waiting.append((TYPES.get(tone, "info"), text))
        if len(self._waiting) == 1:
            soon(self._send)

    def _send(self) -> None:
        """One at a time: of two in one batch the browser would never hear of the first, and break over it."""
        kind, text = self._waiting.popleft()
        if self._waiting:
            soon(self._send)
        self.area.send(text, duration=1000 * SECONDS.get(kind, 6), type=kind)
