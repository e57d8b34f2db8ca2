"""The code blocks of a page of the book, as a reader sees them: under which heading, before and after.

Owns: reading pages. A block of the language `diff` shows a file twice: lines with `-` are before, lines with `+` after,
and all others both. A first line such as `# Dockerfile` names the file. Refuses: to run anything; tests/docker/run.py
imports this module too, so it needs nothing but Python.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Block:
    heading: str
    language: str
    text: str

    @property
    def before(self) -> str:
        return self._without("+")

    @property
    def after(self) -> str:
        return self._without("-")

    @property
    def name(self) -> str:
        """The name of the file that is shown, or an empty text."""
        first = self.text.splitlines()[0]
        return first.lstrip(" #") if re.fullmatch(r" ?# [\w.]+", first) else ""

    def _without(self, sign: str) -> str:
        if self.language != "diff":
            return self.text
        return "".join(f"{line[1:]}\n" for line in self.text.splitlines() if not line.startswith(sign))


def blocks(page: str) -> list[Block]:
    """Returns every code block of docs/guides/PAGE."""
    found, heading, inside = [], "", None
    for line in (ROOT / "docs/guides" / page).read_text().splitlines():
        if line.startswith("```"):
            if inside is None:
                inside = (line[3:], [])
            else:
                found.append(Block(heading, inside[0], "".join(f"{text}\n" for text in inside[1])))
                inside = None
        elif inside is not None:
            inside[1].append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ").replace("`", "")
    return found


def block(page: str, heading: str, name: str) -> Block:
    """Returns the block under this heading that shows this file."""
    (found,) = (one for one in blocks(page) if one.heading == heading and one.name == name)
    return found
