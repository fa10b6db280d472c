"""What the API answers when it cannot do what was asked."""

from __future__ import annotations

import errno
from typing import Any


class ApiError(Exception):
    """An answer with that status and {"error": sentence, ...more}."""

    def __init__(self, status: int, sentence: str, **more: Any) -> None:
        super().__init__(sentence)
        self.status = status
        self.body = {"error": sentence, **more}


def disk_is_full(error: BaseException | None) -> bool:
    """Whether that is what an exception, or one that it came of, says."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False
