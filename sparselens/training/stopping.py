"""Ctrl-C, and the SIGTERM of a batch system, as a request: a run finishes its step and writes a checkpoint first."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WORD = b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once, without\n"


class StopRequest:
    """Has somebody asked the program to stop?"""

    asked = False

    def __call__(self, *_: Any) -> None:
        """Note the first signal; the second is what Ctrl-C always was."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        os.write(2, _WORD)  # print may not be called while a signal interrupts another print


@contextmanager
def stop_requests(listen: bool = True) -> Iterator[StopRequest]:
    """Inside the block signals that would end the program are noted instead.

    Those that the program was started to ignore stay ignored, as under `nohup`. Threads other than the main one
    cannot listen.
    """
    request, before = StopRequest(), {}
    if listen and threading.current_thread() is threading.main_thread():
        heard = [one for one in _SIGNALS if signal.getsignal(one) not in (signal.SIG_IGN, None)]
        before = {one: signal.signal(one, request) for one in heard}
    try:
        yield request
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
