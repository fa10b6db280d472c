"""Runs that are over before all was done: what they did not come to is said to be missing, not promised."""

from __future__ import annotations

from tritpress.dashboard.views.status import State


def broke_off(state: State, lost: bool = False) -> bool:
    """Whether the run is over without having finished."""
    return lost or state.get("status") in ("failed", "stopped")


def over(state: State, lost: bool = False) -> bool:
    """Whether nothing more comes of the run."""
    return broke_off(state, lost) or state.get("status") == "finished"


def reached(state: State, number: int) -> bool:
    """Whether the run came to that step. A step that was at work when the run was stopped waits again."""
    step = state["steps"][number - 1]
    return step["state"] != "waiting" or step["started"] is not None


def ended_words(state: State, number: int) -> str:
    """Of a run that broke off: how far it came, seen from that step."""
    done = " was done" if reached(state, number) else ""
    return f"The run ended before step {number}{done}."


def early_words(state: State, lost: bool, coming: str, remote: bool = False) -> str:
    """Why something is not there: the run broke off, or `coming`, what the run has yet to do for it.
    `remote`: the run is worked on elsewhere, and of its worker nothing is known.
    """
    if not broke_off(state, lost):
        return coming
    how = "Nothing more was heard of the run" if remote else "The worker was gone"
    if not lost:
        how = "The run failed" if state["status"] == "failed" else "The run was stopped"
    return f"{how} before this was known."
