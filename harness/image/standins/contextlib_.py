"""`contextlib` for the guest: for what is not here the original is loaded."""

# mypy: ignore-errors

from __future__ import annotations


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    from originals import original

    return getattr(original("contextlib"), name)


class suppress:  # noqa: N801 - the original's name
    """Ends its block at one of these exceptions, silently."""

    def __init__(self, *kinds):
        self._kinds = kinds

    def __enter__(self):
        pass

    def __exit__(self, kind, error, trace):
        return kind is not None and issubclass(kind, self._kinds)


def contextmanager(function):
    """Make a generator function that yields once a maker of context managers."""

    def make(*args, **kwargs):
        return _Block(function(*args, **kwargs))

    make.__name__, make.__qualname__ = function.__name__, function.__qualname__
    make.__doc__, make.__wrapped__ = function.__doc__, function
    return make


class _Block:
    def __init__(self, generator):
        self._generator = generator

    def __enter__(self):
        for value in self._generator:
            return value
        raise RuntimeError("the generator did not yield")

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                next(self._generator)
            else:
                self._generator.throw(error)
        except StopIteration as end:
            return end is not error
        except BaseException as raised:
            # A generator cannot raise StopIteration: it comes out as the cause of a RuntimeError.
            if raised is error or (isinstance(error, StopIteration) and raised.__cause__ is error):
                return False
            raise
        raise RuntimeError("the generator went on after its block")
