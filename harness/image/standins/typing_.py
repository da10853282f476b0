"""`typing` for the guest: names for annotations, which are never evaluated there."""

# mypy: ignore-errors

from __future__ import annotations

TYPE_CHECKING = False


class _Anything:
    """Stands for every special form; subscripts give itself."""

    def __getitem__(self, _item):
        return self

    def __or__(self, _other):
        return self

    __ror__ = __or__


Any = ClassVar = Final = Self = TypeAlias = _Anything()


class Protocol:
    """A plain base class: nothing is checked at run time."""


def TypeVar(_name, *_bounds, **_options):
    """Return what only a type checker looks at."""
    return Any
