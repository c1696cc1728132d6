"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, with a line break at its end.

    Args:
      head: the titles of the columns.
      rows: the cells of each row, as text.
    """
    return "\n".join([_line(head), f"|{'---|' * len(head)}", *map(_line, rows)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    # A bar would begin another cell.
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
