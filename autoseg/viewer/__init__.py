"""The viewer of volumes in web pages: NiiVue, as its makers built it, kept here so that no page loads anything from elsewhere."""

from __future__ import annotations

from pathlib import Path

STATIC = Path(__file__).parent / "static"
SCRIPT = STATIC / "niivue.umd.js"
"""Makes the object ``niivue`` of a page."""
VERSION = "0.69.0"
SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
"""Of the script: ``dist/niivue.umd.js`` of the npm package ``@niivue/niivue``."""
