# SPDX-License-Identifier: Apache-2.0
"""Log lines off the loop: a reader of our stderr that stalls must not stall traffic.

Lines wait in a bounded queue for one thread that writes them; what does not fit is
dropped and counted, never waited for.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import TextIO

MAX_LINES = 10_000
"""Lines that may wait; Istio's ztunnel buffers as many."""


class BoundedLogHandler(logging.Handler):
    """Formats on the caller's thread, writes on its own; `close` writes what is left."""

    def __init__(self, stream: TextIO, max_lines: int = MAX_LINES) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(max_lines)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1

    def take_dropped(self) -> int:
        """Return how many lines were dropped since the last call."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            text = line + "\n"
            while not self._lines.empty():
                more = self._lines.get()
                if more is None:
                    self._put(text)
                    return
                text += more + "\n"
            self._put(text)

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # Nobody reads any more; there is no other place to say it.
            self._dropped += text.count("\n")

    def close(self) -> None:
        """Write what is queued, for up to a second."""
        try:
            self._lines.put(None, timeout=1)
        except queue.Full:
            return
        self._thread.join(timeout=1)
        super().close()
