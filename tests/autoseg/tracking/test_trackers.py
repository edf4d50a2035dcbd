"""TensorBoard and MLflow, read back with their own readers, and no network."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from autoseg.issues import AutosegError, Issue
from autoseg.tracking.callbacks import (
    CALLBACKS,
    Callback,
    EpochRecord,
    FoldEnd,
    FoldStart,
    StepRecord,
    make_callbacks,
    notify,
)

ISSUE = Issue(code="training.overfitting", severity="warning", where="2d, fold 1", message="overfitting: 0.3")


def start(steps_done: int = 0, key: str = "k") -> FoldStart:
    return FoldStart(configuration="2d", fold=1, key=key, steps_done=steps_done, num_steps=6)


def train(callback: Callback, steps: range, *, error: BaseException | None = None) -> None:
    """What a fold with two steps per epoch would call."""
    callback.on_fold_start(start(steps.start))
    for step in steps:
        callback.on_step(StepRecord(step=step, loss=1 / (step + 1), learning_rate=0.1, wait_s=0.0, duration_s=1.0))
        if step % 2:
            dice = {"left (kidney)": 0.1 * step, "tumour": None}
            callback.on_epoch(
                EpochRecord(
                    epoch=step // 2, step=step + 1, loss=1.0 / step, pseudo_dice=dice, moving_average=0.5, learning_rate=0.1,
                    seconds=2.0, wait_share=0.0,
                )
            )  # fmt: skip
    callback.on_issue(ISSUE)
    callback.on_fold_end(FoldEnd(steps_done=steps.stop, error=error))


def test_unknown_callbacks_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(AutosegError) as raised:
        make_callbacks(["wandb", "nonsense"], tmp_path)
    assert raised.value.codes == ("callback.unknown",) * 2
    assert "mlflow, tensorboard" in raised.value.issues[0].fix
    assert make_callbacks([], tmp_path) == ()


def test_a_missing_package_is_reported_with_its_extra(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "from pathlib import Path\nfrom autoseg.tracking.callbacks import make_callbacks\n"
        "from autoseg.issues import AutosegError\n"
        "try:\n    make_callbacks(['tensorboard'], Path('.'))\nexcept AutosegError as error:\n    print(error.codes[0], error)"
    )
    text = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert text.startswith("callback.package_missing")
    assert "autoseg[tensorboard]" in text


def test_composed_callbacks_are_called_in_order() -> None:
    calls: list[tuple[int, int]] = []

    class Counting(Callback):
        def __init__(self, number: int) -> None:
            self.number = number

        def on_step(self, step: StepRecord) -> None:
            calls.append((self.number, step.step))

    step = StepRecord(step=7, loss=1.0, learning_rate=0.1, wait_s=0.0, duration_s=1.0)
    notify([Counting(1), Counting(2)], "on_step", step)
    assert calls == [(1, 7), (2, 7)]


def test_tensorboard_files_hold_what_happened_and_a_resumed_training_replaces_what_was_lost(tmp_path: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs autoseg[tensorboard]"
    )
    (callback,) = make_callbacks(["tensorboard"], tmp_path)
    train(callback, range(4), error=KeyboardInterrupt())
    train(callback, range(2, 6))
    folder = tmp_path / "tensorboard" / "2d" / "fold_1"
    events = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("step/loss")] == list(range(6))
    assert [event.value for event in events.Scalars("step/loss")] == pytest.approx([1 / (i + 1) for i in range(6)])
    assert [event.value for event in events.Scalars("epoch/dice/left (kidney)")] == pytest.approx([0.1, 0.3, 0.5])
    assert "epoch/dice/tumour" not in events.Tags()["scalars"]
    assert any(tag.startswith("issues/training.overfitting") for tag in events.Tags()["tensors"])


def test_mlflow_stores_metrics_and_a_resumed_training_is_the_same_run(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow's own dependencies
        tracking = pytest.importorskip("mlflow.tracking", reason="needs autoseg[mlflow]")
        (callback,) = make_callbacks(["mlflow"], tmp_path)
        train(callback, range(4), error=KeyboardInterrupt())
        train(callback, range(2, 6))
        client = tracking.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
        (experiment,) = (e for e in client.search_experiments() if e.name == tmp_path.name)
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.run_name == "2d, fold 1"
        assert run.info.status == "FINISHED"
        assert run.data.params["num_steps"] == "6"
        losses = client.get_metric_history(run.info.run_id, "loss")
        assert [(metric.step, metric.value) for metric in losses] == [(2, 1.0), (4, 1 / 3), (6, 1 / 5)]
        assert run.data.metrics["dice/left _kidney_"] == pytest.approx(0.5)
        assert any(
            name.endswith("training.overfitting") and value == str(ISSUE) for name, value in run.data.tags.items()
        )


OFFLINE = """
import socket, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
reached = []
def refuse(*given, **named):
    reached.append(given)
    raise OSError("no network")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
sys.path.insert(0, sys.argv[2])
from test_trackers import make_callbacks, train
(callback,) = make_callbacks([sys.argv[1]], Path("."))
train(callback, range(2))
import time; time.sleep(1)
assert not reached, reached
"""


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_nothing_uses_the_network(tmp_path: Path, name: str) -> None:
    pytest.importorskip(f"{name}.version", reason=f"needs autoseg[{name}]")
    assert name in CALLBACKS.names()
    call = [sys.executable, "-c", OFFLINE, name, str(Path(__file__).parent)]
    clean = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": ":".join(sys.path),
    }  # CI and pytest switch telemetry off by themselves
    subprocess.run(call, check=True, cwd=tmp_path, env=clean)
