"""How often a browser is sent what changed: no sooner than it has drawn what it was sent before.

A browser that draws more slowly than it is sent to would otherwise fall behind without end: what it shows
would be older with every second.
"""

from __future__ import annotations

EVERY = 2.0
"""Least seconds between two questions whether all has been drawn; who was late is asked with every batch."""

GRACE = 0.25
"""Seconds that an answer may take before nothing more is sent and the browser counts as late."""

LOST, LONGEST = 10.0, 80.0
"""Seconds after which no answer is waited for: a browser may have stopped drawing without saying so. Doubled
with each that does not come, up to the latter.
"""


class Pacing:
    """Of one page. Times are those of a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.number = 0
        self.asked = self.sent = float("-inf")
        self.waiting = self.late = False
        self.patience = LOST

    def may_send(self, now: float, least: float, urgent: bool = False) -> bool:
        """`least`: seconds between two batches for a browser that keeps up. `urgent`: someone waits for what
        comes, it is not held back.
        """
        if self.waiting and not urgent and (0.0 if self.late else GRACE) < now - self.asked < self.patience:
            return False
        return now - self.sent >= least

    def question(self, now: float) -> int | None:
        """A batch is sent: the number that its browser answers with once it is drawn, None when not asked."""
        self.sent = now
        if now - self.asked < (self.patience if self.waiting else 0.0 if self.late else EVERY):
            return None
        if self.waiting:
            self.patience = min(2 * self.patience, LONGEST)
        self.number += 1
        self.asked, self.waiting = now, True
        return self.number

    def answer(self, number: int, now: float) -> None:
        """The browser has drawn all up to this question."""
        if number == self.number:
            took = now - self.asked
            self.waiting, self.late, self.patience = False, took > GRACE, min(max(LOST, 2 * took), LONGEST)
        else:  # of one that was no longer waited for
            self.late = True
