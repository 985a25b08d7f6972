"""What says the label of a prompt: a regular expression, or a function that the package or the project holds."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import regex

from inversescope.config.tasks import TextFeatureConfig
from inversescope.errors import InputError
from inversescope.tasks.corpus import inside

Labeller = Callable[[str], str | None]


def labeller(name: str, feature: TextFeatureConfig, folder: str | None, root: Path) -> Labeller:
    """What says the label of a prompt: a pattern (None where it finds nothing) or a function."""
    if feature.pattern is not None:
        # Not Python's own expressions, whose words end at a combining mark, as in Hindi, Thai or decomposed French.
        pattern = regex.compile(feature.pattern)
        group: str | int = "label" if "label" in pattern.groupindex else 1

        def found(text: str) -> str | None:
            match = pattern.search(text)
            return None if match is None else match[group]

        return found
    assert feature.function is not None
    function = _function(name, feature.function, folder, root)
    which = f"function {feature.function} of feature '{name}'"

    def said(text: str) -> str:
        try:
            label = function(text)
        except Exception as error:  # whatever a stranger's function raises
            raise InputError(
                f"{which} fails on '{text[:80]}': {type(error).__name__}: {error}", "mend it"
            ) from error
        if not isinstance(label, str):
            raise InputError(f"{which} says {label!r} of '{text[:80]}'", "let it return the label, a string")
        return label

    return said


def _function(feature: str, named: str, folder: str | None, root: Path) -> Callable[[str], Any]:
    """The function `package.module:function` of this package, or of a module in the project's own folder; of no other place.

    Nothing is looked up on Python's path and nothing put there: what is run is this package, or lies in the project. Raises
    `InputError`.
    """
    dotted, name = named.split(":")
    remedy = "name a function of inversescope, or of a module in the folder text.functions, as package.module:function"
    if dotted.split(".")[0] == "inversescope":
        where = f"module {dotted}"
        try:
            module = importlib.import_module(dotted)
        except ImportError as error:
            raise InputError(f"feature '{feature}': {where} cannot be imported ({error})", remedy) from error
    else:
        if folder is None:
            raise InputError(f"feature '{feature}': {named} is not of this package", remedy)
        where = str(Path(folder, *dotted.split(".")).with_suffix(".py"))
        path = inside(root, where, f"function {named} of feature '{feature}':")
        spec = importlib.util.spec_from_file_location(f"inversescope_corpus.{dotted}", path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise InputError(f"feature '{feature}': {where} does not exist", remedy)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # a module of the user's may raise anything
            raise InputError(
                f"feature '{feature}': {where} cannot be run ({type(error).__name__}: {error})", "mend it"
            ) from error
    function = getattr(module, name, None)
    # Its own functions only: what a module imports is not for naming.
    if not inspect.isfunction(function) or function.__module__ != module.__name__:
        raise InputError(f"feature '{feature}': {where} defines no function {name}", remedy)
    return function
