"""What the browser's tab is called while a page is open: how its run stands, told in a few characters."""

from __future__ import annotations

from tritpress.dashboard.views.figures import known
from tritpress.dashboard.views.status import State, running_step, status_of

PLAIN = "tritpress"


def page_title(
    state: State | None, name: str = "", lost: bool = False, gone: bool = False, unseen: int = 0
) -> str:
    """`43 % · name · step 4 of 7`, `✕ name failed`, `✓ name`; the plain name while no run is open (None).

    The share is that of the step under way. `unseen` alerts that came while nobody looked stand before it.
    """
    title = PLAIN if state is None else _title(state, name, lost, gone)
    return f"({unseen}) {title}" if unseen else title


def _title(state: State, name: str, lost: bool, gone: bool) -> str:
    status = status_of(state, lost, gone)
    step = running_step(state)
    if state["status"] == "running" and step is not None and not (lost or gone):
        done, total = step.get("done"), step.get("total")
        share = f"{min(int(100 * done / total), 100)} % ·" if known(done) and known(total) and total else ""
        return f"{share or status.mark} {name} · step {step['n']} of {len(state['steps'])}"
    if state["status"] == "finished" and not gone:
        return f"{status.mark} {name}"
    return f"{status.mark} {name}{':' if lost else ''} {status.label.lower()}"
