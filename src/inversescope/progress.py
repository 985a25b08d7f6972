"""Lines of progress for logs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Lines of progress for a log: at most one every `every` seconds."""

    def __init__(
        self, name: str, total: int, echo: Callable[[str], None] = print, every: float = 10.0
    ) -> None:
        self.name, self.total, self.echo, self.every = name, total, echo, every
        self.start = self.last = time.monotonic()

    def __call__(self, done: int, note: str = "") -> None:
        """Report `done` of `total`."""
        now = time.monotonic()
        if now - self.last < self.every and done < self.total:
            return
        self.last = now
        left = f", {(now - self.start) / done * (self.total - done):.0f} s to go" if done else ""
        self.echo(f"{self.name}: {done}/{self.total} ({now - self.start:.0f} s{left}) {note}")


@contextmanager
def waiting(name: str, echo: Callable[[str], None] = print, every: float = 10.0) -> Iterator[None]:
    """A line every `every` seconds while another library or process works, which says nothing itself."""
    start, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(every):
            echo(f"{name} ({time.monotonic() - start:.0f} s)")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
