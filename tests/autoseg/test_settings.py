"""Settings take text from the command line, are stored exactly, and list what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.issues import AutosegError
from autoseg.settings import (
    Settings,
    as_arguments,
    changes_of,
    differences,
    given_settings,
    make_settings,
    options,
    updated,
)
from planners import read_document, write_document

FULL = {
    "dataset": "data",
    "budget": "1h30m",
    "target_spacing": "2.5,0.8,0.8",
    "exclude": ["a", "b,c"],
    "set": ["plan.3d_fullres.patch_shape=64,160,160", "schedule.epochs=250"],
    "configurations": "2d",
    "mirroring": False,
    "race": False,
    "skip_bad": True,
    "folds": 3,
    "memory_gb": 12,
}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("20m", 1200), ("2h", 7200), ("1h30m", 5400), ("0.5h", 1800), (" 5M ", 300), (7, 7)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert make_settings({"dataset": "x", "budget": text}).budget == seconds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("budget", text) for text in ("", "20", "m", "soon", "-5m", "0m", "5m3h", "1e3s")),
        *(("target_spacing", text) for text in ("1,2", "a,b,c", "1,-1,1", "1,inf,1", "nan,1,1", "0,1,1")),
        ("folds", 0),
        ("memory_gb", 0),
        ("preset", "tiny"),
        ("set", "patch_shape=1"),
        ("set", "plan.3d_fullres.patch_shape"),
        *(("set", text) for text in ("network.x=1", "plan=1", "plan.=1", ["plan.x=1", "y"], ["plan.x=1", 2], [1])),
        *(("exclude", names) for names in ([1], ["a", 2], 3)),
        ("seed", -1),
    ],
)
def test_bad_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(AutosegError) as caught:
        make_settings({"dataset": "x", name: value})
    (issue,) = caught.value.issues[:1]
    assert (issue.code, issue.where) == ("settings.bad_value", f"--{name.replace('_', '-')}")


def test_several_devices_are_one_word(tmp_path: Path) -> None:
    assert make_settings({"dataset": tmp_path, "device": "cuda:0, cuda:2"}).device == "cuda:0,cuda:2"
    assert make_settings({"dataset": tmp_path, "device": "cpu,cpu"}).device == "cpu,cpu"
    for name in ("auto,cpu", "cpu,", ",", "cuda:0 cuda:1"):
        with pytest.raises(AutosegError) as caught:
            make_settings({"dataset": tmp_path, "device": name})
        assert caught.value.codes == ("settings.bad_value",)


def test_unknown_options_list_the_known_ones() -> None:
    with pytest.raises(AutosegError) as caught:
        make_settings({"dataset": "x", "epochs": 5})
    assert caught.value.codes == ("settings.unknown",)
    assert "budget" in caught.value.issues[0].fix


def test_settings_return_exactly_from_their_file() -> None:
    settings = make_settings(FULL)
    assert read_document(Settings, write_document(settings), where="settings.json") == settings
    assert settings.exclude == ("a", "b", "c")
    assert settings.target_spacing == (2.5, 0.8, 0.8)


def test_what_is_given_later_replaces_and_changes_are_added() -> None:
    before = make_settings(FULL)
    after = updated(before, {"budget": "2h", "set": ["schedule.epochs=300", "plan.2d.batch_size=4"]})
    assert [each.name for each in differences(before, after)] == ["set", "budget"]
    assert changes_of(after, "schedule") == {"epochs": "300"}
    assert changes_of(after, "plan") == {"3d_fullres.patch_shape": "64,160,160", "2d.batch_size": "4"}
    assert updated(before, {}) == before


@pytest.mark.parametrize("name", [name for name, _ in options()])
def test_none_takes_an_option_back(name: str) -> None:
    default = make_settings({"dataset": "data"})
    before = make_settings({**FULL, "layout": "msd", "seed": 3, "schedule": "s.json"})
    after = updated(before, {name: "none"})
    assert getattr(after, name) == getattr(default, name)
    assert {each.name for each in differences(before, after)} <= {name}


def test_settings_as_arguments_give_them_again() -> None:
    settings = make_settings(FULL)
    words = list(as_arguments(settings))
    given: dict[str, object] = {"dataset": "data"}
    while words:
        name = words.pop(0).removeprefix("--").replace("-", "_")
        if name in ("no_mirroring", "no_race", "skip_bad"):
            given[name.removeprefix("no_")] = name == "skip_bad"
        elif name == "set":
            given["set"] = {**given.get("set", {}), **dict([words.pop(0).split("=", 1)])}  # type: ignore[dict-item]
        else:
            given[name] = words.pop(0)
    assert make_settings(given) == settings


def test_without_options_nothing_is_left_out_fixed_or_switched_off() -> None:
    settings = make_settings({"dataset": "x"})
    others = {name: getattr(settings, name) for name, _ in options()}
    given = {name: others.pop(name) for name in ("preset", "race", "mirroring", "device")}
    assert given == {"preset": "default", "race": True, "mirroring": True, "device": "auto"}
    assert not any(others.values())


def test_options_of_the_machine_change_no_result() -> None:
    assert {name for name, option in options() if not option.decides} == {
        "ddp",
        "groups_table",
        "anyway",
        "workers",
        "work",
        "device",
        "threads",
        "track",
    }


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        ({"exclude": "a"}, {"exclude": "b,c"}, "--exclude was a and is b,c (a list replaces the earlier one)"),
        ({}, {"exclude": "b"}, "--exclude was not given and is b"),
        ({"exclude": "a"}, {"exclude": "none"}, "--exclude was a and is not given"),
        ({"seed": 1}, {"seed": 2}, "--seed was 1 and is 2"),
        ({}, {"budget": "90m"}, "--budget was not given and is 1h30m"),
        ({}, {"memory_gb": 12}, "--memory-gb was not given and is 12.0"),
        ({}, {"mirroring": False}, "--mirroring was on and is off"),
        ({}, {"set": "plan.2d.batch_size=4"}, "--set was not given and is plan.2d.batch_size=4"),
    ],
)
def test_differences_are_told_as_users_write_them(before: dict[str, object], now: dict[str, object], text: str) -> None:
    settings = make_settings({"dataset": "x", **before})
    assert [str(each) for each in differences(settings, updated(settings, now))] == [text]


def test_only_options_that_differ_from_defaults_are_listed() -> None:
    assert given_settings(make_settings({"dataset": "x"})) == {}
    assert given_settings(make_settings({"dataset": "x", "seed": 3})) == {"--seed": "3"}


def test_paths_stay_valid_from_another_folder() -> None:
    settings = make_settings({"dataset": "x", "spec": "y.toml"})
    assert settings.dataset == Path.cwd() / "x"
    assert settings.spec == Path.cwd() / "y.toml"


def test_every_option_says_what_it_does() -> None:
    for name, option in options():
        assert option.help.endswith("."), name
