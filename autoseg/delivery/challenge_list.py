"""The list of challenges that predictions can be packed for; apart from packing, so that it is told at once."""

from __future__ import annotations

from autoseg.wording import count_noun, format_duration
from datasets_spec import load_challenges


def list_challenges() -> str:
    """All challenges with what they limit and how sure their facts are, one a line."""
    lines = []
    for each in load_challenges():
        limits = each.limits
        words = [] if each.year is None or f"{each.year}"[2:] in each.title else [str(each.year)]
        if limits.uploads is not None:
            days = "a day" if limits.days == 1 else f"in {limits.days} days"
            words.append(f"{count_noun(limits.uploads, 'upload')} {days}")
        if limits.in_all is not None:
            words.append(f"{count_noun(limits.in_all, 'upload')} in all")
        if limits.memory_gb is not None:
            words.append(f"containers of {limits.memory_gb:g} GB")
        if limits.case_s is not None:
            words.append(f"{format_duration(limits.case_s)} a case")
        counts = [part.count for part in each.parts.values()]
        if all(count is not None for count in counts):
            words.append(count_noun(sum(filter(None, counts)), "case"))
        if doubtful := each.unconfirmed("package", "parts", "upload"):
            words.append(f"not confirmed: {', '.join(doubtful)}")
        lines.append(f"{each.name:20} {each.title}" + (f" ({'; '.join(words)})" if words else ""))
    return "\n".join(lines)
