"""MLflow: scores and issues of every fold in a database in the run folder. Needs ``autoseg[mlflow]``."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, RunTag
from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY
from mlflow.tracking import MlflowClient

from autoseg.issues import Issue
from autoseg.storage.locks import hold_lock
from autoseg.tracking.callbacks import Callback, EpochRecord, FoldEnd, FoldStart

DATABASE = "mlflow.db"
KEY_TAG = "autoseg.key"
"""Hash of what a training was made from: the same hash resumes the MLflow run, another one starts a new run."""
FORBIDDEN = re.compile(r"[^\w\-. /]")
"""In names of metrics."""


@dataclass(slots=True)
class MLflow(Callback):
    """Writes to ``mlflow.db`` of the run folder; read it with ``mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db``.

    One experiment, with a run for each fold. Nothing is sent anywhere: MLflow's own telemetry is switched off.
    """

    folder: Path
    """Of the run."""
    client: Any = field(default=None, init=False)
    run_id: str = field(default="", init=False)
    logged: int = field(default=-1, init=False)
    """Last step with metrics from an earlier call."""
    issues: int = field(default=0, init=False)

    def on_fold_start(self, fold: FoldStart) -> None:
        telemetry: Any = MLFLOW_DISABLE_TELEMETRY
        telemetry.set(True)  # MLflow asks this switch before each event
        with hold_lock(self.folder / f"{DATABASE}.lock", what="MLflow's database", wait=True):
            self.client = MlflowClient(tracking_uri=f"sqlite:///{(self.folder / DATABASE).resolve()}")
            experiment = self._experiment()
            self.run_id = self._run(experiment, fold)
        known = self.client.get_metric_history(self.run_id, "seconds")
        self.logged = max((metric.step for metric in known), default=-1)

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.folder.resolve().name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = (self.folder / "mlflow").resolve().as_uri()
        return str(self.client.create_experiment(self.folder.resolve().name, artifact_location=artifacts))

    def _run(self, experiment: str, fold: FoldStart) -> str:
        found = self.client.search_runs([experiment], filter_string=f"tags.`{KEY_TAG}` = '{fold.key}'")
        if found:
            self.client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        name = f"{fold.configuration}, fold {fold.fold}"
        run = self.client.create_run(experiment, run_name=name, tags={KEY_TAG: fold.key})
        values = {"configuration": fold.configuration, "fold": fold.fold, "num_steps": fold.num_steps}
        for name, value in values.items():
            self.client.log_param(run.info.run_id, name, value)
        return str(run.info.run_id)

    def on_epoch(self, epoch: EpochRecord) -> None:
        if epoch.step <= self.logged:
            return
        now = int(time.time() * 1000)
        metrics = [Metric(FORBIDDEN.sub("_", name), value, now, epoch.step) for name, value in epoch.values().items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def on_issue(self, issue: Issue) -> None:
        self.issues += 1
        tag = RunTag(f"issue.{self.issues:03d}.{issue.code}", str(issue))
        self.client.log_batch(self.run_id, tags=[tag])

    def on_fold_end(self, end: FoldEnd) -> None:
        status = "FINISHED" if end.error is None else "FAILED" if isinstance(end.error, Exception) else "KILLED"
        self.client.set_terminated(self.run_id, status=status)
