"""`icacls`: shows and changes the access control lists that the pretend host keeps as records."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from harness.winrmd.acl import Acl, parse_grant, show, sid_of
from harness.winrmd.cmdlets import Machine
from harness.winrmd.host import BadPathError
from harness.winrmd.tools.console import Answer

_BAD_PARAMETER: Final = 87
_NO_SUCH_FILE: Final = 2
_NONE_MAPPED: Final = 1332


class _RefusedError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.answer = Answer(code, err=text + "\n")


def icacls(machine: Machine, arguments: Sequence[str]) -> Answer:
    """Run `icacls NAME [options]`.

    Known: /inheritance:e|d|r, /grant[:r], /deny, /remove[:g], /setowner, /reset, /t, /c, /l, /q.
    All of it is applied, or nothing.
    """
    if not arguments or arguments[0] == "/?":
        return Answer(_BAD_PARAMETER, err='Invalid parameter "/?"\n')
    host, name = machine.host, arguments[0]
    try:
        local = host.local_path(name)
    except BadPathError:
        return _missing(name)
    if not os.path.lexists(local):
        return _missing(name)
    options = [each.lower() for each in arguments[1:]]
    if not options:
        return _shown(name, host.acl(name))
    # As a whole: a refused option leaves nothing half done.
    targets = [host.windows_path(name)]
    if "/t" in options and local.is_dir():
        targets += [host.paths.windows(each) for each in sorted(local.rglob("*"))]
    try:
        with host.change() as state:
            for target in targets:
                _apply(arguments[1:], state.acls, target, host.effective_acl(state, target))
    except _RefusedError as refused:
        return refused.answer
    quiet = "/q" in options
    lines = "" if quiet else "".join(f"processed file: {target}\n" for target in targets)
    return Answer(out=lines + _summary(len(targets), 0))


def _apply(options: Sequence[str], acls: dict[str, Acl], target: str, effective: Acl) -> None:
    key = target.lower()
    own = acls.get(key) or replace(
        effective, entries=tuple(each for each in effective.entries if not each.inherited)
    )
    at = 0
    while at < len(options):
        option, _, mode = options[at].lower().partition(":")
        at += 1
        match option:
            case "/inheritance":
                own = _inheritance(own, effective, mode)
            case "/reset":
                own = Acl(own.owner, ())
            case "/t" | "/c" | "/l" | "/q":
                pass
            case "/setowner":
                own = replace(own, owner=_sid(_operand(options, at, option)))
                at += 1
            case "/grant" | "/deny":
                _operand(options, at, option)
                while at < len(options) and not options[at].startswith("/"):
                    own = _granted(own, options[at], option, mode)
                    at += 1
            case "/remove":
                _operand(options, at, option)
                while at < len(options) and not options[at].startswith("/"):
                    own = own.without(_sid(options[at]))
                    at += 1
            case _:
                raise _RefusedError(_BAD_PARAMETER, f'Invalid parameter "{options[at - 1]}"')
    acls[key] = own


def _inheritance(own: Acl, effective: Acl, mode: str) -> Acl:
    match mode:
        case "r":
            return replace(own, protected=True)
        case "d":
            copied = tuple(replace(each, inherited=False) for each in effective.entries)
            return replace(own, protected=True, entries=copied)
        case "e":
            return replace(own, protected=False)
        case _:
            raise _RefusedError(_BAD_PARAMETER, f'Invalid parameter "/inheritance:{mode}"')


def _granted(own: Acl, text: str, option: str, mode: str) -> Acl:
    trustee, colon, rights = text.partition(":")
    if not colon:
        raise _RefusedError(_BAD_PARAMETER, f'Invalid parameter "{text}"')
    try:
        ace = parse_grant(rights, sid=_sid(trustee))
    except ValueError as error:
        raise _RefusedError(_BAD_PARAMETER, f'Invalid parameter "{text}"') from error
    if option == "/deny":
        ace = replace(ace, kind="D")
    return own.granted(ace, replacing=mode == "r")


def _sid(trustee: str) -> str:
    found = sid_of(trustee)
    if found is None:
        raise _RefusedError(
            _NONE_MAPPED,
            f"{trustee}: No mapping between account names and security IDs was done.",
        )
    return found


def _operand(options: Sequence[str], at: int, option: str) -> str:
    if at >= len(options) or options[at].startswith("/"):
        raise _RefusedError(_BAD_PARAMETER, f'Invalid parameter "{option}"')
    return options[at]


def _shown(name: str, acl: Acl) -> Answer:
    indent = " " * (len(name) + 1)
    lines = [
        (f"{name} " if number == 0 else indent) + show(ace)
        for number, ace in enumerate(acl.entries)
    ] or [name]
    return Answer(out="\n".join(lines) + "\n\n" + _summary(1, 0))


def _missing(name: str) -> Answer:
    return Answer(
        _NO_SUCH_FILE,
        out=_summary(0, 1),
        err=f"{name}: The system cannot find the file specified.\n",
    )


def _summary(done: int, failed: int) -> str:
    return f"Successfully processed {done} files; Failed processing {failed} files\n"
