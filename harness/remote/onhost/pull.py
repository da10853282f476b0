"""Fetch a file from the controller over HTTPS, going on where a former attempt ended."""

from __future__ import annotations

import http.client
import json
import os
import pathlib
import ssl
import time
from typing import IO, Any

_CHUNK = 1 << 20
_REPORT_S = 0.5


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Append what is missing of `size` bytes to `part` below `root`; report `have` as it grows.

    The server is `address`:`port` with a certificate of the authority `ca` (PEM) and no other;
    no proxy is asked. Reports `error` instead when the transfer broke off.
    """
    del source
    part = pathlib.Path(parameters["root"], parameters["part"])
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(part, parameters, report)
    except (OSError, http.client.HTTPException) as error:
        _tell(report, error=f"{type(error).__name__}: {error}")


def _fetch(path: pathlib.Path, parameters: dict[str, Any], report: IO[bytes]) -> None:
    size = parameters["size"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=parameters["ca"])
    with path.open("ab") as part:
        if part.tell() > size:
            part.truncate(0)
            part.seek(0)
        have = part.tell()
        _tell(report, have=have)
        if have < size:
            connection = http.client.HTTPSConnection(
                parameters["address"],
                parameters["port"],
                timeout=parameters["timeout_s"],
                context=context,
            )
            connection.request("GET", parameters["path"], headers={"Range": f"bytes={have}-"})
            answer = connection.getresponse()
            if answer.status != 206:
                raise http.client.HTTPException(f"HTTP status {answer.status}")
            told = time.monotonic()
            while have < size and (block := answer.read(min(_CHUNK, size - have))):
                part.write(block)
                have += len(block)
                if time.monotonic() - told > _REPORT_S:
                    _tell(report, have=have)
                    told = time.monotonic()
            connection.close()
        part.flush()
        os.fsync(part.fileno())
    _tell(report, have=have)


def _tell(report: IO[bytes], **values: object) -> None:
    report.write(json.dumps(values).encode() + b"\n")
    report.flush()
