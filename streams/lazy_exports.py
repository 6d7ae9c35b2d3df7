"""Public names that a package imports when they are first used: ``streams --help`` needs none.

A type checker reads the imports under ``TYPE_CHECKING`` instead; ``tests/test_exports.py`` compares
both.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import NamedTuple


class LazyExports(NamedTuple):
    """What a package's ``__init__`` assigns to the names that Python looks for (PEP 562)."""

    all: list[str]
    getattr: Callable[[str], object]
    dir: Callable[[], list[str]]


def lazy_exports(
    package: str,
    names: Mapping[str, str],
    *,
    former: Mapping[str, str] | None = None,
    need_extra: bool = False,
) -> LazyExports:
    """``__all__``, ``__getattr__`` and ``__dir__`` of a package.

    :param names: the names that each module has, with blanks between them.
    :param former: former names, which still work, with what they are called now.
    :param need_extra: without its extra a name can be imported, as ``import *`` and what lists a
        module do, and says what it needs where it is used.
    """
    module_of = {name: module for module, listed in names.items() for name in listed.split()}
    exported = sorted(module_of)

    def import_name(name: str) -> object:
        if former is not None and name in former:
            new = former[name]
            warnings.warn(f"{package}.{name} is now {new}", DeprecationWarning, stacklevel=2)
            return getattr(sys.modules[package], new)
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        from streams.errors import ConfigError  # not before anything is used

        try:
            found = getattr(import_module(module_of[name]), name)
        except ConfigError as error:
            if not need_extra:
                raise
            return _missing_extra(package, name, str(error))
        setattr(sys.modules[package], name, found)
        return found

    return LazyExports(exported, import_name, exported.copy)


def _missing_extra(package: str, name: str, why: str) -> type:
    """The replacement of a class whose extra is not installed."""
    from streams.errors import ConfigError

    def refuse(cls: type, *args: object, **options: object) -> object:
        raise ConfigError(why)

    return type(name, (), {"__doc__": why, "__module__": package, "__new__": refuse})
