"""Signals that ask a training to end."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """SIGINT and SIGTERM while training: noted, so that the state can be saved first.

    Where nothing is changed that could be torn, they end it at once; so does a second one.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._is_immediate = False

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Signals are noted within."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """Signals end the process within, those noted before too."""
        self.check()
        self._is_immediate = True
        try:
            yield
        finally:
            self._is_immediate = False

    def check(self) -> None:
        """End the process if that was asked for.

        Raises:
            KeyboardInterrupt: by SIGINT.
            SystemExit: by SIGTERM.
        """
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            sys.exit(128 + self.number)

    def _note(self, number: int, _: FrameType | None) -> None:
        is_second, self.number = self.number is not None, number
        if is_second or self._is_immediate:
            self.check()
