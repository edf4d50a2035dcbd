"""Blocks of memory that pile up and go, and what a process holds of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Blocks = Iterable[tuple[float, float]]
"""(bytes of one block, how many of them)."""


@dataclass(slots=True, kw_only=True)
class Pile:
    """Bytes that exist now, and the most of them so far; blocks that go back to the system at once are counted apart."""

    returned_from: float
    """Bytes from which a freed block goes back; smaller ones stay with the process for its next ones."""
    large: float = 0.0
    small: float = 0.0
    most_large: float = 0.0
    most_small: float = 0.0

    def add(self, blocks: Blocks) -> None:
        """Put blocks on the pile."""
        for size, count in blocks:
            if size >= self.returned_from:
                self.large += size * count
            else:
                self.small += size * count
        self.most_large, self.most_small = max(self.most_large, self.large), max(self.most_small, self.small)

    def drop(self, blocks: Blocks) -> None:
        """Take blocks away again."""
        self.add((size, -count) for size, count in blocks)

    def touch(self, *blocks: tuple[float, float]) -> None:
        """Blocks that exist at once for a moment."""
        self.add(blocks)
        self.drop(blocks)

    def most(self, spread: float) -> float:
        """Bytes that the process held at most: of small blocks ``spread`` times what they took, for their gaps.

        Both kinds are taken at their own highest, for the process keeps the space of small blocks between them.
        """
        return self.most_large + spread * self.most_small
