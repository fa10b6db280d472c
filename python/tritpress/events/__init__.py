"""How a run tells what it does: an append-only event log and the state folded from it.

The worker process alone writes (`EventWriter`); command line, dashboard and callbacks read (`EventReader`,
`StateReader`). Nothing here imports torch or panel.
"""

from tritpress.events.context import NullContext, RunContext
from tritpress.events.reader import EventReader, StateReader
from tritpress.events.schema import EVENT_TYPES, SCHEMA_VERSION, STEP_NAMES, Event, encode, make_event
from tritpress.events.snapshot import fold, initial_state, load_snapshot
from tritpress.events.writer import EventWriter

__all__ = [
    "EVENT_TYPES",
    "SCHEMA_VERSION",
    "STEP_NAMES",
    "Event",
    "EventReader",
    "EventWriter",
    "NullContext",
    "RunContext",
    "StateReader",
    "encode",
    "fold",
    "initial_state",
    "load_snapshot",
    "make_event",
]
