"""The program that runs in the guest: which of this project's sources, and what they import."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import harness
from harness.errors import ImageBuildError
from harness.image.imports import Imported, imports

_SHARED = ("__init__.py", "gcs/__init__.py", "gcs/prot.py", "gcs/codec.py", "gcs/mux.py")
_AGENT = "guest"
_STANDINS = "image/standins"
_TOP_PACKAGE = "harness"
_MAIN = "harness/guest/__main__.py"


@dataclass(frozen=True, slots=True)
class GuestSources:
    """Python sources by path below the guest's program folder, for example `harness/guest/os.py`.

    They must hold `harness/guest/__main__.py`, which the guest starts as `python -m harness.guest`:
    raises ImageBuildError otherwise.
    """

    files: Mapping[str, bytes]

    def __post_init__(self) -> None:
        if _MAIN not in self.files:
            raise ImageBuildError(f"the guest sources lack {_MAIN}, which the guest starts")

    @classmethod
    def of_this_package(cls) -> GuestSources:
        """The guest agent as installed here, and the modules it shares with the host."""
        folder = Path(str(harness.__file__)).parent
        agent = sorted(path.relative_to(folder) for path in (folder / _AGENT).rglob("*.py"))
        paths = [*(Path(name) for name in _SHARED if (folder / name).is_file()), *agent]
        files = {f"{_TOP_PACKAGE}/{path.as_posix()}": _text(folder / path) for path in paths}
        # The program's folder comes before the standard library's.
        for standin in sorted((folder / _STANDINS).glob("*_.py")):
            files[f"{standin.stem.removesuffix('_')}.py"] = _text(standin)
        return cls(files)

    def digest(self) -> str:
        """A SHA-256 over all paths and contents."""
        return _digest(self.files)

    def standard_modules(self) -> list[Imported]:
        """Modules from outside that these sources may import. Raises ImageBuildError.

        `__future__` is one of them: it is really imported.
        """
        found: dict[Imported, None] = {}
        for path, source in self.files.items():
            parts = path.removesuffix(".py").split("/")
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            try:
                imported = imports(source, module=module, is_package=is_package)
            except SyntaxError as error:
                raise ImageBuildError(f"guest source {path}: {error}") from error
            for item in imported:
                if item.name.partition(".")[0] != _TOP_PACKAGE:
                    found[item] = None
        return list(found)


def builder_digest() -> str:
    """A SHA-256 over the sources of the image builder itself: its version, never forgotten."""
    folder = Path(__file__).parent
    return _digest({path.name: _text(path) for path in sorted(folder.glob("*.py"))})


def _digest(files: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for path, content in sorted(files.items()):
        total.update(f"{path}\0{len(content)}\0".encode() + content)
    return total.hexdigest()


def _text(path: Path) -> bytes:
    return path.read_bytes().replace(b"\r\n", b"\n")  # the same key for a Windows checkout
