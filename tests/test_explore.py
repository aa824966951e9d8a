"""The explorer: rows of the attention, patches at pixels, and one drive in a real browser."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import torch

from jepa import explore, run
from jepa.build import RecipeError
from jepa.explore import Explorer, ExploreSettings, build_page, explorer, launch, main
from jepa.probes.attention_maps import attention_weights
from jepa.types import View
from tests.conftest import forget_accelerate
from tests.tiny import TINY

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explore") / "run"
    forget_accelerate()
    assert run.main([*TINY, "encoder.depth=2", f"run_dir={folder}"]) == 0
    forget_accelerate()
    return folder


@pytest.fixture(scope="module")
def found(trained: Path) -> Explorer:
    explored = explorer(ExploreSettings(run=str(trained), samples=16))
    with torch.no_grad():  # attention far from uniform
        for block in explored.encoder.transformer.blocks:  # type: ignore[attr-defined, union-attr]
            block.attn.qkv.weight.mul_(10)  # type: ignore[operator, union-attr]
    return explored


def test_a_patch_shows_what_it_attends_to_not_who_attends_to_it(found: Explorer) -> None:
    view = View(found.pretrained.normalize(found.x[2:3]))
    weights = attention_weights(found.encoder, view, (0, 1))
    for layer in range(2):
        for cell in (0, 7, 15):
            maps = found.attended(2, cell, layer)
            assert maps.shape == (2, 4, 4)
            assert torch.allclose(maps.flatten(1), weights[layer][0, :, cell, :], atol=1e-6)
            assert not torch.allclose(maps.flatten(1), weights[layer][0, :, :, cell], atol=1e-3)
            assert torch.allclose(maps.sum((1, 2)), torch.ones(2))
    assert len(found.heads(2, 7, 0)) == 2
    assert len(found.depth(2, 7)) == 2


def test_spread_is_the_perplexity_of_the_row(found: Explorer) -> None:
    even = torch.full((4, 4), 1 / 16)
    one = torch.zeros(4, 4)
    one[1, 2] = 1
    assert found._map(0, even, "head 1").caption == "head 1: 16.0 patches"
    assert found._map(0, one, "head 1").caption == "head 1: 1.0 patches"


def test_pixels_belong_to_the_cell_that_is_framed(found: Explorer) -> None:
    side = found.zoom * 8
    assert found.picture(0, 0).size == (side * 4, side * 4)
    for cell in range(16):
        row, column = divmod(cell, 4)
        assert found.cell_at(column * side, row * side) == cell
        assert found.cell_at(column * side + side - 1, row * side + side - 1) == cell
        corner = found.picture(0, cell).getpixel((column * side, row * side))
        assert corner == (234, 88, 12)
    assert found.place(0, 6) == f"Patch (2, 3) of 4 × 4 in {found.names[0]}"


def test_neighbours_are_of_other_samples(found: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    framed = found._framed
    monkeypatch.setattr(found, "_framed", lambda sample, cell: asked.append(sample) or framed(sample, cell))
    cosines = [float(picture.caption) for picture in found.neighbours(3, 5)]
    assert len(cosines) == explore.NEIGHBOURS == len(asked)
    assert cosines == sorted(cosines, reverse=True)
    assert 3 not in asked


def test_bad_commands(trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["run=nowhere", "prot=1"]) == 1
    assert "unknown key 'prot': did you mean 'port'?" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert main([f"run={trained}"]) == 1
    assert "pip install jepa[explore]" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_browser(found: Explorer) -> None:
    pytest.importorskip("gradio", reason="needs jepa[explore]")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    page = build_page(found)
    address = launch(page, None, block=False)
    try:
        port = int(address.rstrip("/").rpartition(":")[2])
        assert listens("127.0.0.1", port)
        assert not listens(own_address(), port)
        with pytest.raises(RecipeError, match=f"port={port}"):
            launch(build_page(found), port, block=False)
        with playwright.sync_playwright() as tools:
            drive(tools, address, found)
    finally:
        page.close()


def drive(tools: object, address: str, found: Explorer) -> None:
    """Click a patch, move to another layer and sample, and look at what is shown."""
    browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])  # type: ignore[attr-defined]
    tab = browser.new_page(viewport={"width": 390, "height": 900})
    trouble: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(address)
    tab.wait_for_selector("#near img", timeout=60_000)
    assert tab.locator("#heads img").count() == 2
    assert tab.locator("#depth img").count() == 2
    assert tab.locator("#near img").count() == explore.NEIGHBOURS
    before = tab.locator("#heads img").first.get_attribute("src")
    box = tab.locator("#picture img").bounding_box()
    tab.mouse.click(box["x"] + box["width"] * 2.5 / 4, box["y"] + box["height"] * 1.5 / 4)
    tab.wait_for_function(f"document.querySelector('#where').innerText.trim() === {found.place(0, 6)!r}")
    clicked = tab.locator("#heads img").first.get_attribute("src")
    assert clicked == found.heads(0, 6, 1)[0].source != before
    tab.locator("input[type=range]").press("ArrowLeft")
    tab.wait_for_selector("text=Heads of layer 1")
    assert tab.locator("#heads img").first.get_attribute("src") == found.heads(0, 6, 0)[0].source
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert trouble == []
    assert all(url.startswith((address, "data:", "blob:")) for url in requests)
    browser.close()


def listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, port)) == 0


def own_address() -> str:
    """An address of this machine other than 127.0.0.1: all of 127/8 is the loopback interface on Linux."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return "127.0.0.2"
        return str(probe.getsockname()[0])
