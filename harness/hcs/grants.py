r"""Which files the account of a virtual machine may open: one entry in the DACL of each.

A virtual machine runs as `NT VIRTUAL MACHINE\<GUID>`, which can read nothing of ours by itself. An
entry that is never taken away makes the DACL grow until no more fit (hcsshim #531, #792, #1789).
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

from harness.errors import ComputeServiceError
from harness.hcs.hcsapi import HcsApi

# Reading, changing and writing a DACL is three steps: two at once for one file lose an entry.
_ONE_AT_A_TIME: Final = threading.Lock()
_GONE: Final = frozenset({0x80070002, 0x80070003})  # ERROR_FILE_NOT_FOUND, ERROR_PATH_NOT_FOUND


class FileGrants:
    """The files that one system may open, each counted by who needs it."""

    def __init__(self, api: HcsApi, system_id: str) -> None:
        self._api = api
        self._system_id = system_id
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> tuple[str, ...]:
        """The files that have an entry now."""
        return tuple(self._held)

    def grant(self, file: str) -> None:
        """Let the system open a file. Raises ComputeServiceError; nothing is granted then."""
        with _ONE_AT_A_TIME:
            if not self._held[file]:
                try:
                    self._api.grant_access(self._system_id, file)
                except BaseException:
                    del self._held[file]
                    raise
            self._held[file] += 1

    def give_back(self, file: str) -> None:
        """Take a file away again, with the last who needs it. Raises ComputeServiceError.

        A file that is gone has no DACL. After a failure it may be repeated.
        """
        with _ONE_AT_A_TIME:
            if self._held[file] <= 1:
                try:
                    self._api.revoke_access(self._system_id, file)
                except ComputeServiceError as error:
                    if error.hresult not in _GONE:
                        raise
                del self._held[file]
            else:
                self._held[file] -= 1

    def give_all_back(self) -> None:
        """Take everything away; tries each, then raises the first ComputeServiceError."""
        failures = []
        for file in self.held:
            self._held[file] = 1
            try:
                self.give_back(file)
            except ComputeServiceError as error:
                failures.append(error)
        if failures:
            raise failures[0]
