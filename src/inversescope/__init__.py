"""InverseScope: read what a language model's activation encodes by inverting it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: What the package offers to other programs -> its module, imported when it is first asked for.
OFFERED = {
    "open_study": "inversescope.reader.study",
    "Scope": "inversescope.reader.scope",
    "templates": "inversescope.reader.scope",
    "Reading": "inversescope.reader.reading",
    "InputError": "inversescope.errors",
}
__all__ = ["__version__", *OFFERED]


def __getattr__(name: str) -> Any:
    if name not in OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(OFFERED[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *OFFERED])
