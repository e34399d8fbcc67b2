"""Markdown for docs/generate.py: docstrings turned into it, tables, and parts of a page replaced."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from thrifty.errors import ThriftyError

_CODE = re.compile(r"(``.+?``|`[^`]+`)")
_ITEM = re.compile(r"^- ", re.MULTILINE)
_OPTION = re.compile(r"(?P<name>\w+): (?P<text>.*)")


def markdown(text: str) -> str:
    """Turn the prose of a docstring into Markdown: code stays code, all else is plain text.

    Args:
        text: one paragraph; line breaks become blanks.
    """
    parts = _CODE.split(" ".join(text.split()))
    return "".join(
        f"`{part.strip('`')}`" if i % 2 else part.replace("<", "&lt;").replace("*", "\\*")
        for i, part in enumerate(parts)
    )


def cell(text: str) -> str:
    """Return what may stand in a cell of a table: one line, its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Return a code span, whatever backticks the text holds."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    blank = " " if fence != "`" else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose cells are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell(value) for value in line)} |" for line in lines)


def replace_between(text: str, name: str, content: str) -> str:
    """Return a page with new content between its markers.

    Args:
        text: the page.
        name: of the markers ``<!-- name:begin -->`` and ``<!-- name:end -->``.
        content: what is to stand between them.

    Raises:
        ThriftyError: the page does not hold both markers, once each and in order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ThriftyError(f"the page needs one {begin} and one {end} below it")
    return f"{text[: text.index(begin)]}{begin}\n\n{content}\n\n{text[text.index(end) :]}"


def read_docstring(text: str) -> tuple[str, list[str], dict[str, str]]:
    """Take the docstring of a method apart.

    Args:
        text: cleaned of its indentation.

    Returns:
        The summary, the paragraphs and lists that follow, and what it says of each option, all as Markdown.
    """
    described, _, listed = text.partition("\nAttributes:\n")
    summary, *rest = re.split(r"\n\s*\n", described.strip())
    options: dict[str, str] = {}
    name = ""
    for line in listed.splitlines():
        found = _OPTION.fullmatch(line[4:]) if line.startswith("    ") and line[4:5].strip() else None
        if found:
            name = found["name"]
            options[name] = found["text"]
        elif name:
            options[name] += f" {line.strip()}"
    return markdown(summary), [_linked(_block(block)) for block in rest], {k: markdown(v) for k, v in options.items()}


def _block(text: str) -> str:
    """Return a block of a docstring as Markdown: a paragraph, or a list and what introduces it."""
    lead, *items = (markdown(part) for part in _ITEM.split(text))
    listed = "\n".join(f"- {item}" for item in items)
    return "\n\n".join(filter(None, (lead, listed)))


def _linked(text: str) -> str:
    return re.sub(r"\barXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
