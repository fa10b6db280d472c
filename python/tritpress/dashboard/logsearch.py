"""What a search finds in the whole log of a run: looked through beside the page's loop, later only what came.

A log may hold millions of events: lines of a type that the list has no line for are passed over unread, and
of what is found only the last events are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tritpress.dashboard.kept import brief, type_of
from tritpress.dashboard.views.events import DESCRIBE, EventSearch, finds, most_listed
from tritpress.dashboard.views.status import NO_NAMES
from tritpress.events.reader import parse, whole_lines

SEARCHES = ThreadPoolExecutor(2, thread_name_prefix="tritpress-search")


class LogSearch:
    """One search of one log. While it is `busy` its thread changes what was found; a page looks for `ready`,
    then calls `take` and reads `newest` and `found`, which stand still until it asks for a look `again`.
    """

    def __init__(self, path: Path, search: EventSearch, names: Mapping[str, str] = NO_NAMES) -> None:
        self.path, self.search, self.names = path, search, names
        self.found = 0
        self.newest: deque[dict[str, Any]] = deque(maxlen=most_listed(search))
        self.whole = False  # the log was looked through to its end
        self._offset = 0  # just behind the last line that was looked at
        self._given_up = False
        self._future: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a look was asked for and not taken up yet."""
        return self._future is not None

    @property
    def ready(self) -> bool:
        """Whether a look came to its end and was not taken up yet."""
        return self._future is not None and self._future.done()

    def again(self) -> None:
        """Look at what the log has beyond what was looked at."""
        if self._future is None:
            self._future = SEARCHES.submit(self.look)

    def take(self) -> None:
        """Take up a look that is `ready`."""
        future, self._future = self._future, None
        assert future is not None
        future.result()

    def give_up(self) -> None:
        """Nobody wants to know any more."""
        self._given_up = True
        if self._future is not None:
            self._future.cancel()

    def look(self) -> None:
        """Look through the rest of the log."""
        for line in self._lines():
            event = parse(line) if type_of(line) in DESCRIBE else None
            if event is not None and finds(self.search, event, self.names):
                self.found += 1
                self.newest.append(brief(event))
        self.whole = not self._given_up

    def _lines(self) -> Iterator[bytes]:
        """Whole lines from where the last look ended."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                for lines in whole_lines(file):
                    if self._given_up:
                        return
                    yield from lines
                    self._offset += sum(map(len, lines)) + len(lines)
        except OSError:  # a log that cannot be read any more has nothing more in it
            return
