"""Reading a table somebody wrote by hand: each getter checks one key.

Every error is an ArtifactError that names the file, the key, what was expected and what came.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sfhzoo.errors import ArtifactError

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters and changes of direction: a stranger's card is shown in a terminal."""


@dataclass(frozen=True)
class Fields:
    """A table from the file `where`.

    Messages call a key by its label, or by `root` and the key where it has none.
    """

    content: Mapping[str, Any]
    where: str
    root: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def label(self, key: str) -> str:
        """The key as the file's author knows it."""
        return self.labels.get(key, f"{self.root}{key}")

    def error(self, key: str, expected: str) -> ArtifactError:
        """The error to raise for `key`."""
        value = self.content.get(key)
        got = "nothing" if value is None else repr(value)
        got = got if len(got) <= 80 else f"{got[:77]}..."
        return ArtifactError(f"{self.where}: {self.label(key)}: expected {expected}, got {got}")

    def only(self, known: Collection[str]) -> None:
        """Refuse keys that mean nothing: they are slips of the pen."""
        for key in self.content:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
                raise ArtifactError(f"{self.where}: {self.label(key)}: unknown key; {hint}")

    def maybe_text(self, key: str, expected: str = "text", one_line: bool = False) -> str | None:
        """Printable text without blanks around it, or None."""
        value = self.content.get(key)
        if value is None:
            return None
        text = value.strip() if isinstance(value, str) else ""
        if not text or _UNPRINTABLE.search(text) or (one_line and "\n" in text):
            raise self.error(key, f"{expected}{' in one line' * one_line}, printable")
        return text

    def text(self, key: str, expected: str = "text", one_line: bool = False) -> str:
        """Printable text that must be there."""
        text = self.maybe_text(key, expected, one_line)
        if text is None:
            raise self.error(key, expected)
        return text

    def matching(self, key: str, pattern: re.Pattern[str], expected: str) -> str:
        """Text that matches the whole of `pattern`."""
        value = self.content.get(key)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self.error(key, expected)
        return value

    def texts(self, key: str, expected: str) -> tuple[str, ...]:
        """A list of single-line texts; empty where the key is absent."""
        values = self.content.get(key)
        if values is None:
            return ()
        if not isinstance(values, list) or not all(
            isinstance(v, str) and v and "\n" not in v and not _UNPRINTABLE.search(v)
            for v in values
        ):
            raise self.error(key, expected)
        return tuple(values)

    def maybe_number(self, key: str) -> float | None:
        """A finite number, or None."""
        value = self.content.get(key)
        if value is None:
            return None
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value):
            raise self.error(key, "a finite number")
        return float(value)

    def table(self, key: str, expected: str) -> Fields | None:
        """The table under `key`, or None."""
        value = self.content.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, expected)
        return Fields(value, self.where, f"{self.label(key)}.")
