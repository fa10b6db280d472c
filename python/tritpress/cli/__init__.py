"""The command line: `tritpress COMMAND`. Thin commands over the library; torch is imported by none here."""

from __future__ import annotations

from tritpress.cli import compress, dashboard, models  # noqa: F401  (each adds its commands)
from tritpress.cli.app import app
from tritpress.devices import wait_without_spinning


def main() -> None:
    """Entry of the `tritpress` program."""
    wait_without_spinning()
    app()
