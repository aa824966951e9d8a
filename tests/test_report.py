"""The report: one self-contained page with every section, the same for the same run, readable on a phone."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from jepa import run
from jepa.probes import rank_me
from jepa.report.__main__ import main
from jepa.report.answers import answers, collages, retrieve
from jepa.report.charts import MOST_POINTS, line_chart, number_text, ticks
from jepa.report.curves import chart, dimensions
from jepa.report.gallery import principal_colours
from jepa.report.page import SECTIONS
from jepa.report.source import Material, Run, Settings, gather, open_run
from jepa.types import Tokens, View
from tests.conftest import forget_accelerate
from tests.tiny import TINY

SAMPLES = 24
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    forget_accelerate()
    assert run.main([*TINY, f"run_dir={folder}", "train.watch_every=2"]) == 0
    forget_accelerate()
    return folder


@pytest.fixture(scope="module")
def page(trained: Path) -> str:
    assert main([f"run={trained}", f"samples={SAMPLES}"]) == 0
    return (trained / "report.html").read_text()


@pytest.fixture(scope="module")
def material(trained: Path) -> tuple[Run, Material]:
    settings = Settings(run=str(trained), samples=SAMPLES)
    opened = open_run(settings)
    return opened, gather(opened, settings, lambda count: None)[0]


def copied(trained: Path, folder: Path) -> Path:
    return Path(shutil.copytree(trained, folder / "run"))


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">(.*?)</section>', page, flags=re.DOTALL)
    assert found
    return found[1]


def test_page_has_every_section_with_pictures(page: str) -> None:
    assert len(re.findall("<section id=", page)) == len(SECTIONS)
    pictures = {name: len(re.findall("<img ", section(page, name))) for name in re.findall('<section id="(.*?)"', page)}
    assert pictures == {
        "run": 0,
        "curves": 0,
        "panel": 0,
        "probes": 0,
        "masks": 4 * (3 + 4),
        "answers": 6 * (4 + 7),
        "features": 3 * 8,
        "attention": (1 + 1 + 2) * 8,
        "neighbours": 8 * 7,
        "map": 0,
        "throughput": 0,
    }
    assert len(re.findall("<circle", section(page, "map"))) == SAMPLES * 5  # shape, colour, count, scale, distance
    for curve in ("Loss", "Learning rate", "Weight decay", "Momentum of the target"):
        assert curve in section(page, "curves")
    for curve in ("Effective rank", "Position share", "Agreement gain"):
        assert curve in section(page, "panel")


def test_dimensions_of_embeddings(page: str) -> None:
    assert re.search(r"effective rank</th><td[^>]*>[\d.]+ of \d+:", section(page, "panel"))
    assert f"looked at {SAMPLES}" in section(page, "panel")
    plane = torch.rand(800, 2, generator=torch.Generator().manual_seed(0)) @ torch.eye(2, 32)
    (_, rank), (_, dimension) = dimensions(plane).lines
    assert rank.startswith(f"{rank_me(plane):.1f} of 32:")
    assert 1.8 < float(dimension.partition(":")[0]) < 2.2


def test_page_is_self_contained(page: str) -> None:
    links = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    assert links
    assert {link.partition(",")[0] for link in links if not link.startswith("#")} <= {
        "data:",
        "data:image/png;base64",
        "data:image/webp;base64",
    }
    assert not re.search(r"https?://|<script|<link (?!rel=\"icon\")|@import|url\(", page)
    for source in set(re.findall(r'src="data:image/\w+;base64,([^"]*)"', page)):
        Image.open(BytesIO(base64.b64decode(source))).verify()


def test_same_run_same_bytes(trained: Path, page: str, tmp_path: Path) -> None:
    again = tmp_path / "again.html"
    assert main([f"run={trained}", f"samples={SAMPLES}", f"output={again}"]) == 0
    undated = [re.sub("<time>.*?</time>", "", text) for text in (page, again.read_text())]
    assert undated[0] == undated[1]
    assert main([f"run={trained}", f"samples={SAMPLES}", f"output={again}", "seed=1"]) == 0
    assert re.sub("<time>.*?</time>", "", again.read_text()) != undated[0]


def test_facts(page: str, trained: Path) -> None:
    facts = section(page, "run")
    for text in (
        str(trained),
        "4 steps of 8 samples",
        "10,000 samples",
        "4 × 4 tokens",
        "MultiBlock",
        torch.__version__,
    ):
        assert text in facts
    assert "finished" in page


def test_probe_table_shows_means_beside_baselines(trained: Path, page: str, tmp_path: Path) -> None:
    assert f"python -m jepa.evaluate run={trained}" in section(page, "probes")
    folder = copied(trained, tmp_path)
    rows = [
        {"task": "shape", "probe": "knn", "features": features, "metric": "accuracy", "score": score, "seed": seed}
        for features, scores in {"model": (0.5, 0.7), "random_init": (0.3, 0.3), "chance": (0.2, 0.2)}.items()
        for seed, score in enumerate(scores)
    ]
    (folder / "evaluation.json").write_text(json.dumps(rows))
    assert main([f"run={folder}", "samples=16"]) == 0
    table = section((folder / "report.html").read_text(), "probes")
    assert re.findall(r'<td data-column="(.*?)">(.*?)</td>', table) == [
        ("this model", "0.600 ± 0.141"),
        ("random weights", "0.300 ± 0.000"),
        ("chance", "0.200 ± 0.000"),
    ]
    assert "jepa.evaluate" not in table


def test_verdict_stands_at_the_top(trained: Path, page: str, tmp_path: Path) -> None:
    assert "Too early to tell" in page
    folder = copied(trained, tmp_path)
    path = folder / "metrics.jsonl"
    last = json.loads(path.read_text().splitlines()[-1])

    def top(**values: float) -> str:
        rows = [last | {"step": step, "agreement_gain": 0.5} | values for step in range(1, 41)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert main([f"run={folder}", "samples=16"]) == 0
        return (folder / "report.html").read_text().partition("<nav>")[0]

    fine = top(target_cosine=0.1, position_share=0.3)
    assert "No sign of collapse" in fine
    assert "What usually helps" not in fine
    lost = top(target_cosine=0.995)
    assert "Collapsed" in lost
    assert "all target tokens are nearly one vector: mean cosine 0.995" in lost
    assert "What usually helps" in lost


def test_a_target_that_is_no_average_has_no_momentum(trained: Path, page: str, tmp_path: Path) -> None:
    assert "Momentum of the target" in page
    folder = copied(trained, tmp_path)
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) | {"momentum": 0.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([f"run={folder}", "samples=16"]) == 0
    assert "Momentum of the target" not in (folder / "report.html").read_text()


def test_accuracies_on_single_batches_are_averaged() -> None:
    rows = [{"step": step, "knn/shape": float(step % 2), "loss": float(step % 2)} for step in range(1, 41)]
    (knn,), (loss,) = (chart(rows, "", (name,)).lines for name in ("knn/shape", "loss"))
    assert (knn.last, loss.last) == ("0.5", "0")


def test_a_run_without_panel_or_metrics(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    (folder / "metrics.jsonl").unlink()
    assert main([f"run={folder}", "samples=16"]) == 0
    page = (folder / "report.html").read_text()
    assert "There is no metrics.jsonl" in section(page, "curves")
    assert "not measured" in section(page, "panel")
    assert 'class="verdict' not in page


def test_a_few_unlabelled_pictures_some_unreadable(tmp_path: Path) -> None:
    data = tmp_path / "pictures"
    data.mkdir()
    for number in range(3):
        pixels = torch.randint(0, 256, (40, 50, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(data / f"{number}.png")
    (data / "broken<b>.png").write_bytes(b"not a picture")
    folder = tmp_path / "run"
    forget_accelerate()
    assert run.main([*TINY, "data=images", "data.size=32", f"data.root={data}", f"run_dir={folder}"]) == 0
    forget_accelerate()
    assert main([f"run={folder}"]) == 0
    page = (folder / "report.html").read_text()
    assert "broken&lt;b&gt;.png" in section(page, "run")
    assert "broken<b>" not in page
    assert len(re.findall("<circle", section(page, "map"))) == 3


SIGNALS = """
import torch
from jepa import Masker, Masks, Sample
from jepa.data import SampleDataset

