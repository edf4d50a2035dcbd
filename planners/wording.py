"""How numbers appear in the reasons that decisions give."""

from __future__ import annotations

from collections.abc import Sequence


def voxels(shape: Sequence[float]) -> str:
    """A shape as ``40 x 56 x 40``; halves are kept."""
    return " x ".join(f"{size:.10g}" for size in shape)


def millimetres(spacing_mm: Sequence[float]) -> str:
    """A spacing as ``2.5 x 0.8 x 0.8 mm``, four significant digits."""
    return " x ".join(f"{size:.4g}" for size in spacing_mm) + " mm"


def amount(number: float) -> str:
    """A large number in words: ``560 million``, ``19.2 million``, ``2.1 billion``."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if abs(number) >= size:
            return f"{number / size:.3g} {name}" if abs(number) < 999.5 * size else f"{number / size:.0f} {name}"
    return f"{number:.6g}"


def gigabytes(size: float) -> str:
    """Bytes as ``2.1 GB``."""
    return f"{size / 1e9:.1f} GB"


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 case``, ``3 cases``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(words: Sequence[str]) -> str:
    """Words as a list: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
