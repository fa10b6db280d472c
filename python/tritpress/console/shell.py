"""What every command does alike: one JSON object or readable text, one sentence for an error, exit codes."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from rich.console import Console

from tritpress.errors import TritpressError

INTERRUPTED = 1
"""Exit code after Ctrl-C. There are four codes only: 0, 1, 2 and 3."""


def console() -> Console:
    """Where readable output goes. Outside a terminal 100 columns wide."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 100
    return Console(width=width, highlight=False)


def print_json(value: Any) -> None:
    """The one object of a command with `--json`."""
    from tritpress.events.schema import encode

    sys.stdout.write(encode(value) + "\n")
    sys.stdout.flush()


def complain(sentence: str) -> None:
    """An error on stderr, as it is: no wrapping that would cut paths apart."""
    color = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    start, end = ("\x1b[31m", "\x1b[0m") if color else ("", "")
    print(f"{start}tritpress:{end} {sentence}", file=sys.stderr)


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what a command raises into one sentence on stderr and an exit code; what it returns is its code.

    `--debug`, or TRITPRESS_DEBUG in the environment, shows the traceback as well.
    """

    @functools.wraps(command)
    def guard(*args: Any, **options: Any) -> None:
        try:
            code = command(*args, **options)
            sys.stdout.flush()
        except KeyboardInterrupt:
            complain("interrupted")
            code = INTERRUPTED
        except BrokenPipeError:  # `tritpress ... | head` closed the pipe: nothing more can be said
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except TritpressError as error:
            _show_traceback(options)
            complain(str(error))
            code = error.exit_code
        except (Exception, RecursionError) as error:
            _show_traceback(options)
            complain(_sentence(error))
            code = 1
        raise SystemExit(code or 0)

    return guard


def need(extra: str, purpose: str, *modules: str) -> None:
    """Raise a `TritpressError` that names the extra when one of those packages is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        names = " and ".join(missing)
        raise TritpressError(f"{purpose} needs {names}, not installed here: pip install 'tritpress[{extra}]'")


def _sentence(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory for this here"
    if type(error).__module__ == "tritpress._core":  # an option or an environment variable that it refuses
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"unexpected {type(error).__name__}: {first_line} (--debug shows where)"


def _show_traceback(options: dict[str, Any]) -> None:
    if options.get("debug") or os.environ.get("TRITPRESS_DEBUG"):
        traceback.print_exc()