class Signals(SampleDataset):
    def __init__(self, size: list[int], channels: int) -> None:
        self.shape = (channels, *size)
    def __len__(self):
        return 20
    def __getitem__(self, i):
        return Sample(torch.randn(self.shape, generator=torch.Generator().manual_seed(i)), name=f"signal {i}")
    @property
    def fingerprint(self):
        return "signals"

class Halves(Masker):
    def sample(self, batch_size, grid, generator):
        order = torch.rand(batch_size, *grid, generator=generator).flatten(1).argsort(1).view(batch_size, *grid)
        half = order.amax() // 2
        return [Masks(order <= half, (order > half)[:, None])]
"""


@pytest.mark.parametrize(
    ("size", "patch", "channels", "ratio"), [([32], [4], 1, 8.0), ([4, 16, 24], [2, 8, 8], 2, 24 / 16)]
)
def test_signals_and_clips(
    size: list[int], patch: list[int], channels: int, ratio: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "signals.py").write_text(SIGNALS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "signals", raising=False)
    folder = tmp_path / "run"
    changes = (
        f"data.size={size}",
        "data.dataset._target_=signals.Signals",
        f"data.dataset.size={size}",
        f"+data.dataset.channels={channels}",
        "masker._target_=signals.Halves",
        f"encoder.patch_size={patch}",
        f"encoder.in_chans={channels}",
    )
    forget_accelerate()
    kept = [key for key in TINY if not key.startswith("masker")]
    assert run.main([*kept, *changes, f"run_dir={folder}"]) == 0
    forget_accelerate()
    assert main([f"run={folder}", "trust=[signals]"]) == 0
    page = (folder / "report.html").read_text()
    for name in ("masks", "answers", "features", "attention", "neighbours"):
        assert f"--ratio: {ratio:.4f}" in section(page, name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a run: python -m jepa.report run=RUN_DIR"),
        (["run=nowhere"], "nowhere is not a run directory"),
        (["run=nowhere", "sample=3"], "unknown key 'sample': did you mean 'samples'?"),
        (["run=nowhere", "samples=many"], "samples='many': Input should be a valid integer"),
        (["run=nowhere", "samples=3"], "samples=3: Input should be greater than or equal to 16"),
        (["run=nowhere", "device=gpu"], "device='gpu': Value error, give cpu, or cuda where there is a CUDA device"),
        (["run=nowhere", "trust=[a"], "trust=[a"),
        (["nowhere"], "'nowhere' is not of the form key=value"),
    ],
)
def test_bad_commands(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("checkpoints", "holds no checkpoint yet"),
        ("evaluation.json", "evaluation.json cannot be read"),
        ("metrics.jsonl", "metrics.jsonl, line 1 cannot be read"),
    ],
)
def test_damaged_runs(
    damage: str, message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(trained, tmp_path)
    if damage == "checkpoints":
        shutil.rmtree(folder / damage)
    else:
        (folder / damage).write_text('[{"task": 1}\n]')
    assert main([f"run={folder}", "samples=16"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_output_that_cannot_be_written(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"run={trained}", "samples=16", "output=/proc/none/report.html"]) == 1
    assert "there is no folder /proc/none" in capsys.readouterr().err
    assert main([f"run={trained}", "samples=16", "output=/proc/report.html"]) == 1
    assert "/proc/report.html" in capsys.readouterr().err.splitlines()[-1]


def test_code_of_others_runs_only_if_trusted(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(trained, tmp_path)
    (tmp_path / "strangers_shapes.py").write_text("from jepa.data import Shapes\nclass Strange(Shapes):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("jepa.data.Shapes", "strangers_shapes.Strange", 1))
    assert main([f"run={folder}", "samples=16"]) == 1
    assert "strangers_shapes" in capsys.readouterr().err
    assert main([f"run={folder}", "samples=16", "trust=[strangers_shapes]"]) == 0


def test_targets_are_those_of_the_loss(material: tuple[Run, Material]) -> None:
    opened, found = material
    model, x = opened.pretrained.model, opened.pretrained.normalize(found.x)
    with torch.no_grad():
        assert torch.allclose(model.targets(View(x)).dense(), found.targets, atol=1e-5)
    assert torch.allclose(found.pooled, found.tokens.mean(1))


def test_a_perfect_prediction_ranks_first_and_pastes_the_best_possible(material: tuple[Run, Material]) -> None:
    _, found = material
    content = found.targets - found.targets.mean(0)
    index = found.output.intermediates["tasks"][0]["prediction"].index
    sample = index.sets // 4
    perfect = Tokens(content[sample, index.values], index)
    assert retrieve(perfect, content, 4, 2).rank.unique().tolist() == [1]
    for pictures in collages(found, found.batch.tasks[0], perfect, content, 4, 6):
        assert torch.equal(pictures["predicted"], pictures["best possible"])
    opposite = Tokens(-perfect.x, index)
    retrieval = retrieve(opposite, content, 4, 2)
    assert int(retrieval.rank.min()) > 1
    own = torch.arange(len(index)) // 4
    assert bool((retrieval.rows != own[:, None]).all())


def test_content_that_is_all_one_ranks_in_the_middle(material: tuple[Run, Material]) -> None:
    _, found = material
    said = found.output.intermediates["tasks"][0]["prediction"]
    assert retrieve(said, torch.ones_like(found.targets), 4, 2).rank.unique().tolist() == [(1 + SAMPLES) / 2]


def test_answers_are_those_of_the_model(material: tuple[Run, Material]) -> None:
    opened, found = material
    text = answers(opened, found).text[1]
    assert f"among {SAMPLES} samples" in text
    assert f"{SAMPLES * 4} target sets" in text


def test_colours_are_principal_components_with_a_fixed_sign() -> None:
    x = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 5, 3, 0.1, 0.1, 0.1])
    colours, share = principal_colours(x)
    assert colours.shape == (4, 9, 3)
    assert 0.99 < share <= 1
    for channel in range(3):  # each follows its own axis, upwards
        pair = torch.stack((colours[..., channel].flatten(), x[..., channel].flatten()))
        assert float(torch.corrcoef(pair)[0, 1]) > 0.9
    assert torch.isfinite(principal_colours(torch.ones(2, 4, 5))[0]).all()
    assert principal_colours(torch.randn(2, 4, 2))[0].shape == (2, 4, 3)


def test_axes_have_few_round_numbers() -> None:
    assert ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(13, 14.1, 5) == [13, 13.25, 13.5, 13.75, 14]
    assert [number_text(x) for x in (0, 1500, 20_000, 3.2e6, 0.25, 2.1e-4, 1e-6)] == [
        "0", "1500", "20k", "3.2M", "0.25", "2.1e-4", "1e-6",
    ]  # fmt: skip


def test_lines_break_where_a_number_is_missing_and_long_ones_are_averaged() -> None:
    chart = line_chart("t", {"a": [(1.0, 1.0), (2.0, float("nan")), (3.0, 2.0), (4.0, 3.0)]})
    assert chart.lines[0].path.count("M") == 2
    assert "step 2: a nan" in [column.text for column in chart.columns]
    chart = line_chart("t", {"a": [(float(i), float(i % 2)) for i in range(10_000)]})
    assert len(chart.columns) <= MOST_POINTS
    assert chart.columns[-1].text.startswith("step 9,999:")
    assert not line_chart("t", {"a": [(1.0, float("inf"))]}).lines


LOOK = """<script>
addEventListener('load', () => {
  const wide = [...document.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > innerWidth + 0.5);
  const missing = [...document.images].filter(i => !i.complete || !i.naturalWidth);
  document.body.dataset.found = JSON.stringify({
    inner: innerWidth, scroll: document.documentElement.scrollWidth, images: document.images.length,
    wide: wide.map(e => e.tagName + '.' + e.className).slice(0, 5), missing: missing.length,
  });
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [360, 1280])
def test_in_a_browser(width: int, page: str, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    looked = tmp_path / "looked.html"
    # headless windows have a least width, frames have not
    looked.write_text(page.replace("</head>", f"{LOOK}</head>"))
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="looked.html" style="border:0;width:{width}px;height:800px"></iframe><script>'
        "addEventListener('load', () => setTimeout(() => { document.body.dataset.found = "
        "document.querySelector('iframe').contentDocument.body.dataset.found }, 200))</script>"
    )
    options = (
        "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run "
        "--allow-file-access-from-files --enable-logging=stderr --virtual-time-budget=20000 --dump-dom"
    )
    done = subprocess.run(
        [
            CHROMIUM,
            *options.split(),
            "--window-size=1400,900",
            f"--user-data-dir={tmp_path / 'profile'}",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = re.search(r'data-found="(.*?)"', done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(found[1].replace("&quot;", '"'))
    assert seen["inner"] == width
    assert seen["scroll"] <= width
    assert seen["wide"] == []
    assert seen["missing"] == 0
    assert seen["images"] == page.count("<img ")
    assert "CONSOLE" not in done.stderr
