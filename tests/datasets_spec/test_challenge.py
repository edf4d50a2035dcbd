"""Records of challenges are read whole or refused with every fault, and every fact in them has evidence."""

from __future__ import annotations

import pytest

from datasets_spec import load_challenge, load_challenges, load_known, read_challenge, read_challenge_file
from planners import DocumentError

GOOD = """
schema_version = 1
name = "own"
title = "Own challenge"
[package.asks.team]
what = "name of the team"
[parts.cases]
case = "patient{number}_{phase}"
fields = { number = "[0-9]{3}" }
file = "{team}/{number}-{phase}.nii.gz"
values = [0, 1]
[[evidence]]
facts = ["parts.*.file"]
certainty = "stated"
source = "a page"
[[evidence]]
facts = ["parts.*.values", "package"]
certainty = "unconfirmed"
source = "a participant's code"
what = "the values"
"""


@pytest.mark.parametrize("challenge", load_challenges(), ids=lambda challenge: challenge.name)
def test_every_fact_of_a_record_has_evidence_and_its_datasets_are_known(challenge):
    known = {layout.name for layout in load_known()}
    assert {name for part in challenge.parts.values() for name in part.datasets} <= known
    if challenge.page:
        assert [fact for fact in challenge.facts() if challenge.evidence_of(fact) is None] == []
    used = {id(challenge.evidence_of(fact)) for fact in challenge.facts()}
    assert [each.facts for each in challenge.evidence if id(each) not in used] == []


def test_record_gives_the_fields_of_a_case_and_names_what_was_not_confirmed():
    challenge = read_challenge(GOOD, where="own.toml")
    part = challenge.parts["cases"]
    assert part.fields_of_case("patient101_ED") == {"case": "patient101_ED", "number": "101", "phase": "ED"}
    assert part.fields_of_case("patient10_ED") is None
    assert challenge.unconfirmed() == ("the values",)
    assert challenge.unconfirmed("parts.cases.file") == ()
    assert challenge.evidence_of("parts.cases.file").certainty == "stated"
    assert challenge.evidence_of("parts.cases.case") is None


def test_user_file_extends_a_record(tmp_path):
    file = tmp_path / "Small Kits.toml"
    file.write_text('extends = "kits23"\ntitle = "small"\n[parts.cases]\ncount = 3\n')
    own, base = read_challenge_file(file), load_challenge("kits23")
    assert (own.name, own.title, own.parts["cases"].count) == ("kits23", "small", 3)
    assert own.parts["cases"].model_copy(update={"count": base.parts["cases"].count}) == base.parts["cases"]
    file.write_text('[parts.cases]\nfile = "{case}.nii"\n')
    assert (read_challenge_file(file).name, read_challenge_file(file).title) == ("small-kits", "Small Kits")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('title = "Own challenge"', ""), "title"),
        (("values = [0, 1]", "value = [0, 1]"), "value"),
        (("{team}/{number}", "{group}/{number}"), "{group}"),
        (("[0-9]{3}", "[0-9"), "not a regular expression"),
        (("number = ", "count = "), "no field {count}"),
        (('what = "the values"', ""), "what must name the facts"),
        (("values = [0, 1]", "remap = { one = 1 }"), "valid integer"),
        (('name = "own"', 'extends = "nothing"'), "does not exist"),
        (('name = "own"', "name = "), "line 3"),
    ],
)
def test_faulty_record_is_refused_with_its_place(change, said):
    assert change[0] in GOOD
    with pytest.raises(DocumentError) as caught:
        read_challenge(GOOD.replace(*change, 1), where="bad.toml")
    assert said in str(caught.value)
    assert "bad.toml" in str(caught.value)


def test_unknown_challenge_is_named_with_those_that_there_are():
    with pytest.raises(LookupError, match=r"folder.*kits23"):
        load_challenge("kits-23")
