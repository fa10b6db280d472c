"""Documents that are nearly the same must not lie on both sides of a split: what is measured on held-out text
would have been seen."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from tritpress.text.documents import Document

KEEPS = ("held_out", "validation", "calibration", "fine_tuning")
"""Of two near duplicates in different parts, the one in the part that stands first here is kept."""
SHARED = 0.6
"""Share of the shorter document's characters, in lines that both have, from which two are near duplicates."""
LEAST_LINE = 16
"""Shorter lines (brackets, headings, blank ones) say nothing about where a text is from."""
FEW_TELLING = 0.25
"""Below this share of a text's characters in longer lines its short ones tell with those that follow them."""

COMMON = 64


def drop_near_duplicates(parts: dict[str, list[Document]]) -> tuple[dict[str, list[Document]], list[str]]:
    """(the parts without near duplicates of a document in another part, names of what was left out).

    Lines are compared by the hash of what is left after case and white space are evened out. A line that more
    than `COMMON` kept documents have (a licence, a header) is compared with the first of them alone.
    """
    lines = {d.name: _lines(d.text) for part in KEEPS for d in parts[part]}
    sizes = {name: sum(found.values()) for name, found in lines.items()}
    seen: dict[bytes, list[str]] = {}  # line -> documents of the parts before
    kept: dict[str, list[Document]] = {}
    dropped: list[str] = []
    for part in KEEPS:
        kept[part] = []
        for document in parts[part]:
            if _is_near(document.name, lines, sizes, seen):
                dropped.append(document.name)
            else:
                kept[part].append(document)
        for document in kept[part]:
            for line in lines[document.name]:
                have = seen.setdefault(line, [])
                if len(have) < COMMON:
                    have.append(document.name)
    return {part: kept[part] for part in parts}, sorted(dropped)


def _is_near(
    name: str, lines: dict[str, Counter[bytes]], sizes: dict[str, int], seen: Mapping[bytes, Sequence[str]]
) -> bool:
    shared: Counter[str] = Counter()
    for line, characters in lines[name].items():
        for other in seen.get(line, ()):
            shared[other] += min(characters, lines[other][line])
    return any(count >= SHARED * min(sizes[name], sizes[other]) for other, count in shared.items())


def _lines(text: str) -> Counter[bytes]:
    """Hash of each telling line -> characters that such lines have in the text.

    In a text of short lines (verse, word lists, numbers) a line tells together with those after it, as many
    as it takes to be long enough; it counts for its own characters.
    """
    found: Counter[bytes] = Counter()
    plain = [" ".join(line.lower().split()) for line in text.splitlines()]
    long = [line for line in plain if len(line) >= LEAST_LINE]
    for line in long:
        found[_hash(line)] += len(line)
    if sum(map(len, long)) < FEW_TELLING * sum(map(len, plain)):
        short = [line for line in plain if line]
        for at, line in enumerate(short):
            if len(line) < LEAST_LINE:
                together = _together(short, at)
                if len(together) >= LEAST_LINE:
                    found[_hash(together)] += len(line)
    return found


def _together(lines: Sequence[str], at: int) -> str:
    """The line and as many after it as make it long enough to tell."""
    together = lines[at]
    for line in lines[at + 1 : at + LEAST_LINE]:
        if len(together) >= LEAST_LINE:
            break
        together += "\n" + line
    return together


def _hash(line: str) -> bytes:
    return hashlib.blake2b(line.encode("utf-8", "surrogatepass"), digest_size=12).digest()
