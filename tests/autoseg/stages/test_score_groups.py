"""A table of groups given to a finished run: its scores by group follow, and nothing is trained or chosen again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from builders import Job, Listening

from autoseg.stages.run import Run
from autoseg.stages.schedule import read_prepared
from autoseg.stages.select import score_groups


def test_scores_by_group_follow_the_table(job: Job, tmp_path: Path) -> None:
    run = replace(Run.open(job.root), reporter=Listening())
    cases, table = [case.case_id for case in run.dataset.training], tmp_path / "table.csv"
    table.write_text("case,site\n" + "".join(f"{each},{'AB'[i % 2]}\n" for i, each in enumerate(cases)))
    asked = replace(run, settings=run.settings.model_copy(update={"groups_table": table, "hold_out_groups": "site"}))

    score_groups(asked, read_prepared(run))
    assert asked.summary is not None
    (site,) = asked.summary.groups
    assert (site.column, site.held_out, [row.name for row in site.rows]) == ("site", True, ["A", "B"])
    before = (job.folder.cross_validation / "summary.json").stat().st_mtime_ns
    score_groups(asked, read_prepared(run))
    assert (job.folder.cross_validation / "summary.json").stat().st_mtime_ns == before
    score_groups(run, read_prepared(run))  # without the table
    assert run.summary is not None
    assert run.summary.groups == ()
