"""How the intensities of each channel are normalised."""

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
"""Where cropping leaves less of the image than this, the background would dominate mean and standard deviation."""

_WORDS: dict[NormalizationScheme, str] = {
    "ct": "is CT: clipped to the 0.5 and 99.5 percentiles of the dataset's foreground, then z-scored by its mean and deviation",
    "zscore": "is z-scored image by image",
    "none": "is not normalised",
    "rescale_to_0_1": "is rescaled to 0 to 1 image by image",
    "rgb_to_0_1": "is divided by 255",
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
        change="another channel name; names nnU-Net does not know are z-scored",
    )


def _mask_words(value: Sequence[ChannelNormalization], median_relative_size: float) -> str:
    left = f"cropping leaves {median_relative_size:.0%} of the median image"
    if any(entry.use_mask for entry in value):
        return f"{left}, less than {MASK_BELOW:.0%}, so mean and deviation are taken inside the non-zero mask"
    if median_relative_size < MASK_BELOW:
        return f"{left}, less than {MASK_BELOW:.0%}, but no channel is z-scored image by image, so no mask is needed"
    return f"{left}, at least {MASK_BELOW:.0%}, so mean and deviation are taken over all voxels"
