"""A QMP peer that is scripted: what QEMU would answer, without QEMU."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from harness.qemu.loop import IoLoop
from harness.qemu.qmp import QmpClient, QmpEvent

GREETING = {"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}


class Peer:
    """Answers commands as `answer` says, in a thread."""

    def __init__(self, loop: IoLoop, answer: Callable[[dict[str, Any]], list[Any] | None]) -> None:
        mine, theirs = socket.socketpair()
        self.events: list[QmpEvent] = []
        self.client = QmpClient(loop, theirs, on_event=self.events.append)
        self.socket = mine
        self._answer = answer
        threading.Thread(target=self._serve, daemon=True).start()
        self.client.connect(soon())

    def send(self, message: object) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\r\n")

    def _serve(self) -> None:
        self.send(GREETING)
        with self.socket.makefile("rb") as lines:
            for line in lines:
                command = json.loads(line)
                if command["execute"] == "qmp_capabilities":
                    self.send({"return": {}, "id": command["id"]})
                    continue
                answers = self._answer(command)
                if answers is None:
                    break
                for answer in answers:
                    self.send({**answer, "id": command["id"]} if "event" not in answer else answer)
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds
