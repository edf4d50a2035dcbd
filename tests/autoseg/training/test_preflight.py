"""Before the first step: plan and cases that do not fit, memory, compilers."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_folds import (
    after_steps,
    codes_of,
    issues_of,
    make_spec,
    run,
    shallow,
    state_of,
    training_with,
)
from safetensors.torch import load_file
from torch._inductor import config as inductor_config

from autoseg.issues import AutosegError
from autoseg.training import loop, preflight
from autoseg.training.fold import train_fold
from autoseg.training.fold_spec import FoldSpec
from autoseg.wording import first_line


def test_plan_and_cases_that_do_not_fit_are_refused_before_the_first_step(tmp_path) -> None:
    spec = make_spec(tmp_path)
    two_channels = replace(spec.training_cases[1], image=np.zeros((2, 20, 24, 20), np.float32))
    renamed = replace(spec.training_cases[0], locations={"sphere": spec.training_cases[0].locations["ball"]})
    network = spec.configuration.network.model_copy(update={"num_outputs": 7})
    wrong = replace(
        training_with(spec, configuration="2d"),
        training_cases=[renamed, two_channels],
        configuration=spec.configuration.model_copy(update={"network": network}),
        case_ids=["a", "b"],
    )
    with pytest.raises(AutosegError) as raised:
        run(wrong)
    assert set(raised.value.codes) == {
        "training.network_differs",
        "training.schedule_differs",
        "training.classes_differ",
        "training.channels_differ",
    }
    assert {issue.case for issue in raised.value.issues} == {None, "a", "b"}
    with pytest.raises(AutosegError) as raised:
        run(replace(spec, training_cases=[]))
    assert raised.value.codes == ("training.no_cases",)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "is_read"), [(2, True), (3, False)])
def test_classes_of_three_cases_stand_for_all(tmp_path, number: int, is_read: bool) -> None:
    spec = make_spec(tmp_path)
    cases = list(spec.training_cases)
    cases[number] = replace(cases[number], locations={"sphere": cases[number].locations["ball"]})
    if is_read:
        with pytest.raises(AutosegError):
            preflight.require_fit(replace(spec, training_cases=cases))
    else:
        preflight.require_fit(replace(spec, training_cases=cases))


def test_sizes_of_micro_batches_are_those_that_memory_allows(tmp_path, monkeypatch) -> None:
    spec = training_with(make_spec(tmp_path), batch_size=6)
    monkeypatch.setattr(
        preflight, "free_memory_bytes", lambda: preflight.needed_bytes(spec.configuration, spec.training, 3)
    )
    given, cpu, gpu = (spec.configuration, spec.training), torch.device("cpu"), torch.device("cuda")
    assert preflight.plausible_sizes(*given, cpu) == (3, 2, 1)
    assert preflight.plausible_sizes(*given, cpu, most=2) == (2, 1)
    assert preflight.plausible_sizes(*given, gpu) == (6, 3, 2, 1)


def test_a_gpu_without_the_fused_norm_is_said_to_be_slower(tmp_path, monkeypatch) -> None:
    spec = make_spec(tmp_path)
    assert preflight.norm_issues(spec) == []
    on_gpu = replace(spec, device=torch.device("cuda"))
    for reason in (None, "no Triton"):
        monkeypatch.setattr(preflight, "why_not_fused", lambda device, reason=reason: reason)
        assert [(issue.code, "(no Triton)" in issue.message) for issue in preflight.norm_issues(on_gpu)] == [
            ("training.plain_norm", True)
        ] * (reason is not None)


def test_what_does_not_fit_on_a_gpu_is_told_by_its_own_estimate(tmp_path) -> None:
    spec = make_spec(tmp_path)
    cpu, gpu = (preflight.needed_bytes(spec.configuration, spec.training, 1, on_gpu=given) for given in (False, True))
    assert cpu != gpu
    issue = preflight.memory_issue(spec.plan, spec.configuration, spec.training, torch.device("cuda"))
    assert f"about {gpu / 1e9:.1f} GB" in issue.message
    assert "--memory-gb below" in issue.fix  # of an edited plan it changes nothing
    assert "make its patch_shape smaller, or discard the edits with --replan" in issue.fix


def test_a_batch_takes_four_bytes_an_intensity_and_eight_a_label(tmp_path) -> None:
    spec = training_with(make_spec(tmp_path), batch_size=3)
    voxels = 3 * math.prod(spec.configuration.patch_shape)
    assert preflight.batch_bytes(spec.configuration, spec.training) == voxels * (4 + 8)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_losses_of_whole_batches_are_said_to_be_computed_twice(tmp_path, batch_dice: bool) -> None:
    spec = make_spec(tmp_path)
    loss = spec.configuration.loss.model_copy(update={"batch_dice": batch_dice})
    spec = replace(spec, configuration=spec.configuration.model_copy(update={"loss": loss}))
    assert ("a third longer" in preflight.micro_batch_issue(spec, 1).message) is batch_dice


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("\n  \nbackend='inductor' raised:\nno compiler\nmore", "no compiler"),
        ("it raised:", "ValueError"),
        ("", "ValueError"),
    ],
)
def test_the_first_line_that_says_something_stands_for_an_error(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line


def test_too_little_memory_for_a_single_sample_is_refused_before_the_first_step(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(preflight, "free_memory_bytes", lambda: 1_000_000)
    with pytest.raises(AutosegError) as raised:
        run(make_spec(tmp_path))
    assert raised.value.codes == ("memory.too_small",)
    assert not list(tmp_path.iterdir())


def test_a_batch_larger_than_its_samples_is_reported_as_too_large(tmp_path, monkeypatch) -> None:
    """As a schedule from a file may ask for."""
    monkeypatch.setattr(preflight, "free_memory_bytes", lambda: 10**10)
    monkeypatch.setattr(preflight, "survives_step", lambda *given: False)
    spec = training_with(make_spec(tmp_path), batch_size=10**7)
    with pytest.raises(
        AutosegError, match=r"\d{4,}\.\d GB of memory for a batch of 10000000 samples; 10\.0 GB.*--schedule"
    ):
        run(spec)
    with pytest.raises(AutosegError, match=r"for a single sample; 10\.0 GB is free.*--memory-gb") as raised:
        run(training_with(make_spec(tmp_path), batch_size=2))
    assert raised.value.codes == ("memory.too_small",)


def test_a_batch_that_does_not_fit_into_free_memory_is_computed_in_micro_batches(tmp_path, monkeypatch) -> None:
    spec = training_with(make_spec(tmp_path, steps=2), batch_size=6)
    third = preflight.needed_bytes(spec.configuration, spec.training, 2)
    monkeypatch.setattr(preflight, "free_memory_bytes", lambda: third)
    run(spec)
    assert state_of(spec).micro_batch_size == 2


@pytest.mark.parametrize("spared", [0, 5])
def test_memory_that_only_an_attempt_shows_to_be_too_little_is_met_by_micro_batches(
    tmp_path, monkeypatch, spared: int
) -> None:
    """Pieces of more than 16 samples ask torch for more memory than any machine has: from the trial on, or only later."""
    compute, calls = loop.run_network, []

    def greedy(network, images, precision):
        calls.append(len(images))
        if len(images) > 16 and len(calls) > spared:
            torch.empty(1 << 60, dtype=torch.uint8)
        return compute(network, images, precision)

    monkeypatch.setattr(loop, "run_network", greedy)
    run(training_with(make_spec(tmp_path, steps=4), batch_size=64, validation_batches=0))
    spec = make_spec(tmp_path)
    assert state_of(spec).micro_batch_size == 16
    assert set(codes_of(spec)) == {"training.micro_batches"}
    assert (tmp_path / "final.safetensors").exists()


def compiled(spec: FoldSpec, *, batch_size: int = 2) -> FoldSpec:
    spec = replace(spec, configuration=shallow(spec.configuration))
    return training_with(spec, compiled=True, batch_size=batch_size, validation_batches=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, of its own doing
def test_a_failing_compiler_is_reported_once_and_not_used(tmp_path, monkeypatch) -> None:
    for name in ("CXX", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    spec = compiled(make_spec(tmp_path / "compiled", steps=3))
    with inductor_config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}):
        run(spec)
    run(training_with(replace(spec, folder=tmp_path / "plain"), compiled=False))
    (issue,) = issues_of(spec)
    assert issue.code == "training.not_compiled"
    assert "compiler" in issue.message.lower().split("(")[1]
    weights = [load_file(tmp_path / name / "final.safetensors") for name in ("compiled", "plain")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_steps_are_tried_in_micro_batches_that_memory_allows(tmp_path, monkeypatch) -> None:
    """Neither before the first step, where memory is too little, nor later, where only the checkpoint knows of it."""
    compute, pieces, free = loop.run_network, [], preflight.free_memory_bytes()

    def measured(network, images, precision):
        pieces.append(len(images))
        return compute(network, images, precision)

    monkeypatch.setattr(loop, "run_network", measured)
    for name in ("CXX", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    spec = compiled(make_spec(tmp_path / "fold", steps=2), batch_size=6)
    third = preflight.needed_bytes(spec.configuration, spec.training, 2)
    with inductor_config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}):
        monkeypatch.setattr(preflight, "free_memory_bytes", lambda: 1000)
        with pytest.raises(AutosegError, match="for a single sample"):
            run(spec)
        assert not pieces
        monkeypatch.setattr(preflight, "free_memory_bytes", lambda: third)
        with pytest.raises(KeyboardInterrupt):
            train_fold(spec, should_stop=after_steps(1))
        assert set(pieces) == {2}
        pieces.clear()
        monkeypatch.setattr(preflight, "free_memory_bytes", lambda: free)
        run(spec)
        assert set(pieces) == {2}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.skipif(sys.version_info[:3] == (3, 13, 0), reason="torch.compile refuses Python 3.13.0")
def test_compiled_steps_learn_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    spec = compiled(make_spec(tmp_path / "compiled", steps=3))
    run(spec)
    run(training_with(replace(spec, folder=tmp_path / "plain"), compiled=False))
    assert not issues_of(spec)
    losses = [
        json.loads((tmp_path / name / "history.jsonl").read_text().splitlines()[-1])["loss"]
        for name in ("compiled", "plain")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # sums in another order, three steps long


def test_a_gpu_has_its_patches_read_by_processes_and_a_cpu_reads_them_itself(tmp_path) -> None:
    """A GPU is only named here."""
    spec = make_spec(tmp_path)
    found = [
        preflight.num_readers(spec.configuration, spec.training, torch.device(name), 4) for name in ("cuda", "cpu")
    ]
    assert found == [3, 0]


def test_crops_that_will_be_rotated_take_more_than_patches(tmp_path) -> None:
    spec = make_spec(tmp_path)
    plain = spec.training.model_copy(update={"augmentation": False})
    voxels = math.prod(spec.configuration.patch_shape) * spec.training.batch_size
    assert preflight.crops_bytes(spec.configuration, plain) == voxels * (4 + 2 + 4)
    assert preflight.crops_bytes(spec.configuration, spec.training) > 1.6 * preflight.crops_bytes(
        spec.configuration, plain
    )
