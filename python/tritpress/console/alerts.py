"""Alerts of a run as a table, and what of them waits to be delivered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from tritpress.console.tables import simple_table

if TYPE_CHECKING:
    from tritpress.runs.outbox import Entry

LEVEL_STYLES = {"critical": "red", "warning": "yellow"}


def print_alerts(
    console: Console,
    run: str,
    alerts: list[dict[str, Any]],
    waiting: list[Entry],
    sent: tuple[int, int] | None,
) -> None:
    """What was raised, oldest first; `sent` is (taken, failed) when delivery was asked for."""
    if alerts:
        table = simple_table("time", "level", "rule", "message")
        for alert in alerts:
            level = str(alert.get("level") or "")
            table.add_row(
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(alert.get("t") or 0)),
                Text(level, style=LEVEL_STYLES.get(level, "")),
                Text(str(alert.get("rule") or "")),
                Text(str(alert.get("message") or "")),
            )
        console.print(table)
    else:
        console.print(f"No alerts in run {run}.")
    if sent is not None:
        console.print(f"{sent[0]} delivered, {sent[1]} not.")
    for entry in waiting:
        why = f": {entry.error} ({entry.tries} tries)" if entry.error else ", not tried yet"
        console.print(Text(f"Waits for the {entry.to}: {entry.id}{why}"))
    if waiting and sent is None:
        console.print(f"tritpress runs alerts {run} --send delivers them now.")
