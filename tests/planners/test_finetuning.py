"""A plan for training on: the pretrained networks and their voxels, this dataset's channels and labels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planners import (
    CaseSize,
    ChannelNormalization,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Plan,
    PlanningError,
    explain,
    input_names,
    method_configurations,
    output_names,
    plan_dataset,
    plan_finetuning,
    preferred_configurations,
    read_document,
    with_width,
    write_document,
)

HEAD, TAIL = LabelClass(name="head", values=(1,)), LabelClass(name="tail", values=(2,))
REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))), region_order=(1, 2)
)


def statistics(mean: float) -> IntensityStatistics:
    return IntensityStatistics(
        mean=mean,
        median=mean,
        std=1.0,
        minimum=mean - 3,
        maximum=mean + 3,
        percentile_00_5=mean - 2,
        percentile_99_5=mean + 2,
    )


def make_plan(
    *, channels: tuple[str, ...] = ("CT",), labels: Labels | None = None, shape: tuple[int, int, int] = (40, 60, 50),
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0), mean: float = 0.0, name: str = "d", **more: object,
) -> Plan:  # fmt: skip
    fingerprint = Fingerprint(
        dataset_name=name,
        cases=tuple(CaseSize(case_id=f"c{i}", shape=shape, spacing_mm=spacing_mm) for i in range(20)),
        num_training_cases=20,
        channels=channels,
        labels=labels or Labels(classes=(HEAD,)),
        intensities=tuple(statistics(mean + i) for i in range(len(channels))),
        median_relative_size_after_cropping=1.0,
        sided_axis=more.pop("sided_axis", None),  # type: ignore[arg-type]
    )
    return plan_dataset(fingerprint, **more)  # type: ignore[arg-type]


PRETRAINED = make_plan(
    channels=("CT", "PET"),
    labels=Labels(classes=(TAIL.model_copy(update={"values": (1,)}),)),
    name="source",
    mean=100.0,
)
WIDTHS = {"3d_fullres": 16}


def test_on_its_own_dataset_a_plan_stays_what_it_is() -> None:
    plan = make_plan()
    widths = {c.name: c.network.features[0] for c in plan.configurations}
    fitted = plan_finetuning(plan, plan, widths)
    assert fitted.model_copy(update={"decisions": ()}) == plan.model_copy(update={"decisions": ()})


def test_networks_and_voxels_are_kept_and_the_dataset_says_the_rest() -> None:
    own = make_plan(
        channels=("T1", "CT"),
        labels=Labels(classes=(HEAD, TAIL)),
        spacing_mm=(3.0, 0.5, 0.5),
        shape=(20, 90, 80),
        name="mine",
    )
    fitted = plan_finetuning(own, PRETRAINED, WIDTHS)
    (mine,), theirs = fitted.configurations, PRETRAINED.configuration("3d_fullres")
    for field in ("spacing_mm", "patch_shape", "batch_size", "resample_image", "deep_supervision", "dimensions"):
        assert getattr(mine, field) == getattr(theirs, field)
    assert mine.network == with_width(theirs.network, 16).model_copy(update={"num_inputs": 2, "num_outputs": 3})
    assert fitted.transpose_forward == PRETRAINED.transpose_forward
    assert (fitted.dataset_name, fitted.channels, fitted.labels) == ("mine", own.channels, own.labels)
    assert mine.normalization == (own.configurations[0].normalization[0], theirs.normalization[0])
    assert fitted.intensities == (own.intensities[0], PRETRAINED.intensities[0])
    assert mine.median_shape == (60.0, 45.0, 40.0)  # 20 x 3 mm, 90 x 0.5 mm, 80 x 0.5 mm
    assert read_document(Plan, write_document(fitted), where="here") == fitted
    assert "of source are fine-tuned" in " ".join(explain(fitted).split())


def test_stages_and_data_that_are_not_trained_are_not_referred_to() -> None:
    vnet = plan_finetuning(make_plan(), make_plan(), {"3d_fullres_vnet": 16})
    assert [(c.name, c.data) for c in vnet.configurations] == [("3d_fullres_vnet", "3d_fullres_vnet")]
    cascaded = make_plan(shape=(300, 500, 500), memory_gb=4)
    assert cascaded.configuration("3d_lowres").next_stage is not None
    low = plan_finetuning(make_plan(), cascaded, {"3d_lowres": 32, "3d_fullres": 32})
    assert low.configuration("3d_lowres").next_stage is None
    both = {"3d_lowres": 32, "3d_fullres": 32, "3d_cascade_fullres": 32}
    cascade = plan_finetuning(make_plan(labels=REGIONS), cascaded, both).configuration("3d_cascade_fullres")
    assert cascade.network.num_inputs == 3
    assert input_names(("CT",), REGIONS, cascade) == ("CT", "3d_lowres: whole", "3d_lowres: whole and core")


def test_channels_of_one_name_are_told_apart_by_their_order() -> None:
    pretrained = make_plan(channels=("MRI", "CT", "MRI"), mean=100.0)
    schemes = tuple(ChannelNormalization(scheme=scheme) for scheme in ("zscore", "ct", "none"))
    changed = (each.model_copy(update={"normalization": schemes}) for each in pretrained.configurations)
    pretrained = pretrained.model_copy(update={"configurations": tuple(changed)})
    own = make_plan(channels=("MRI", "MRI", "MRI", "CT"))
    fitted = plan_finetuning(own, pretrained, WIDTHS)
    theirs, mine = pretrained.intensities, own.intensities
    assert fitted.intensities == (theirs[0], theirs[2], mine[2], theirs[1])
    assert [each.scheme for each in fitted.configurations[0].normalization] == ["zscore", "none", "zscore", "ct"]
    assert input_names(own.channels, own.labels, fitted.configurations[0]) == ("MRI", "MRI (2)", "MRI (3)", "CT")
    assert any(
        "MRI (3) is normalised by this dataset's own intensities" in decision.reason for decision in fitted.decisions
    )
    assert input_names(("MRI", "MRI (2)", "MRI"), own.labels, fitted.configurations[0]) == ("MRI", "MRI (2)", "MRI (3)")


def test_outputs_have_names() -> None:
    assert output_names(Labels(classes=(HEAD, TAIL))) == ("background", "head", "tail")
    assert output_names(Labels(classes=(TAIL, HEAD))) == ("background", "head", "tail")  # output k is label value k
    assert output_names(REGIONS) == ("whole", "core")


@given(st.sampled_from([0, 1, 2]), st.permutations((1.0, 1.5, 4.0)))
def test_left_and_right_are_not_mirrored_whatever_the_order_of_axes(sided: int, spacing_mm: list[float]) -> None:
    z, y, x = spacing_mm
    pretrained = make_plan(spacing_mm=(z, y, x))
    own = make_plan(sided_axis=sided)
    fitted = plan_finetuning(own, pretrained, {"3d_fullres": 32, "2d": 32})
    for configuration in fitted.configurations:
        mirrored = [fitted.transpose_forward[axis + 3 - configuration.dimensions] for axis in configuration.mirror_axes]
        assert sided not in mirrored
        assert len(mirrored) >= configuration.dimensions - 1


def test_what_does_not_go_together_is_told_at_once() -> None:
    flat = make_plan(shape=(1, 300, 300))
    with pytest.raises(PlanningError) as raised:
        plan_finetuning(flat, make_plan(strict_reference=True), WIDTHS)
    text = str(raised.value)
    assert "give --strict-reference" in text
    assert "single slices, but the pretrained networks are 3D" in text
    with pytest.raises(PlanningError, match="leave out --strict-reference"):
        plan_finetuning(make_plan(strict_reference=True), make_plan(), WIDTHS)


def test_spacings_that_do_not_go_together_are_told() -> None:
    fine = PRETRAINED.configuration("3d_fullres").model_copy(update={"spacing_mm": (1.0, 1.0, 1e-300)})
    with pytest.raises(PlanningError, match=r"pretrained 3d_fullres the median case has .* more than 1000000"):
        plan_finetuning(make_plan(), PRETRAINED.model_copy(update={"configurations": (fine,)}), WIDTHS)


def reasons(plan: Plan, configuration: str | None) -> dict[str, str]:
    return {d.rule: d.reason for d in plan.decisions if d.configuration == configuration}


def test_every_choice_of_a_plan_for_training_on_is_told() -> None:
    own = make_plan(
        channels=("T1", "FLAIR", "CT", "PET"),
        labels=REGIONS,
        shape=(20, 90, 80),
        spacing_mm=(3.0, 0.72, 0.72),
        name="mine",
        sided_axis=2,
    )
    fitted = plan_finetuning(own, PRETRAINED, {"2d": 32, "3d_fullres": 16, "3d_fullres_vnet": 16})
    whole, full, vnet = (reasons(fitted, name) for name in (None, "3d_fullres", "3d_fullres_vnet"))
    assert (
        "CT and PET keep the normalisation of the pretrained model, by name; T1 and FLAIR are"
        in whole["finetuning.normalization"]
    )
    assert "reoriented to the same anatomical axes" in whole["finetuning.directions"]
    assert "from 3 x 0.72 x 0.72 mm" in full["finetuning.spacing"]
    assert "resampled to 1 x 1 x 1 mm" in full["finetuning.spacing"]
    assert "from 0.72 x 0.72 mm" in reasons(fitted, "2d")["finetuning.spacing"]
    assert "patches of 40 x 64 x 56 voxels and a batch size of 2" in full["finetuning.patch"]
    assert "planned for 8 GB" in full["finetuning.patch"]
    assert "binary cross entropy of each region" in full["loss.terms"]
    assert "the loss stays Dice with squared terms" in vnet["finetuning.loss"]
    assert (
        "along axes 0 and 1 of the patch, as in the pretrained model, but not along axis 2: there are left and right labels"
        in full["finetuning.mirroring"]
    )
    assert "[finetuning.mirroring; method 11 and decision record 0102; decision record 0012]" in explain(fitted)


def test_axes_that_differ_from_case_to_case_are_told() -> None:
    pretrained = PRETRAINED.model_copy(update={"source_axes": "acquisition"})
    told = plan_finetuning(make_plan(sided_axis=2), pretrained, WIDTHS)
    assert "their own plan would have them reoriented" in reasons(told, None)["finetuning.directions"]
    mirroring = reasons(told, "3d_fullres")["finetuning.mirroring"]
    assert mirroring.startswith("along no axis: there are left and right labels")
    assert mirroring.endswith("differs between cases")
    free = plan_finetuning(make_plan(), pretrained, WIDTHS)
    assert (
        reasons(free, "3d_fullres")["finetuning.mirroring"]
        == "along axes 0, 1 and 2 of the patch, as in the pretrained model"
    )


@pytest.mark.parametrize("trained", [("3d_lowres",), ("3d_lowres", "3d_cascade_fullres")])
def test_a_low_resolution_or_a_cascade_is_trained_on_where_the_model_has_nothing_else(trained: tuple[str, ...]) -> None:
    fitted = plan_finetuning(make_plan(), make_plan(shape=(300, 500, 500), memory_gb=4), dict.fromkeys(trained, 32))
    assert tuple(c.name for c in fitted.configurations) == trained
    assert [c.name for c in preferred_configurations(fitted)] == ["3d_lowres"]
    assert tuple(c.name for c in method_configurations(fitted)) == trained
