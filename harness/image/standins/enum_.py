"""`enum` for the guest: plain enumerations; for what else there is, the original is loaded."""

# mypy: ignore-errors

from __future__ import annotations


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    from originals import original

    return getattr(original("enum"), name)


class EnumType(type):
    """Makes a member of each value in a class body."""

    def __new__(cls, name, bases, body):
        """Return the enumeration; a value that comes twice is one member of two names."""
        values = {
            key: value
            for key, value in body.items()
            if not key.startswith("_") and not hasattr(value, "__get__")
        }
        rest = {key: value for key, value in body.items() if key not in values}
        made = super().__new__(cls, name, bases, rest)
        made._member_map_, made._value2member_map_ = {}, {}
        for key, value in values.items():
            member = made._value2member_map_.get(value)
            if member is None:
                member = made._new_member(value)
                member._name_, member._value_ = key, value
                made._value2member_map_[value] = member
            made._member_map_[key] = member
            setattr(made, key, member)
        return made

    def __call__(cls, value):
        """Return the member of a value. Raises ValueError."""
        try:
            return cls._value2member_map_[value]
        except KeyError:
            raise ValueError(f"{value!r} is not a valid {cls.__qualname__}") from None

    def __iter__(cls):
        return iter(cls._value2member_map_.values())

    def __len__(cls):
        return len(cls._value2member_map_)

    def __contains__(cls, item):
        return isinstance(item, cls)

    def __getitem__(cls, name):
        return cls._member_map_[name]

    def __getattr__(cls, name):
        """Give what makes an enumeration of a module's constants: `signal` and `socket` do that."""
        if name == "_convert_":
            return getattr(__getattr__(cls.__name__), name)
        raise AttributeError(name)


EnumMeta = EnumType


class Enum(metaclass=EnumType):
    """Members that are themselves alone."""

    @classmethod
    def _new_member(cls, _value):
        return object.__new__(cls)

    @property
    def name(self):
        """Its name in the class."""
        return self._name_

    @property
    def value(self):
        """What it stands for."""
        return self._value_

    def __hash__(self):
        return hash(self._name_)

    def __repr__(self):
        return f"<{self.__class__.__name__}.{self._name_}: {self._value_!r}>"

    def __str__(self):
        return f"{self.__class__.__name__}.{self._name_}"


class IntEnum(int, Enum):
    """Members that are numbers."""

    __hash__ = int.__hash__
    __repr__ = Enum.__repr__
    __str__ = int.__repr__
    __format__ = int.__format__

    @classmethod
    def _new_member(cls, value):
        return int.__new__(cls, value)


class StrEnum(str, Enum):
    """Members that are text."""

    __hash__ = str.__hash__
    __repr__ = Enum.__repr__
    __str__ = str.__str__
    __format__ = str.__format__

    @classmethod
    def _new_member(cls, value):
        return str.__new__(cls, value)
