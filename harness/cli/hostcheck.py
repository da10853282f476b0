"""`lcowlab doctor HOSTS`: is a host reached, by whom, and what gets through.

::

                     pywinrm gets in          pywinrm does not
    we get in        fine, if both were       other tools will not work with it
                     answered by one machine
    we do not        ours is at fault         the host, the network or the password is
"""

from __future__ import annotations

from typing import Final

from harness.cli.findings import Finding
from harness.errors import HarnessError, MissingProgramError, RemoteError, UsageError
from harness.hosts.connecting import connect_host
from harness.hosts.inventory import Host
from harness.remote.crosscheck import CrossCheck, cross_check
from harness.remote.deadline import Deadline
from harness.remote.probe import Probe, probe
from harness.remote.winrm import WinRM

_ASK_S: Final = 30.0


def examine_host(name: str, host: Host, *, python: str, deadline: Deadline) -> tuple[Finding, ...]:
    """Return what was found on the way to a host of the inventory; never raises for the host."""
    try:
        with connect_host(name, host) as winrm:
            return _examine(winrm, python, deadline)
    except UsageError as error:
        return (Finding("inventory", "unusable", str(error), stops=True, host=name),)


def _examine(winrm: WinRM, python: str, deadline: Deadline) -> tuple[Finding, ...]:
    name = winrm.host
    answer, failure = "", ""
    try:
        answer = winrm.run(["hostname"], deadline=deadline.capped(_ASK_S), idempotent=True).text
    except RemoteError as error:
        failure = str(error)
    try:
        other: CrossCheck | HarnessError = cross_check(
            winrm.endpoint, deadline=deadline.capped(_ASK_S)
        )
    except (MissingProgramError, UsageError) as error:
        other = error
    findings = [_reached(name, answer, failure), judge(name, answer, failure, other)]
    if not failure:
        try:
            found = probe(winrm, deadline=deadline, python=python)
        except RemoteError as error:
            findings.append(Finding("WinRM", "unknown", str(error), stops=True, host=name))
        else:
            findings += [Finding(what, text, host=name) for what, text in probe_rows(found)]
            findings += [_problem(name, each) for each in found.problems]
    return tuple(findings)


def _reached(name: str, answer: str, failure: str) -> Finding:
    if failure:
        return Finding("connection", "missing", failure, stops=True, host=name)
    return Finding("connection", f"answers as {answer}", host=name)


def judge(name: str, answer: str, failure: str, other: CrossCheck | HarnessError) -> Finding:
    """Return what it means that we got an answer, or a failure, and the other client another."""
    what = "cross-check"
    if isinstance(other, HarnessError):
        return Finding(what, "not made", str(other), host=name)
    if failure and other.succeeded:
        return Finding(
            what,
            f"pywinrm gets in and is answered as {other.answer}",
            "our own transport is at fault: please report it with both messages",
            stops=True,
            host=name,
        )
    if failure:
        return Finding(
            what,
            f"pywinrm fails too: {other.failure}",
            "look at the host, the network between, and the password: two clients agree",
            stops=True,
            host=name,
        )
    if not other.succeeded:
        return Finding(
            what,
            f"pywinrm does not get in: {other.failure}",
            "nothing for lcowlab; tools that use pywinrm (Ansible) will not work with this host",
            host=name,
        )
    if other.answer.lower() != answer.lower():
        return Finding(
            what,
            f"pywinrm was answered as {other.answer}, we as {answer}",
            "two machines answer at this address: give each its own",
            stops=True,
            host=name,
        )
    return Finding(what, "pywinrm agrees", host=name)


def probe_rows(found: Probe) -> tuple[tuple[str, str], ...]:
    """Return what a probe of WinRM found, a name and a text each."""
    known = {True: "all pass", False: "not all pass", None: "not known: no Python there"}
    skew = found.clock_skew_s
    return (
        ("envelope", f"{found.envelope_kib} KiB"),
        ("quotas", ", ".join(f"{key} {value}" for key, value in found.quotas.items()) or "hidden"),
        ("bytes 0-255", known[found.transparent]),
        ("code page", str(found.code_page or "unknown")),
        ("language mode", found.language_mode or "unknown"),
        (
            "code integrity",
            found.code_integrity.name.lower() if found.code_integrity else "unknown",
        ),
        ("clock", "unknown" if skew is None else f"{skew:+.0f} s from ours"),
    )


def _problem(name: str, problem: str) -> Finding:
    found, _, fix = problem.partition(": ")
    return Finding("WinRM", found, fix or problem, host=name)
