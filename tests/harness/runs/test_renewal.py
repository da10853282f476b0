"""A lease lasts as long as somebody watches, and a run no longer than its lease."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from tests.harness.hosts.pretend import Pretend
from tests.harness.runs.ready import QUICK, Heard, lease_of, remote_run, request


def test_whoever_watches_a_run_asks_for_more_time(host: Pretend) -> None:
    heard, cancel, renewed = Heard(), threading.Event(), []

    def wait_for_renewal() -> None:
        heard.under_way.wait(120)
        first = lease_of(host)["until_s"]
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if lease_of(host)["until_s"] > first:
                renewed.append(lease_of(host)["state"])
                break
            time.sleep(0.2)
        cancel.set()

    waiting = threading.Thread(target=wait_for_renewal)
    waiting.start()
    patience = replace(QUICK, ttl_s=30.0)
    with host.connect() as winrm:
        remote_run(
            winrm, request("same-id-again", hang="600s"), heard, cancel=cancel, patience=patience
        ).run()
    waiting.join()
    assert renewed == ["busy"]
