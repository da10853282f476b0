"""PID 1 of the utility VM: forks the agent, reaps, and powers off when the agent ends.

This part imports nothing but `os` and `sys` before it forks and must not fail: the end of
PID 1 is a kernel panic, and a panic tells the host nothing. An agent that cannot even be
imported is reported on the console like one that dies later.
"""

from __future__ import annotations

import os
import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

_CONSOLE = 2  # the kernel opened /dev/console for us


def main() -> None:
    """Run as PID 1; never returns. Ends with a message anywhere else: it would take the machine."""
    if os.getpid() != 1:
        raise SystemExit("harness.guest is PID 1 of a utility VM and runs nowhere else")
    _fill_standard_descriptors()
    agent = os.fork()
    if not agent:
        _run_agent()
    while True:
        try:
            pid, status = os.wait()
        except InterruptedError:
            continue
        except ChildProcessError:
            _say("lcowlab: no agent")
            break
        if pid == agent:
            _say(f"lcowlab: the agent ended: {_describe(status)}; powering off")
            break
    _power_off()


def _fill_standard_descriptors() -> None:
    """Have something at descriptors 0 to 2: without a console the kernel leaves them closed.

    What is opened later would land there, and what is meant for the console would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # A pipe needs no file system; nothing of it is ever read.
            read, write = os.pipe()
            os.dup2(write, number)
            for end in (read, write):
                if end > _CONSOLE:
                    os.close(end)


def _run_agent() -> None:
    """Run the agent in the child; ends the process, with a traceback on the console if it fails."""
    code = 1
    try:
        from harness.guest.ground import Ground

        ground = Ground()  # loads modules while we import
        from harness.guest.boot import serve

        serve(ground)
        code = 0
    except BaseException:  # noqa: BLE001 - the boundary of a process
        try:
            import traceback

            _say("lcowlab: the agent failed:\n" + traceback.format_exc())
        except BaseException as error:  # noqa: BLE001 - a damaged image has no traceback module
            _say(f"lcowlab: the agent failed: {error!r}")
    os._exit(code)


def _describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _say(text: str) -> None:
    try:  # noqa: SIM105 - contextlib may be what is missing
        os.write(_CONSOLE, text.rstrip().encode(errors="replace") + b"\n")
    except OSError:
        pass


def _power_off() -> None:
    """End the machine, one way or the other; never returns."""
    os.sync()
    try:
        from harness.guest import syscalls

        syscalls.power_off()
    except BaseException as error:  # noqa: BLE001 - PID 1 must not end
        _say(f"lcowlab: cannot power off: {error!r}")
    import signal

    while True:
        signal.pause()


if __name__ == "__main__":
    main()
