"""The errors a user can meet; each message is a sentence that names what is wrong and what would be right."""

from __future__ import annotations


class TritpressError(Exception):
    """Base of every error that tritpress raises on purpose. The command line exits with `exit_code`."""

    exit_code = 1


class InputError(TritpressError):
    """A file, tensor, model or text that cannot be used."""


class UsageError(TritpressError):
    """An option, or a combination of options, that makes no sense."""

    exit_code = 2


class StopRequested(TritpressError):
    """The run was stopped on request; what is finished stays on disk and the run can be resumed."""
