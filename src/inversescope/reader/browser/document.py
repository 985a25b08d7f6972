"""The page: its parts, which lie beside this file, in one document that runs only its own script and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path
from string import Template

from inversescope import __version__
from inversescope.reader.browser.data import BrowserData
from inversescope.reader.browser.encode import LIMIT, encode

#: The parts of the script, in this order.
SCRIPTS = ("data", "model", "map", "panel", "main")


def page(data: BrowserData, limit: int = LIMIT) -> str:
    """The page of a study or of a reading.

    Args:
        limit: bytes at most. As many samples are stored as fit; the page says how many.
    """
    style, script = _part("css"), "\n".join(_part(f"{name}.js") for name in SCRIPTS)
    values = {
        "title": escape(data.title),
        "version": escape(__version__),
        "policy": _policy(style, script),
        "style": style,
        "script": script,
    }
    template = Template(_part("html"))
    empty = template.substitute(values, data="")
    return template.substitute(values, data=encode(data, limit - len(empty.encode())))


def _part(suffix: str) -> str:
    return Path(__file__).with_suffix(f".{suffix}").read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """What the browser lets the page do: run this script and apply this style, nothing else, and make no markup from text."""
    style, script = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)
    )
    return (
        f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
