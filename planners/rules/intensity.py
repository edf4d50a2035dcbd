"""How the intensities of each channel are brought to one scale."""

from __future__ import annotations

from collections.abc import Sequence

from planners.decision import Decision
from planners.plan import ChannelNormalization, NormalizationScheme
from planners.wording import listed

SCHEME_OF_CHANNEL: dict[str, NormalizationScheme] = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}
"""Whole channel name, case-folded; any other name means z-score."""
MASK_BELOW = 0.75
"""Where cropping leaves less of the image than this, the background would drive mean and deviation."""

_WORDS: dict[NormalizationScheme, str] = {
    "ct": "Hounsfield units, clipped to the dataset's foreground range and scaled by its mean and deviation",
    "zscore": "each image by its own mean and deviation",
    "none": "left as they are",
    "rescale_to_0_1": "each image from its minimum to its maximum",
    "rgb_to_0_1": "divided by 255",
}


def decide_normalization(
    channels: Sequence[str], median_relative_size: float
) -> Decision[tuple[ChannelNormalization, ...]]:
    """Scheme and mask use of each channel (method section 3.11).

    ``median_relative_size`` is the median share of an image, 0 to 1, that cropping to its non-zero box leaves.
    """
    masked = median_relative_size < MASK_BELOW
    value = []
    for channel in channels:
        scheme = SCHEME_OF_CHANNEL.get(channel.casefold(), "zscore")
        value.append(ChannelNormalization(scheme=scheme, use_mask=masked and scheme == "zscore"))
    said = [f"{channel!r} {_WORDS[entry.scheme]}" for channel, entry in zip(channels, value, strict=True)]
    return Decision(
        rule="intensity.normalization",
        value=tuple(value),
        reason=f"by channel name: {listed(said)}; {_mask_words(value, median_relative_size)}",
        source="method 3.11",
        change="a channel named CT is scaled as Hounsfield units, any unknown name image by image",
    )


def _mask_words(value: Sequence[ChannelNormalization], median_relative_size: float) -> str:
    left = f"cropping leaves {median_relative_size:.0%} of the median image"
    if any(entry.use_mask for entry in value):
        return f"{left}, less than {MASK_BELOW:.0%}, so mean and deviation are those inside the non-zero mask"
    if median_relative_size < MASK_BELOW:
        return f"{left}, less than {MASK_BELOW:.0%}, but no channel is scaled by its own mean, so no mask is needed"
    return f"{left}, at least {MASK_BELOW:.0%}, so all its voxels count and not only those inside the non-zero mask"
