"""Clients of a played named pipe for programs that dial Unix sockets, such as gRPC here."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fakes.pipes import FakePipes

_BUSY_PAUSE_S = 0.01
"""go-winio's, with which containerd dials."""


@contextlib.contextmanager
def dialled_by_socket(computer: FakePipes, pipe: str, path: Path) -> Iterator[None]:
    """Make each connection to the Unix socket `path` a client of the pipe.

    A client that finds the pipe busy tries again; one that finds none is refused.
    """
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen(64)
        threads: list[threading.Thread] = []
        stopped = threading.Event()

        def connect(through: socket.socket) -> None:
            while not stopped.is_set():
                try:
                    computer.dial(pipe, through=through)
                except BlockingIOError:
                    time.sleep(_BUSY_PAUSE_S)
                except FileNotFoundError:
                    break
                else:
                    return
            through.close()

        def accept() -> None:
            while True:
                try:
                    through, _ = door.accept()
                except OSError:
                    return
                if stopped.is_set():
                    through.close()
                    return
                threads.append(threading.Thread(target=connect, args=(through,)))
                threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield
        finally:
            stopped.set()
            with contextlib.suppress(OSError):
                door.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()
            path.unlink()
