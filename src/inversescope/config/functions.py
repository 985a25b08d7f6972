"""The grammar of label functions: functions of a prompt's raw text by name, such as `twice(capital)` or `after('a', -1)`.

A text that holds a space is cut into words and punctuation marks, any other text into its characters; both are called words here.
A class says which words are meant: `any`, `capital` (capitalised, but not the first word of the text), `number`, or a list of words
such as `['cat', 'dog']`. Places count from 0, or from the end: -1 is the last. What has no arguments is written without brackets.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import NamedTuple

from inversescope.errors import InputError


class Kind(NamedTuple):
    """What a name of the grammar gives, what it takes, how much of that is necessary, and what it says in English."""

    gives: str
    takes: tuple[str, ...]
    needs: int
    means: str


#: Name -> what it is. `classes` stands for one class or more.
KINDS: dict[str, Kind] = {
    "any": Kind("class", (), 0, "word"),
    "capital": Kind("class", (), 0, "capitalised word"),
    "number": Kind("class", (), 0, "number"),
    "word": Kind("word", ("place", "class"), 1, "{1}, the {0}"),
    "after": Kind("word", ("text", "place"), 1, "word after {0}, the {1}"),
    "before": Kind("word", ("text", "place"), 1, "word before {0}, the {1}"),
    "twice": Kind("word", ("class",), 0, "{0} that occurs twice"),
    "once": Kind("word", ("place", "class"), 0, "{1} that occurs once, the {0}"),
    "slot": Kind("word", ("text",), 1, "slot {0}"),
    "which_twice": Kind("label", ("class",), 0, "which {0} occurs twice: the first, the second, ..."),
    "which": Kind("label", ("classes",), 1, "which of these occurs: {0}"),
    "count": Kind("label", ("word",), 1, "number of times that this occurs: {0}"),
    "how_many": Kind("label", ("class",), 0, "number of times of {0}"),
    "distinct": Kind("label", ("class",), 0, "number of different ones of {0}"),
    "has": Kind("label", ("text",), 1, "whether {0} occurs"),
    "skeleton": Kind("label", ("classes",), 1, "text without {0}"),
    "same": Kind("label", ("word", "word"), 2, "whether these are the same: {0}; {1}"),
    "compare": Kind("label", ("word", "word"), 2, "which is larger, by number or alphabet: {0}; {1}"),
}
_ASKED = {
    "place": "a whole number",
    "text": "a word in quotes",
    "class": "a class",
    "word": "a function that gives a word",
}
_PLACES = {0: "first", 1: "second", 2: "third", -1: "last", -2: "last but one"}


@dataclass(frozen=True)
class Function:
    """A function of the grammar: a name, and whole numbers, words, lists of words (as tuples) or functions as arguments.

    Arguments that may be left out are filled in, so equal functions are equal. `str` writes one, `parse` reads it.

    Raises:
        InputError: the grammar has no such function, or its arguments are of other kinds.
    """

    name: str
    arguments: tuple[int | str | tuple[str, ...] | Function, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise InputError(f"no label function is called '{self.name}'", f"use one of {', '.join(KINDS)}")
        takes, given = self.takes, list(self.arguments)
        if not KINDS[self.name].needs <= len(given) <= len(takes):
            wanted = ", ".join(_ASKED[kind] for kind in takes) or "nothing"
            raise InputError(f"label function '{self.name}' has {len(given)} arguments", f"it takes {wanted}")
        given += [0 if kind == "place" else Function("any") for kind in takes[len(given) :]]
        for kind, argument in zip(takes, given, strict=True):
            if not _is(kind, argument):
                raise InputError(
                    f"label function '{self.name}' takes no {argument!s}", f"give it {_ASKED[kind]}"
                )
        object.__setattr__(self, "arguments", tuple(given))

    @property
    def takes(self) -> tuple[str, ...]:
        """Kinds of its arguments."""
        takes = KINDS[self.name].takes
        return ("class",) * max(1, len(self.arguments)) if takes == ("classes",) else takes

    def __str__(self) -> str:
        shown = list(self.arguments)
        while len(shown) > KINDS[self.name].needs and shown[-1] in (0, Function("any")):
            shown.pop()
        return f"{self.name}({', '.join(map(_written, shown))})" if shown else self.name

    @property
    def means(self) -> str:
        """The same in English."""
        told = [_told(kind, one) for kind, one in zip(self.takes, self.arguments, strict=True)]
        kind = KINDS[self.name]
        return kind.means.format("; ".join(told)) if kind.takes == ("classes",) else kind.means.format(*told)


def parse_function(text: str) -> Function:
    """Read a function that gives labels as the grammar writes it. Raises `InputError` if it is none, quoting the text."""
    try:
        return read_function(text)
    except InputError as error:
        raise InputError(f"{text!r} is no label function: {error.culprit}", error.remedy) from None


def read_function(text: str) -> Function:
    """The same; the message says why, and does not quote the text."""
    try:
        found = _read(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        found = None
    if not isinstance(found, Function) or KINDS[found.name].gives == "class":
        raise InputError("it has not the form of one", "write one such as twice(capital) or after('a', -1)")
    return found


def is_function(text: str) -> bool:
    """Whether a name is a label function of the grammar."""
    try:
        parse_function(text)
    except InputError:
        return False
    return True


def _read(node: ast.expr) -> int | str | tuple[str, ...] | Function:
    """What a part of an expression stands for. Raises ValueError if it has no place in the grammar."""
    match node:
        case ast.Name(id=name):
            return Function(name)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return Function(name, tuple(map(_read, arguments)))
        case ast.Constant(value=bool()):
            raise ValueError
        case ast.Constant(value=int() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)):
            return -value
        case ast.List(elts=words) if words:
            read = [_read(word) for word in words]
            if all(isinstance(word, str) for word in read):
                return tuple(str(word) for word in read)
    raise ValueError


def _is(kind: str, argument: object) -> bool:
    """Whether an argument is of a kind."""
    if kind == "class":
        listed = isinstance(argument, tuple) and bool(argument)
        return listed or (isinstance(argument, Function) and KINDS[argument.name].gives == "class")
    if kind == "word":
        return isinstance(argument, Function) and KINDS[argument.name].gives == "word"
    return isinstance(argument, int if kind == "place" else str)


def _written(argument: object) -> str:
    """An argument as the grammar writes it."""
    if isinstance(argument, Function):
        return str(argument)
    return repr(list(argument)) if isinstance(argument, tuple) else repr(argument)


def _told(kind: str, argument: object) -> str:
    """An argument in English."""
    if isinstance(argument, Function):
        return argument.means
    if isinstance(argument, tuple):
        return f"word among {', '.join(argument)}"
    if kind == "place":
        assert isinstance(argument, int)
        return _PLACES.get(
            argument, f"number {argument + 1}" if argument >= 0 else f"number {-argument} from the end"
        )
    return f"'{argument}'"
