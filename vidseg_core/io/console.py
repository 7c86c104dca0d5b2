"""Words on a console, which may lack a character, or which nobody may read any more: neither ends a run."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any


class Patient:
    """A stream that goes nowhere from the moment on at which who reads it has gone, as behind `| head`, or if there is none, as
    behind `>&-`."""

    def __init__(self, stream: Any):
        self.stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the process

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """As that of a file."""
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        """As that of a file."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self._let_go()

    def _let_go(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())  # what is still in the buffer goes there, too, when Python ends
        os.close(nowhere)


@contextmanager
def patient_console() -> Iterator[None]:
    """In this block stdout and stderr write `\\u2013` for a dash that the console's encoding lacks, and go on unread."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's stream has none, and takes any character
            stream.reconfigure(errors="backslashreplace")
    with redirect_stdout(Patient(sys.stdout)) as out, redirect_stderr(Patient(sys.stderr)) as error:
        try:
            yield
        finally:
            out.flush()
            error.flush()
