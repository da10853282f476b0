"""One request to the guest's agent on the bridge's port, before the bridge has a consumer.

For what makes a template and a copy of one (`harness.gcs.prot.LabRequest`): the machine is ours
alone then, so a plain exchange on its socket does.
"""

from __future__ import annotations

import socket
import time
from typing import Final

from harness.errors import (
    ComputeServiceError,
    ComputeTimeoutError,
    GuestError,
    ProtocolError,
    SystemExitedError,
)
from harness.gcs.codec import (
    HOST_MAX_FRAME,
    Frame,
    FrameDecoder,
    FrameError,
    MessageError,
    decode_body,
    encode_body,
    encode_frame,
    from_json,
    to_json,
)
from harness.gcs.prot import NULL_ID, LabRequest, RequestBase, ResponseBase, response_type

_READ_SIZE: Final = 64 * 1024


def call_agent(
    port: socket.socket, request: LabRequest, message: object | None = None, *, deadline: float
) -> None:
    """Send a request and wait for its answer, with nothing else on the port.

    Raises ComputeTimeoutError, SystemExitedError, GuestError (the agent refused), and
    ComputeServiceError for what is no agent of ours.
    """
    body = to_json(RequestBase(container_id=NULL_ID))
    if message is not None:
        body |= to_json(message)
    try:
        port.settimeout(_left(request, deadline))
        port.sendall(encode_frame(Frame(request, 0, encode_body(body))))
        answer = _receive(port, request, deadline)
    except TimeoutError as error:
        raise ComputeTimeoutError(f"the guest does not answer {request.name} in time") from error
    except (OSError, EOFError) as error:
        raise SystemExitedError(f"the machine ended before it answered {request.name}") from error
    except (FrameError, MessageError, ProtocolError) as error:
        raise ComputeServiceError(f"the guest's answer to {request.name}: {error}") from error
    if answer.result:
        raise GuestError(answer.error_message, hresult=answer.result, request=request.name)


def _receive(port: socket.socket, request: LabRequest, deadline: float) -> ResponseBase:
    decoder = FrameDecoder(max_frame=HOST_MAX_FRAME)
    while True:
        port.settimeout(_left(request, deadline))
        data = port.recv(_READ_SIZE)
        if not data:
            raise EOFError
        for frame in decoder.feed(data):
            if frame.type != response_type(request) or not decoder.at_boundary:
                raise ProtocolError(f"message {frame.type:#010x} was not asked for")
            return from_json(ResponseBase, decode_body(frame.body))


def _left(request: LabRequest, deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"{request.name}: the deadline has passed")
    return left
