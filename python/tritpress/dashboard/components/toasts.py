"""Short notices in the corner of the page: what a button brought about, and the alerts of the open run."""

from __future__ import annotations

from typing import Any

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


class AlertWatch:
    """Finds the alerts of a run that were not shown yet; those from before it was opened count as shown."""

    def __init__(self) -> None:
        self.last = 0.0

    def begin(self, alerts: list[dict[str, Any]]) -> None:
        """A run was opened that has had these alerts."""
        self.last = max((alert.get("t") or 0.0 for alert in alerts), default=0.0)

    def new(self, alerts: list[dict[str, Any]]) -> list[tuple[str, str]]:
        """Tone and text of each alert that came since; each is told once."""
        fresh = [alert for alert in alerts if (alert.get("t") or 0.0) > self.last]
        if fresh:
            self.last = max(alert["t"] for alert in fresh)
        return [
            (
                "bad" if alert.get("level") == "critical" else "warning",
                f"Alert: {alert.get('message') or alert.get('rule') or 'without a message'}",
            )
            for alert in fresh
        ]
