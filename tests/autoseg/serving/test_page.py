"""The page of the service in a real browser: a volume is dropped on it, and its mask is drawn; nothing is loaded from elsewhere."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Page, browser_page, find_browser
from live_service import Live
from PIL import Image as Picture

SHOWN = "!document.querySelector('#result').hidden"
READY = "document.querySelector('#model').options.length > 0 && viewer !== null"
COLOURED = 40
"""Difference of red, green and blue from which a pixel is of a mask: images are grey."""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    program = find_browser()
    if program is None:
        pytest.skip("no browser (chromium)")
    with browser_page(program) as found:
        yield found


def coloured(page: Page) -> int:
    """Pixels of the viewer that are neither grey nor of its crosshair, which is yellow."""
    box = page.value("JSON.parse(JSON.stringify(document.querySelector('#canvas').getBoundingClientRect()))")
    picture = Picture.open(io.BytesIO(page.picture())).convert("RGB")
    area = picture.crop((box["left"], box["top"], min(box["right"], picture.width), min(box["bottom"], picture.height)))
    red, green, blue = np.moveaxis(np.asarray(area).astype(int), -1, 0)
    is_yellow = (np.minimum(red, green) - blue) > COLOURED
    return int(((np.ptp(np.stack([red, green, blue]), axis=0) > COLOURED) & ~is_yellow).sum())


def test_a_dropped_volume_gets_its_mask(page: Page, live: Live, image: Path, tmp_path: Path) -> None:
    page.open(live.running.address)
    page.until(READY)
    assert page.value("document.activeElement === document.body")
    assert coloured(page) == 0
    page.drop("#drop", image)
    page.until(SHOWN)
    rows = page.value("[...document.querySelectorAll('#classes tr')].map((row) => row.innerText.trim().split(/\\s+/))")
    assert [row[0] for row in rows] == ["bean", "ring"]
    assert all(row[2] == "ml" for row in rows)
    page.until("viewer.volumes.length === 2")
    with_mask = coloured(page)
    assert with_mask > 5000
    page.value("document.querySelectorAll('#classes input').forEach((box) => box.click())")
    assert coloured(page) < with_mask / 10
    before = page.value("document.querySelector('#place').textContent")
    page.value("document.querySelector('#canvas').focus()")
    page.press("PageUp")
    page.until(f"document.querySelector('#place').textContent !== {before!r}")
    assert page.complaints == []
    assert {a.split(":")[0] for a in page.addresses if not a.startswith(live.running.address)} <= {"data", "blob"}
    page.value("document.querySelector('#forget').click()")
    page.until("document.querySelector('#forget').disabled && viewer.volumes.length === 0")


def test_the_page_is_used_by_keyboard_on_a_phone(page: Page, live: Live) -> None:
    page.open(live.running.address, width=420, dark=True)
    page.until(READY)
    assert page.value("document.documentElement.scrollWidth") <= 420
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(19, 24, 29)"
    order = []
    for _ in range(9):
        page.press("Tab")
        order.append(page.value("document.activeElement.id || document.activeElement.textContent"))
    assert order == ["Use it from programs", "model", "also", "file", "All", "Axial", "Coronal", "Sagittal", "3D"]


def test_errors_and_the_description_are_shown(page: Page, live: Live, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    page.open(live.running.address)
    page.until(READY)
    page.drop("#drop", tmp_path / "notes.txt")
    page.until("document.querySelector('#issues').innerText.includes('serve.unknown_kind')")
    assert page.value("document.querySelector('#work').hidden")
    page.open(f"{live.running.address}docs")
    page.until("document.querySelectorAll('#operations h2').length === 6")
