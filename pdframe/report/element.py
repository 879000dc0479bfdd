"""HTML that no text can break out of: whatever is not `Markup` already is escaped, attributes too."""

from __future__ import annotations

from html import escape
from typing import Any


class Markup(str):
    """Text that is HTML. Made by the functions below; to make it from anything else is to vouch for it."""


#: Elements without an end.
_VOID = {"br", "col", "hr", "input", "meta"}


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """`tag("td", 3, class_="n")` is `<td class="n">3</td>`. None and False leave an attribute or a child out."""
    told = "".join(_attribute(key, value) for key, value in attributes.items() if value not in (None, False))
    return Markup(f"<{name}{told}>" if name in _VOID else f"<{name}{told}>{join(children)}</{name}>")


def join(children: Any) -> Markup:
    """One after the other; lists and tuples are opened."""
    return Markup("".join(_inside(child) for child in children if child is not None and child is not False))


def _inside(child: Any) -> str:
    if isinstance(child, Markup):
        return child
    return join(child) if isinstance(child, list | tuple) else escape(str(child))


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
