"""The programs of the model's guests, after busybox: what scenarios use, in busybox's words."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import errno
import os
import re
from collections.abc import Callable
from typing import Final

from harness.model.files import BLOCK, Kind, Node
from harness.model.process import Process, Sink

Applet = Callable[[Process, list[str]], int]
_SIZES: Final = {"": 1, "k": 1 << 10, "K": 1 << 10, "M": 1 << 20, "m": 1 << 20, "G": 1 << 30}
_MODES: Final = {
    Kind.FILE: "-", Kind.DIRECTORY: "d", Kind.LINK: "l",
    Kind.CHARACTER: "c", Kind.BLOCK: "b", Kind.FIFO: "p",
}  # fmt: skip


class NotPlayed(Exception):  # noqa: N818 - names what is missing
    """The model has no such program or option."""


def say(sink: Sink, text: str) -> None:
    """Write a line."""
    sink.write(text.encode() + b"\n")


def _flags(arguments: list[str], known: str) -> tuple[set[str], list[str]]:
    """Return one-letter flags and the rest. Raises NotPlayed for an unknown one."""
    flags: set[str] = set()
    rest: list[str] = []
    for argument in arguments:
        if argument == "--":
            continue
        if argument.startswith("-") and len(argument) > 1:
            for letter in argument[1:]:
                if letter not in known:
                    raise NotPlayed(f"option -{letter}")
                flags.add(letter)
        else:
            rest.append(argument)
    return flags, rest


def _complain(process: Process, name: str, error: OSError, path: str = "") -> int:
    say(process.streams.stderr, f"{name}: {path or error.filename}: {error.strerror}")
    return 1


def _echo(process: Process, arguments: list[str]) -> int:
    newline = True
    while arguments and arguments[0] in ("-n", "-e"):
        newline = newline and arguments.pop(0) != "-n"
    process.streams.stdout.write((" ".join(arguments) + ("\n" if newline else "")).encode())
    return 0


def _printf(process: Process, arguments: list[str]) -> int:
    text, *values = arguments
    for value in values:
        text = re.sub(r"%[sd]", lambda _, value=value: value, text, count=1)  # type: ignore[misc]
    process.streams.stdout.write(text.replace("\\n", "\n").encode())
    return 0


def _cat(process: Process, arguments: list[str]) -> int:
    code = 0
    for path in arguments or ["-"]:
        if path == "-":
            while data := process.streams.stdin.read():
                process.streams.stdout.write(data)
            continue
        try:
            with process.lock:
                data = process.namespace.read(path, cwd=process.cwd)
            process.streams.stdout.write(data)
        except OSError as error:
            code = _complain(process, "cat", error, path)
    return code


def _ls(process: Process, arguments: list[str]) -> int:
    flags, paths = _flags(arguments, "la1d")
    code = 0
    for path in paths or ["."]:
        try:
            with process.lock:
                node = process.namespace.need(path, cwd=process.cwd)
                names = [path]
                if node.kind is Kind.DIRECTORY and "d" not in flags:
                    names = process.namespace.names(path, cwd=process.cwd)
        except OSError as error:
            code = _complain(process, "ls", error, path)
            continue
        for name in names:
            if not name.startswith(".") or "a" in flags:
                say(process.streams.stdout, _long(process, path, name) if "l" in flags else name)
    return code


def _long(process: Process, path: str, name: str) -> str:
    full = name if name == path else os.path.join(path, name)
    node = process.namespace.need(full, cwd=process.cwd, follow=False)
    target = f" -> {node.target}" if node.kind is Kind.LINK else ""
    return f"{_MODES[node.kind]} {node.mode:04o} {node.size} {name}{target}"


def _df(process: Process, arguments: list[str]) -> int:
    flags, paths = _flags(arguments, "kiP")
    stdout = process.streams.stdout
    unit = "Inodes" if "i" in flags else "1K-blocks"
    say(stdout, f"Filesystem {unit} Used Available Use% Mounted on")
    for path in paths or ["/"]:
        with process.lock:
            mount, usage = process.namespace.usage(path, cwd=process.cwd)
        if "i" in flags:
            total, free = usage.inodes, usage.free_inodes
            used = total - free
        else:
            size = BLOCK // 1024
            total, free = usage.blocks * size, usage.available_blocks * size
            used = (usage.blocks - usage.free_blocks) * size
        share = -(-100 * used // (used + free)) if used + free else 0
        say(stdout, f"{mount.source} {total} {used} {free} {share}% {mount.target}")
    return 0


def _dd(process: Process, arguments: list[str]) -> int:
    options = dict(argument.split("=", 1) for argument in arguments)
    if unknown := options.keys() - {"if", "of", "bs", "count", "conv", "seek"}:
        raise NotPlayed(f"operand {min(unknown)}")
    unit = _size(options.get("bs", "512"))
    limit = unit * int(options["count"]) if "count" in options else None
    source, target = options.get("if"), options.get("of")
    if source == "/dev/zero" and target and limit is not None and "seek" not in options:
        return _zeros(process, target, limit, unit, sync="fsync" in options.get("conv", ""))
    with process.lock:
        try:
            if source is None:
                data = b""
                while part := process.streams.stdin.read():
                    data += part
            else:
                data = process.namespace.read(source, cwd=process.cwd)
            data = data if limit is None else data[:limit]
            if target is None:
                process.streams.stdout.write(data)
            else:
                process.namespace.write(target, data, cwd=process.cwd)
        except OSError as error:
            return _complain(process, "dd", error)
    if "fsync" in options.get("conv", ""):
        process.namespace.sync()
    say(process.streams.stderr, f"{len(data)} bytes copied")
    return 0


def _zeros(process: Process, target: str, size: int, unit: int, *, sync: bool) -> int:
    code = 0
    with process.lock:
        try:
            process.namespace.reserve(target, 0, cwd=process.cwd)
            process.namespace.reserve(target, size, cwd=process.cwd)
        except OSError as error:
            if error.errno == errno.ENOSPC:  # what fits is written before the write that fails
                _, usage = process.namespace.usage(target, cwd=process.cwd)
                size = usage.free_blocks * BLOCK // unit * unit
                process.namespace.reserve(target, size, cwd=process.cwd)
            code = _complain(process, "dd", error, "error writing '" + target + "'")
        if sync:
            process.namespace.sync()
    say(process.streams.stderr, f"{size} bytes copied")
    return code


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kKMmG]?)", text)
    if match is None:
        raise NotPlayed(f"size {text}")
    return int(match[1]) * _SIZES[match[2]]


def _fallocate(process: Process, arguments: list[str]) -> int:
    if arguments[0] != "-l":
        raise NotPlayed(f"option {arguments[0]}")
    try:
        with process.lock:
            process.namespace.reserve(arguments[2], _size(arguments[1]), cwd=process.cwd)
    except OSError as error:
        return _complain(process, "fallocate", error, arguments[2])
    return 0


def _sync(process: Process, _: list[str]) -> int:
    with process.lock:
        process.namespace.sync()
    return 0


def _sleep(process: Process, arguments: list[str]) -> int:
    process.pause(float(arguments[0]))
    return 0


def _rm(process: Process, arguments: list[str]) -> int:
    flags, paths = _flags(arguments, "rf")
    code = 0
    for path in paths:
        try:
            with process.lock:
                node = process.namespace.need(path, cwd=process.cwd, follow=False)
                if node.kind is Kind.DIRECTORY and "r" not in flags:
                    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
                process.namespace.remove(path, cwd=process.cwd)
        except OSError as error:
            if error.errno != errno.ENOENT or "f" not in flags:
                code = _complain(process, "rm", error, path)
    return code


def _mkdir(process: Process, arguments: list[str]) -> int:
    flags, paths = _flags(arguments, "p")
    code = 0
    for path in paths:
        try:
            with process.lock:
                at = process.namespace.resolve(path, cwd=process.cwd)
                parts = at.split("/")
                made = ["/".join(parts[: n + 1]) for n in range(1, len(parts))]
                for each in made if "p" in flags else [at]:
                    if "p" not in flags or process.namespace.find(each) is None:
                        process.namespace.make_directory(each)
        except OSError as error:
            code = _complain(process, "mkdir", error, path)
    return code


def _touch(process: Process, arguments: list[str]) -> int:
    _, paths = _flags(arguments, "")
    for path in paths:
        try:
            with process.lock:
                process.namespace.write(path, b"", cwd=process.cwd, append=True)
        except OSError as error:
            return _complain(process, "touch", error, path)
    return 0


def _ln(process: Process, arguments: list[str]) -> int:
    flags, paths = _flags(arguments, "s")
    if "s" not in flags:
        raise NotPlayed("hard links")
    target, path = paths
    with process.lock:
        at = process.namespace.resolve(path, cwd=process.cwd, follow=False)
        process.namespace.put(at, Node(Kind.LINK, 0o777, target=target))
    return 0


def _seq(process: Process, arguments: list[str]) -> int:
    numbers = [int(argument) for argument in arguments]
    first, last = (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[-1])
    process.streams.stdout.write(
        "".join(f"{number}\n" for number in range(first, last + 1)).encode()
    )
    return 0


def _test(process: Process, arguments: list[str]) -> int:
    words = [word for word in arguments if word != "]"]
    negated = bool(words) and words[0] == "!"
    if negated:
        words = words[1:]
    return int(_holds(process, words) == negated)


def _holds(process: Process, words: list[str]) -> bool:
    match words:
        case []:
            return False
        case [text]:
            return bool(text)
        case ["-n", text]:
            return bool(text)
        case ["-z", text]:
            return not text
        case [("-e" | "-f" | "-d" | "-s" | "-L" | "-b" | "-c") as test, path]:
            with process.lock:
                node = process.namespace.find(path, cwd=process.cwd, follow=test != "-L")
            kinds = {"-f": Kind.FILE, "-d": Kind.DIRECTORY, "-L": Kind.LINK}
            kinds |= {"-b": Kind.BLOCK, "-c": Kind.CHARACTER}
            if node is None or (test in kinds and node.kind is not kinds[test]):
                return False
            return test != "-s" or node.size > 0
        case [left, "=", right]:
            return left == right
        case [left, "!=", right]:
            return left != right
        case [left, ("-eq" | "-ne" | "-lt" | "-le" | "-gt" | "-ge") as operator, right]:
            a, b = int(left), int(right)
            return {
                "-eq": a == b, "-ne": a != b, "-lt": a < b,
                "-le": a <= b, "-gt": a > b, "-ge": a >= b,
            }[operator]  # fmt: skip
    raise NotPlayed(f"test {' '.join(words)}")


def _wc(process: Process, arguments: list[str]) -> int:
    flags, paths = _flags(arguments, "lc")
    if paths:
        with process.lock:
            data = process.namespace.read(paths[0], cwd=process.cwd)
    else:
        data = b""
        while part := process.streams.stdin.read():
            data += part
    say(process.streams.stdout, str(data.count(b"\n") if "l" in flags else len(data)))
    return 0


def _hostname(process: Process, _: list[str]) -> int:
    say(process.streams.stdout, process.env.get("HOSTNAME", "model"))
    return 0


APPLETS: Final[dict[str, Applet]] = {
    "[": _test,
    "cat": _cat,
    "dd": _dd,
    "df": _df,
    "echo": _echo,
    "fallocate": _fallocate,
    "false": lambda _, __: 1,
    "hostname": _hostname,
    "ln": _ln,
    "ls": _ls,
    "mkdir": _mkdir,
    "printf": _printf,
    "rm": _rm,
    "seq": _seq,
    "sleep": _sleep,
    "sync": _sync,
    "test": _test,
    "touch": _touch,
    "true": lambda _, __: 0,
    "wc": _wc,
}
