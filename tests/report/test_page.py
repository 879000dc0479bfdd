"""The page as a file: what stands in it, what cannot break out of it, how volumes travel in it."""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from demo import METHODS, PROBLEMS, WINDOW, hounsfield

from pdframe.bench.rows import read_rows
from pdframe.cite import references
from pdframe.cli import main
from pdframe.ct.nifti import read_nifti
from pdframe.report import volumes
from pdframe.report.element import Markup, join, tag
from pdframe.report.page import SCRIPTS, write_page
from pdframe.report.page_data import read
from pdframe.report.pictures import write_pictures
from pdframe.report.tables import within
from pdframe.report.volumes import LADDER, Reduction, Shown, embed, pack

ROOT = Path(__file__).parents[2]
EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'&"


class Page(HTMLParser):
    """Elements with their attributes, and the text of each id'd script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name in ("script", "style"):
            self.inside.append(name)

    def handle_endtag(self, name):
        if name in ("script", "style"):
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.shown.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.shown).split())


def unpacked(text: str, shape, step_hu: int) -> np.ndarray:
    """The inverse of `pack`, written apart from it."""
    planes = zlib.decompress(base64.b64decode(text))
    half, last, values = len(planes) // 2, 0, []
    for low, high in zip(planes[:half], planes[half:], strict=True):
        folded = low + 256 * high
        last += (folded >> 1) ^ -(folded & 1)
        values.append((last + 32768) % 65536 - 32768)
    return step_hu * np.array(values).reshape(shape)


def data_of(text: str) -> dict:
    (told,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    return json.loads(told)


@pytest.fixture(scope="module")
def page(demo_folder, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert write_page(demo_folder, path) == path
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text()


def test_what_the_page_is_made_of_is_in_the_wheel():
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    packed = {f.distribution_path for f in wheel.WheelBuilder(str(ROOT)).recurse_included_files()}
    for name in ("page.html", "viewer.html", "page.css", *SCRIPTS):
        assert f"pdframe/report/{name}" in packed, name


def test_weights_and_sample_are_in_the_wheel():
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    packed = {f.distribution_path for f in wheel.WheelBuilder(str(ROOT)).recurse_included_files()}
    shipped = [path for path in ROOT.glob("plugins/*/shipped/*") if path.is_file()]
    sample = [path for path in (ROOT / "plugins" / "pdframe_data" / "chest").iterdir() if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in shipped) and any(path.suffix == ".gz" for path in sample)
    assert {path.relative_to(ROOT / "plugins").as_posix() for path in (*shipped, *sample)} <= packed


def test_text_and_attributes_are_escaped_and_markup_is_not():
    made = tag("p", EVIL, tag("b", "x"), None, ["&", 3], title=EVIL, hidden=True, class_="a", data_k=None)
    assert made.count("<") == 4 and "&lt;script&gt;" in made and "<b>x</b>&amp;3" in made
    (paragraph, *_) = Page(made).elements
    assert paragraph == ("p", {"title": EVIL, "hidden": None, "class": "a"})
    assert join([Markup("<i>"), "<i>"]) == "<i>&lt;i&gt;"
    assert tag("br") == "<br>"


def test_the_page_asks_for_nothing(page):
    for name, attributes in Page(page).elements:
        assert not attributes.keys() & {"src", "srcset", "action", "background", "data", "poster"}, name
        assert not any(key.startswith("on") or key == "style" for key in attributes), (name, attributes)
        assert name not in ("iframe", "object", "embed", "base", "link", "form"), name
        if "href" in attributes:
            assert attributes["href"].startswith("#"), attributes
    outside = [w for w in re.findall(r"url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", page)]
    assert outside == []
    policy = next(a["content"] for n, a in Page(page).elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy


def test_every_link_inside_the_page_leads_somewhere(page):
    elements = Page(page).elements
    ids = {a["id"] for _, a in elements if "id" in a}
    assert {a["href"][1:] for _, a in elements if "href" in a} <= ids
    assert len([a for _, a in elements if "id" in a]) == len(ids)


def test_every_mean_stands_with_its_interval(demo_folder, page):
    from pdframe.bench.summary import summarise

    text = Page(page).text.replace("−", "-")
    for line in summarise(read_rows(demo_folder)).lines:
        for name, found in line.metrics.items():
            mean, interval = within(found, name).split(" ", 1)
            assert f"{mean} {interval}" in text, (line.label, name)
        if line.difference:
            assert within(line.difference.interval, "psnr_db", sign=True) in text


def test_head_failures_settings_and_citations_are_told(page):
    text = Page(page).text
    head = (
        "Sparse views, a demonstration",
        "patient 1, patient 2",
        "Seeds 2: 0, 1",
        "2026-03-01",
        "at most 120 seconds",
    )
    for words in (*head, "Example CPU 2.0 GHz, 2 cores", "6 methods on 8 cases", "9 rows failed"):
        assert words in text, words
    assert "no result within 120 s: the worker was ended" in text
    assert "the worker asked for 9.1 GB, the limit is 8 GB" in text
    for label in METHODS:
        for problem in PROBLEMS:
            assert f"pdframe bench run demo.toml --only '{problem}/patient 2/1/{label}'" in text
    assert 'name = "dds" steps = 10' in text and '[prior] name = "patch3d"' in text
    found = references("\n".join(Page(page).shown))
    assert {"chung2024decomposed", "yang2025local", "feldkamp1984practical", "rudin1992nonlinear"} <= set(found)
    assert "armato2015data" not in found  # a dataset that this bench does not name


def test_strings_of_a_bench_cannot_become_markup(demo_folder, page, tmp_path):
    rows = copy.deepcopy(read_rows(demo_folder))
    for row in rows:
        row |= {key: f"{row[key]}{EVIL}" for key in ("problem", "scan", "method", "reason", "command", "case")}
        row["config"] = {"label": EVIL, "name": EVIL}
        row["machine"] = {"cpu": EVIL}
        row["metrics"] = {**row["metrics"], EVIL: 1.0} if row["metrics"] else {}
    text = write_page(rows, tmp_path / "evil.html").read_text()
    plain = write_page(read_rows(demo_folder), tmp_path / "plain.html").read_text()
    kinds = {name for name, _ in Page(plain).elements}
    assert {name for name, _ in Page(text).elements} <= kinds
    assert [a for n, a in Page(text).elements if n in ("script", "style")] == [
        a for n, a in Page(plain).elements if n in ("script", "style")
    ]
    assert EVIL in Page(text).text and EVIL in json.dumps(data_of(text), ensure_ascii=False).replace('\\"', '"')


def test_the_command_writes_the_page_and_the_tables(demo_folder, tmp_path):
    folder = shutil.copytree(demo_folder, tmp_path / "bench")
    done = CliRunner().invoke(main, ["bench", "report", str(folder), "--reference", "TV", "--metric", "rmse_hu"])
    assert (done.exit_code, done.output.strip()) == (0, str(folder / "report.html"))
    assert {"report.html", "table.csv", "table.md", "table.tex"} <= {p.name for p in folder.iterdir()}
    assert data_of((folder / "report.html").read_text())["metrics"][0]["name"] == "psnr_db"
    assert "RMSE, HU less TV" in (folder / "table.md").read_text()
    assert "rmse_hu_difference" in (folder / "table.csv").read_text()
    text = Page((folder / "report.html").read_text()).text
    assert "less TV" in text and text.index("RMSE, HU") < text.index("PSNR, dB")
    refused = CliRunner().invoke(main, ["bench", "report", str(folder), "--reference", "XY"])
    assert refused.exit_code != 0 and "'XY'" in refused.output


def test_a_page_of_rows_alone_has_no_slices(demo_folder, tmp_path):
    text = write_page(read_rows(demo_folder), tmp_path / "rows.html", reference="TV").read_text()
    assert 'id="viewer"' not in text and "less TV" in Page(text).text
    assert data_of(text)["viewer"] is None
    with pytest.raises(ValueError, match="no rows"):
        write_page([], tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_the_same_folder_gives_the_same_page(demo_folder, page, tmp_path):
    """In another process too, where sets have another order."""
    code = (
        "import sys; from pathlib import Path; from pdframe.report.page import write_page\n"
        "write_page(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    for seed in "12":
        words = [sys.executable, "-c", code, str(demo_folder), str(tmp_path / "again.html")]
        subprocess.run(words, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        assert (tmp_path / "again.html").read_text() == page


def test_volumes_in_the_page_are_those_of_the_folder(demo_folder, page):
    told = data_of(page)["viewer"]
    case = told["cases"][-1]
    assert (len(told["cases"]), case["step_hu"], case["shape"], told["window"]) == (8, 1, [16, 20, 24], [*WINDOW])
    assert case["spacing_mm"] == pytest.approx([28, 16, 10])
    method = next(m for m in case["methods"] if m["label"] == "TV")
    (packed,) = re.findall(rf'<script type="text/plain" id="{method["volume"]}">(.*?)</script>', page)
    name = f"{case['problem']}-{case['scan']}-{case['seed']}".replace(" ", "-")
    kept = read_nifti(demo_folder / "rows" / name / f"method-{list(METHODS).index('TV')}" / "volume.nii.gz")
    assert np.array_equal(unpacked(packed, case["shape"], 1), hounsfield(kept.x).numpy())
    assert [m["label"] for m in case["methods"] if not m["volume"]] == ["slow"]
    assert [m["label"] for m in case["methods"] if m["best"]] == ["patch3d + DDS"]


@pytest.mark.parametrize("reduction", [Reduction(), Reduction(step_hu=8), Reduction(step_hu=4, stride=2)])
def test_packing_rounds_and_strides_and_loses_nothing_else(reduction):
    rng = np.random.default_rng(0)
    hu = rng.normal(0, 400, (7, 6, 5)).astype(np.float32)
    hu[0, 0, :4] = (-32768, 32767, -32768, 31000)  # differences that wrap around
    s, step = reduction.stride, reduction.step_hu
    got = unpacked(pack(hu, reduction), hu[::s, ::s, ::s].shape, step)
    wanted = step * np.clip(np.rint(hu / step), -32768, 32767)
    assert np.array_equal(got, wanted[::s, ::s, ::s])


def test_what_does_not_fit_is_left_out_and_said(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    noisy = rng.normal(0, 100, (32, 16, 16)).astype(np.float32)
    monkeypatch.setattr(volumes, "read_hu", lambda path: (noisy, (1.0, 2.0, 3.0)))
    cases = [
        Shown(f"{p}{i}{seed}", p, f"scan {i}", seed, Path(f"t{p}{i}{seed}"), (("m", Path(f"m{p}{i}{seed}")),))
        for p in ("a", "b")
        for i in range(3)
        for seed in range(2)
    ]
    whole = embed(cases, room=10**9)
    assert whole[0] == LADDER[0] and "every case; every voxel; whole HU" in whole[0].sentence
    full = sum(map(len, whole[2].values()))
    kept_before = len(cases) + 1
    for room in (full // 2 + full // 50, full // 3, full // 8, full // 60):
        reduction, kept, packed = embed(cases, room=room)
        assert sum(map(len, packed.values())) <= 1.1 * room, reduction
        assert len(kept) <= kept_before and {c["problem"] for c in kept} == {"a", "b"}
        kept_before = len(kept)
    assert (reduction, len(kept), kept[0]["shape"]) == (LADDER[-1], 2, [16, 8, 8])
    assert kept[0]["spacing_mm"] == [2.0, 4.0, 6.0]
    assert "the first scan of each problem; every 2nd voxel" in reduction.sentence


def test_pictures_show_one_case_of_each_problem(demo_folder, tmp_path):
    folder = tmp_path / "bench"
    shutil.copytree(demo_folder, folder)
    written = write_pictures(read(folder, "", "psnr_db"))
    problems = {row["problem"] for row in read_rows(folder)}
    assert len(written) == len(problems) and all(path.read_bytes()[:4] == b"\x89PNG" for path in written)
    assert write_pictures(read(read_rows(folder), "", "psnr_db")) == []
