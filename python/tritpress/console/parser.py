"""Typer with the house's manners: one line for wrong usage, the four exit codes, flags without a type."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from tritpress.console.shell import INTERRUPTED, complain

WRONG_USAGE = 2

PLAIN_WORDS = (
    ("Value error, ", ""),
    ("Input should be greater than or equal to", "it must be at least"),
    ("Input should be less than or equal to", "it must be at most"),
    ("Input should be greater than", "it must be above"),
    ("Input should be less than", "it must be below"),
    ("Input should be a valid integer.*", "it must be a whole number"),
    ("Input should be a valid number.*", "it must be a number"),
)
"""Phrases of the parser -> how they are said here."""


class _PlainFlags:
    """Help that does not say `<bool>` of what takes no value."""

    def get_params(self, context: Any) -> list[Any]:
        parameters = super().get_params(context)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
        return parameters


class Command(_PlainFlags, TyperCommand):
    """A command of the program."""


class Group(_PlainFlags, TyperGroup):
    """The program, or a group of its commands."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse `args` and run the command; wrong usage is one line on stderr and exit code 2."""
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except (KeyboardInterrupt, typer.Abort):
            complain("interrupted")
            code = INTERRUPTED
        except Exception as error:
            # By its methods, not its class: newer releases of typer carry a copy of click of their own.
            if not standalone_mode or not hasattr(error, "format_message"):
                raise
            code = _say(error)
        if code == 130:  # what typer makes of Ctrl-C
            complain("interrupted")
            code = INTERRUPTED
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


class Program(typer.Typer):
    """A `typer.Typer` whose commands and group are those above."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            cls=Group,
            rich_markup_mode="rich",
            no_args_is_help=True,
            add_completion=False,
            pretty_exceptions_enable=False,
            **options,
        )

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:  # type: ignore[override]
        return super().command(name, cls=Command, **options)


def _say(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # the help was asked for by saying nothing
        if error.message:
            print(error.message, file=sys.stderr)
        return WRONG_USAGE
    sentence = " ".join(error.format_message().split()).rstrip(".")
    for phrase, words in PLAIN_WORDS:
        sentence = re.sub(phrase, words, sentence)
    context = getattr(error, "ctx", None)
    hint = f" (see `{context.command_path} --help`)" if context is not None else ""
    complain(f"{sentence[:1].lower()}{sentence[1:]}{hint}")
    return int(error.exit_code)
