"""What the API answers when it cannot do what was asked."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An answer with that status and {"error": sentence, ...more}."""

    def __init__(self, status: int, sentence: str, **more: Any) -> None:
        super().__init__(sentence)
        self.status = status
        self.body = {"error": sentence, **more}
