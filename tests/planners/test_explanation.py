"""The page that a person reads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from planners import (
    ClassSize,
    CtEvidence,
    Fingerprint,
    estimate_configuration_memory,
    explain,
    plan_dataset,
    plan_finetuning,
)
from planners.explanation import DEPARTURES, TITLES, WIDTH

IS_CT = CtEvidence(num_ct=1, num_other=0, num_unclear=0)
MakeFingerprint = Callable[..., Fingerprint]
BLEED = ClassSize(name="bleed", num_cases=2, median_volume_ml=0.01, median_share=1e-6, median_components=1.0)


@pytest.fixture
def kinds(fingerprint_of: MakeFingerprint) -> list[Fingerprint]:
    """Datasets that between them take every rule."""
    return [
        fingerprint_of([(150, 512, 512)] * 20, [(2.5, 0.8, 0.8)] * 20, channels=("CT", "PET")),
        fingerprint_of([(7, 7, 7)], [(1, 1, 1)]),
        fingerprint_of([(9, 9, 9)], [(1, 1, 1)], sided_axis=2),
        fingerprint_of([(200, 200, 200)] * 2, [(1, 1, 1)] * 2).model_copy(update={"class_sizes": (BLEED,)}),
        fingerprint_of([(200, 1, 200)], [(1, 0.5, 1)]),
        fingerprint_of([(7, 7, 7)], [(1, 1, 1)], channels=("image",), ct_evidence=(IS_CT,)),
        stored_as(fingerprint_of([(20, 200, 200)] * 2, [(5.0, 0.8, 0.8)] * 2), [(0, 1, 2), (0, 1, 2)]),
        stored_as(
            fingerprint_of([(20, 200, 200), (200, 200, 20)], [(5, 0.8, 0.8), (0.8, 0.8, 5)]), [(0, 1, 2), (1, 2, 0)]
        ),
    ]


def stored_as(fingerprint: Fingerprint, axes: list[tuple[int, int, int]]) -> Fingerprint:
    """The same cases with the axes of their files known."""
    cases = (case.model_copy(update={"file_axes": known}) for case, known in zip(fingerprint.cases, axes, strict=True))
    return fingerprint.model_copy(update={"cases": tuple(cases)})


def test_every_rule_has_a_title_and_is_on_the_page(kinds: list[Fingerprint]) -> None:
    taken = set()
    plans = [plan_dataset(kind) for kind in kinds]
    plans.append(plan_dataset(kinds[1], target_spacing_mm=(20.0, 1.0, 1.0)))
    plans.append(plan_finetuning(plans[0], plans[3], {"3d_fullres": 32, "3d_fullres_vnet": 16}))
    for plan in plans:
        page = explain(plan)
        for decision in plan.decisions:
            taken.add(decision.rule)
            assert f"[{decision.rule}; {decision.source}]" in page
            assert TITLES[decision.rule] in page
    assert taken == set(TITLES)


def test_the_page_says_what_more_memory_would_change(kinds: list[Fingerprint]) -> None:
    page = " ".join(explain(plan_dataset(kinds[0])).split())
    assert "with 12 GB the patch would be" in page
    assert "was reduced 13 times, to 56 x 192 x 192" in page


def test_the_page_says_how_much_memory_each_configuration_takes(kinds: list[Fingerprint]) -> None:
    plan = plan_dataset(kinds[0])
    page = " ".join(explain(plan).split())
    for configuration in plan.configurations:
        half, full = (estimate_configuration_memory(configuration, dtype=dtype) for dtype in ("bfloat16", "float32"))
        assert (
            f"takes about {half.training_bytes / 1e9:.1f} GB in bfloat16 ({full.training_bytes / 1e9:.1f} GB in float32)"
            in page
        )
        assert (
            f"predicting {half.inference_bytes / 1e9:.1f} GB ({full.inference_bytes / 1e9:.1f} GB) in addition to the images"
            in page
        )
    assert "Memory:" not in explain(plan_dataset(kinds[1], strict_reference=True))


def test_departures_are_listed_at_the_end(kinds: list[Fingerprint]) -> None:
    page = explain(plan_dataset(kinds[1]))
    assert "Departures from nnU-Net: patch.trainable (2d)" in page.splitlines()[-2] + page.splitlines()[-1]
    assert explain(plan_dataset(kinds[0])).rstrip().endswith("No departures from nnU-Net were needed.")
    assert "exactly nnU-Net" in explain(plan_dataset(kinds[1], strict_reference=True))
    assert set(TITLES) >= DEPARTURES


def test_what_is_done_otherwise_without_need_is_listed_at_the_end(
    kinds: list[Fingerprint], fingerprint_of: MakeFingerprint
) -> None:
    def last(fingerprint: Fingerprint) -> str:
        return " ".join(explain(plan_dataset(fingerprint)).split()).partition("were needed. ")[2]

    assert last(kinds[0]) == ""
    assert "by choice: axes.source (whole dataset)." in last(kinds[-2])
    assert "by choice: axes.acquisition (whole dataset)." in last(kinds[-1])
    sagittal = fingerprint_of([(200, 200, 20)] * 2, [(0.8, 0.8, 5.0)] * 2, sided_axis=2)
    assert "by choice: mirroring.sided_axis (3d_fullres)." in last(sagittal)


def test_the_page_says_which_networks_of_a_strict_plan_cannot_be_trained(kinds: list[Fingerprint]) -> None:
    page = " ".join(explain(plan_dataset(kinds[1], strict_reference=True)).split())
    for name in ("2d", "3d_fullres"):
        assert f"cannot be trained: configuration {name}: a patch of 7 x 7" in page
    assert "cannot be trained" not in explain(plan_dataset(kinds[0], strict_reference=True))


def test_the_page_tells_hours_on_gpus_of_networks_that_can_be_trained(kinds: list[Fingerprint]) -> None:
    page = explain(plan_dataset(kinds[0]))
    table = page[page.index("Hours on a GPU") :].splitlines()
    header = next(line for line in table if "8 GPUs" in line)
    assert header.split()[:2] == ["3d_fullres", "2d"]
    assert sum(line.endswith(" h") for line in table) == 6
    assert "Hours on a GPU" not in explain(plan_dataset(kinds[1], strict_reference=True))


def test_lines_fit_a_page(kinds: list[Fingerprint]) -> None:
    for kind in kinds:
        lines = explain(plan_dataset(kind)).splitlines()
        assert max(map(len, lines)) <= WIDTH + 20  # a section's title is one line, whatever it holds


def test_titles_are_underlined(kinds: list[Fingerprint]) -> None:
    lines = explain(plan_dataset(kinds[0])).splitlines()
    titles = [above for above, below in pairwise(lines) if below and below == "=" * len(above)]
    assert titles == ["Plan for drawn"]


def test_decisions_are_machine_readable(kinds: list[Fingerprint]) -> None:
    plan = plan_dataset(kinds[0])
    values = {(decision.rule, decision.configuration): decision.value for decision in plan.decisions}
    for configuration in plan.configurations:
        assert values["patch.shape", configuration.name] == list(configuration.patch_shape)
        assert values["batch.size", configuration.name] == configuration.batch_size
    assert values["axes.order", None] == list(plan.transpose_forward)
    assert values["cascade.low_resolution", None] is True
    cascade = plan.configuration("3d_cascade_fullres")
    assert values["cascade.inputs", cascade.name] == cascade.network.num_inputs
