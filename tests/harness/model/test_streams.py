"""The streams of a model's guest."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.errors import ComputeServiceError
from harness.hcs.service import LOG_PORT
from harness.model.streams import ModelPorts


def test_a_dial_that_the_end_of_the_system_overtakes_is_refused_and_leaves_nothing_open(
    tmp_path: Path,
) -> None:
    ports = ModelPorts(tmp_path)
    endpoint = ports.listen(LOG_PORT)
    with ThreadPoolExecutor() as pool:
        dialed = pool.submit(ports.dial, LOG_PORT)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as consumer:
            while _listened_on(ports):  # until the dial has taken the listener
                time.sleep(0.001)
            ports.close()
            consumer.connect(endpoint.address)
            with pytest.raises(ConnectionRefusedError, match="stopped"):
                dialed.result()
            assert consumer.recv(1) == b""


def _listened_on(ports: ModelPorts) -> bool:
    try:
        ports.listen(LOG_PORT)
    except ComputeServiceError:
        return True
    return False
