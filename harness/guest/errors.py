"""The one error that the guest agent answers a request with."""

from __future__ import annotations

from harness.gcs.prot import HResult


class GuestFailure(Exception):  # noqa: N818 - it is the answer to a request, not a fault of ours
    """A request that cannot be done: the HRESULT and the text that the host gets."""

    def __init__(self, result: HResult, message: str) -> None:
        super().__init__(message)
        self.result = result
