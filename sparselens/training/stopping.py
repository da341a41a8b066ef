"""Treat Ctrl-C, and the SIGTERM of a batch system, as a request to stop after the current step and a checkpoint."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MESSAGE = b"\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once, without one\n"


class StopRequest:
    """A signal handler that records whether the program was asked to stop."""

    received = False

    def __call__(self, *_: Any) -> None:
        """Record the first signal; raise KeyboardInterrupt on the second."""
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        os.write(2, _MESSAGE)  # not print, which must not be called if the signal interrupts another print


@contextmanager
def stop_requests(listen: bool = True) -> Iterator[StopRequest]:
    """Inside the block, record SIGINT and SIGTERM instead of ending the program.

    Signals that were ignored before, as under `nohup`, stay ignored. Works only in the main thread.
    """
    request, before = StopRequest(), {}
    if listen and threading.current_thread() is threading.main_thread():
        handled = [number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        before = {number: signal.signal(number, request) for number in handled}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
