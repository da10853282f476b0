"""`dataclasses` for the guest: records without generated code.

Same results as the standard module for what is here; `slots` changes nothing.
"""

# mypy: ignore-errors

from __future__ import annotations

MISSING = object()


class FrozenInstanceError(AttributeError):
    """A field of a frozen record was assigned to."""


class Field:
    """One field: its name, default and metadata."""

    __slots__ = ("default", "default_factory", "metadata", "name")

    def __init__(self, default, default_factory, metadata):
        self.name = ""
        self.default = default
        self.default_factory = default_factory
        self.metadata = metadata or {}


def field(*, default=MISSING, default_factory=MISSING, metadata=None):
    """Return what a class body assigns to a field with a default or metadata."""
    return Field(default, default_factory, metadata)


def fields(record):
    """Return the fields of a record or its class."""
    try:
        return tuple(record.__dataclass_fields__.values())
    except AttributeError:
        raise TypeError(f"{record!r} is no dataclass") from None


def is_dataclass(value):
    """Whether a value is a record or the class of one."""
    return hasattr(value, "__dataclass_fields__")


def replace(record, /, **changes):
    """Return a record of the same class with other values."""
    values = {name: getattr(record, name) for name in record.__dataclass_fields__}
    return record.__class__(**{**values, **changes})


def dataclass(cls=None, /, *, frozen=False, eq=True, slots=False):
    """Make a class a record of its annotated names."""

    def wrap(cls):
        found = {}
        for base in reversed(cls.__mro__[1:]):
            found.update(getattr(base, "__dataclass_fields__", {}))
        for name, annotation in cls.__annotations__.items():
            if "ClassVar" in str(annotation):
                continue
            given = cls.__dict__.get(name, MISSING)
            made = given if isinstance(given, Field) else Field(given, MISSING, None)
            made.name = name
            found[name] = made
            if made.default is not MISSING:
                setattr(cls, name, made.default)
            elif name in cls.__dict__:
                delattr(cls, name)
        cls.__dataclass_fields__ = found
        cls.__match_args__ = tuple(found)
        if "__init__" not in cls.__dict__:
            cls.__init__ = _init
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = _repr
        if eq:
            cls.__eq__ = _eq
            cls.__hash__ = _hash if frozen else None
        if frozen:
            cls.__setattr__ = _refuse_set
            cls.__delattr__ = _refuse_delete
        return cls

    return wrap if cls is None else wrap(cls)


def _init(self, *args, **kwargs):
    found = self.__dataclass_fields__
    if len(args) > len(found):
        raise TypeError(f"{self.__class__.__name__} takes {len(found)} values, not {len(args)}")
    values = dict(zip(found, args, strict=False))
    for name, value in kwargs.items():
        if name in values or name not in found:
            raise TypeError(f"{self.__class__.__name__}: unexpected or repeated {name!r}")
        values[name] = value
    if len(values) < len(found):
        for name, item in found.items():
            if name in values:
                continue
            if item.default is not MISSING:
                values[name] = item.default
            elif item.default_factory is not MISSING:
                values[name] = item.default_factory()
            else:
                raise TypeError(f"{self.__class__.__name__}: missing {name!r}")
    self.__dict__.update(values)
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _values(record):
    return tuple(getattr(record, name) for name in record.__dataclass_fields__)


def _repr(self):
    inner = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__dataclass_fields__)
    return f"{self.__class__.__qualname__}({inner})"


def _eq(self, other):
    if other.__class__ is not self.__class__:
        return NotImplemented
    return _values(self) == _values(other)


def _hash(self):
    return hash(_values(self))


def _refuse_set(self, name, _value):
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(self, name):
    raise FrozenInstanceError(f"cannot delete field {name!r}")
