"""How often a browser is sent what changed: no sooner than it has drawn what it was sent before.

A browser that draws more slowly than it is sent to would otherwise fall behind without end: what it shows
would be older with every second.
"""

from __future__ import annotations

EVERY = 2.0
"""Least seconds between two questions whether all has been drawn; who was late is asked with every batch."""

GRACE = 0.25
"""Seconds that an answer may take before nothing more is sent and the browser counts as late."""

LOST = 10.0
"""Seconds after which no answer is waited for: a browser may have stopped drawing without saying so."""


class Pacing:
    """Of one page. Times are those of a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.number = 0
        self.asked = self.sent = float("-inf")
        self.waiting = self.late = False

    def may_send(self, now: float, least: float) -> bool:
        """`least`: seconds between two batches for a browser that keeps up."""
        if self.waiting and (0.0 if self.late else GRACE) < now - self.asked < LOST:
            return False
        return now - self.sent >= least

    def question(self, now: float) -> int | None:
        """A batch is sent: the number that its browser answers with once it is drawn, None when not asked."""
        self.sent = now
        if now - self.asked < (LOST if self.waiting else 0.0 if self.late else EVERY):
            return None
        self.number += 1
        self.asked, self.waiting = now, True
        return self.number

    def answer(self, number: int, now: float) -> None:
        """The browser has drawn all up to this question."""
        if number == self.number:
            self.waiting, self.late = False, now - self.asked > GRACE
