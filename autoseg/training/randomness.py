"""Randomness by counter: every draw follows from what it is for, so there is no state to save."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, configuration: str, fold: int, step: int, sample: int, purpose: str) -> np.random.Generator:
    """The generator of one sample of one step.

    The same arguments give the same numbers in any process, on any machine, in any order of asking.
    ``purpose`` tells apart draws that must not depend on each other, e.g. ``patch`` and ``augmentation``.
    """
    key = (seed, zlib.crc32(configuration.encode()), fold, step, sample, zlib.crc32(purpose.encode()))
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
