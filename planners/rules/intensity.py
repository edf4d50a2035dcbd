"""How the intensities of each channel are normalised."""

from __future__ import annotations

import re
from collections.abc import Sequence

from planners.decision import Decision, counted, listed
from planners.fingerprint import CtEvidence
from planners.plan import ChannelNormalization, NormalizationScheme

SCHEME_OF_CHANNEL: dict[str, NormalizationScheme] = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}
"""Whole channel name, case-folded; any other name means z-score."""
SAYS_NOTHING = re.compile(r"(?i)(?:channel|image|img|modality|input|scan|volume|data|unknown)?[ _-]*[0-9]*")
"""Channel names that name no modality ..."""
MAY_BE_CT = re.compile(r"(?i)(?<![a-z])(?:cb)?ct(?![a-z])")
"""... or name CT beside something else, as in ``CT or MR``: there the intensities decide."""
MIXED_SHARE = 0.1
"""Of the cases: from so many that are not CT on, a channel is CT and something else, not CT with a few faulty images."""
MASK_BELOW = 0.75
"""Where cropping leaves less of the image than this, the background would dominate mean and standard deviation."""

_WORDS: dict[NormalizationScheme, str] = {
    "ct": "is CT: clipped to the 0.5 and 99.5 percentiles of the dataset's foreground, then z-scored by its mean and deviation",
    "zscore": "is z-scored image by image",
    "none": "is not normalised",
    "rescale_to_0_1": "is rescaled to 0 to 1 image by image",
    "rgb_to_0_1": "is divided by 255",
    "ct_or_zscore": "is CT in some cases only: these are clipped to the 0.5 and 99.5 percentiles of their foreground and z-scored by its "
    "mean and deviation, the others image by image",
}


def normalization_scheme(channel: str, evidence: CtEvidence | None) -> tuple[NormalizationScheme, bool]:
    """Scheme of a channel, and whether its images decided it, by tags or intensities, where the name says nothing else.

    Without ``evidence`` the name decides, as in nnU-Net.
    """
    by_name = SCHEME_OF_CHANNEL.get(channel.casefold())
    may_be_ct = by_name == "ct" or (
        by_name is None and (SAYS_NOTHING.fullmatch(channel) is not None or MAY_BE_CT.search(channel) is not None)
    )
    if evidence is not None and may_be_ct:
        total = evidence.num_ct + evidence.num_other + evidence.num_unclear
        if evidence.num_other_told == total:
            return "zscore", by_name == "ct"
        if not evidence.num_ct:
            return by_name or "zscore", False
        if evidence.num_other_told or evidence.num_other >= MIXED_SHARE * total:
            return "ct_or_zscore", True
        if by_name is None and 2 * evidence.num_ct >= total:
            return "ct", True
    return by_name or "zscore", False


def decide_normalization(
    channels: Sequence[str], median_relative_size: float, evidence: Sequence[CtEvidence] = ()
) -> Decision[tuple[ChannelNormalization, ...]]:
    """Scheme and mask use of each channel (method section 3.11).

    ``median_relative_size`` is the median share of an image, 0 to 1, that cropping to its non-zero box leaves.
    Departure ``intensity.by_content``: by ``evidence``, one entry a channel, channels without a telling name are taken for CT,
    and CT mixed with something else is normalised image by image (decision record 0172).
    """
    masked = median_relative_size < MASK_BELOW
    known: Sequence[CtEvidence | None] = evidence or [None] * len(channels)
    schemes = [normalization_scheme(channel, each) for channel, each in zip(channels, known, strict=True)]
    value = [
        ChannelNormalization(scheme=scheme, use_mask=masked and scheme in ("zscore", "ct_or_zscore"))
        for scheme, _ in schemes
    ]
    named, seen = [], []
    for channel, (scheme, by_content), each in zip(channels, schemes, known, strict=True):
        said = f"{channel!r} {_WORDS[scheme]}"
        if by_content and each is not None:
            total = counted(each.num_ct + each.num_other + each.num_unclear, "case")
            seen.append(f"{said} ({each.num_ct} of {total} are CT by tag, record or air near -1000)")
        else:
            named.append(said)
    parts = [f"by channel name: {listed(named)}"] * bool(named) + [f"by tags and intensities: {listed(seen)}"] * bool(
        seen
    )
    return Decision(
        rule="intensity.by_content" if seen else "intensity.normalization",
        value=tuple(value),
        reason=f"{'; '.join(parts)}; {_mask_words(value, median_relative_size)}",
        source="method 3.11" + (" and decision record 0172" if seen else ""),
        change="a channel name such as MRI or --strict-reference would leave the choice to the name"
        if seen
        else "another channel name; names nnU-Net does not know are z-scored",
    )


def _mask_words(value: Sequence[ChannelNormalization], median_relative_size: float) -> str:
    left = f"cropping leaves {median_relative_size:.0%} of the median image"
    if any(entry.use_mask for entry in value):
        return f"{left}, less than {MASK_BELOW:.0%}, so mean and deviation are taken inside the non-zero mask"
    if median_relative_size < MASK_BELOW:
        return f"{left}, less than {MASK_BELOW:.0%}, but no channel is z-scored image by image, so no mask is needed"
    return f"{left}, at least {MASK_BELOW:.0%}, so mean and deviation are taken over all voxels"
