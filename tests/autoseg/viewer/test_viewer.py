"""The viewer that is kept in the package is the one that its makers built, with its licence."""

from hashlib import sha256

from autoseg import viewer


def test_the_script_is_unchanged_and_has_its_licence() -> None:
    assert sha256(viewer.SCRIPT.read_bytes()).hexdigest() == viewer.SHA256
    licence = viewer.SCRIPT.with_name("LICENSE.niivue.txt").read_text()
    assert licence.startswith(f"{viewer.SCRIPT.name}: NiiVue {viewer.VERSION}")
    assert "Redistributions in binary form must reproduce the above copyright" in licence
