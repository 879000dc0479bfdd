"""A run folder: only ours is written into, nobody else's file in it is touched, and no moment of a kill spoils it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import pdframe
from pdframe import run as run_module
from pdframe import runfolder
from pdframe.cli import main
from pdframe.mistakes import ConfigError

SETTINGS = {
    "dataset": {"name": "phantom", "shape": [8, 9, 10], "spacing_mm": [20.0, 20.0, 20.0]},
    "operator": {"name": "cone_beam", "views": 4},
    "noise": {"name": "photon"},
    "solver": {"name": "sirt", "steps": 2, "label": "SIRT"},
    "compare": [{"name": "fdk", "label": "FDK"}],
}
TOMLS = {
    "run": """
        [dataset]
        name = "phantom"
        shape = [8, 8, 8]
        spacing_mm = [20.0, 20.0, 20.0]
        [operator]
        name = "cone_beam"
        [solver]
        name = "fdk"
        """,
    "sample": 'samples = 1\n[prior]\nname = "tv"\n',
    "train": '[task]\nname = "patch3d"\n[data]\nroot = "."\nscans = [{file = "scan0.nii.gz"}]\n',
}
THEIRS = ("figure.png", "record.json", "log.jsonl", "sample_7.nii.gz", "sub/movie.mp4.partial", "sub/.draft.1.part")


def settings(**changes):
    return pdframe.load({**SETTINGS, **changes})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"task": "mine", "config_sha256": 0, "prior_sha256": 0}')


@pytest.mark.parametrize("killed", ["between the two renames", "before the old one was gone"])
def test_a_swap_of_folders_that_was_killed_is_put_right(tmp_path, killed):
    between = killed == "between the two renames"
    for name in ("new", ".target.old", *([] if between else ["target"])):
        runfolder.write(tmp_path / name / "file", name)
    runfolder.restore(tmp_path / "target")
    assert tree(tmp_path) == {"new/file": b"new", "target/file": b".target.old" if between else b"target"}
    runfolder.write(tmp_path / ".target.old" / "file", "left")
    runfolder.put_in_place(tmp_path / "new", tmp_path / "target")
    assert tree(tmp_path) == {"target/file": b"new"}


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    return settings().run(tmp_path_factory.mktemp("clean") / "run").folder


@pytest.mark.parametrize("command", [["run"], ["run", "--fresh"], ["sample"], ["train"]])
@pytest.mark.parametrize("names", [(), THEIRS])
def test_a_folder_with_files_of_ones_own_is_refused_and_left_as_it_is(command, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(TOMLS[command[0]])
    write(tmp_path, *names)
    before = tree(tmp_path)
    done = CliRunner().invoke(main, [*command, "config.toml", "--out", "."])
    assert done.exit_code == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert f"pdframe: .: expected an empty folder, or one that `pdframe {command[0]}` began, but it" in done.stderr
    assert "holds config.toml" in done.stderr and "choose another folder (--out)" in done.stderr
    assert tree(tmp_path) == before


def test_what_another_command_began_is_not_taken_for_a_run(tmp_path):
    record = {"prior_sha256": "0", "machine": {"pdframe": "0.1.0"}, "samples": []}
    (tmp_path / "record.json").write_text(json.dumps(record))
    for fresh in (False, True):
        with pytest.raises(ConfigError, match="holds record.json: choose another"):
            settings().run(tmp_path, fresh=fresh)


@pytest.mark.parametrize("fresh", [False, True])
def test_files_that_are_not_of_the_run_stay_and_half_written_ones_of_it_go(clean, tmp_path, fresh):
    folder = settings().run(tmp_path / "r").folder
    theirs = [name for name in THEIRS if name not in ("figure.png", "record.json", "sample_7.nii.gz")]
    theirs += ["sub/method.json", "sub/volume.nii.gz", ".draft.png.7.part", "fdk/notes.txt", "sample_best.nii.gz"]
    write(folder, *theirs)
    torn = ("checkpoint_0.safetensors.7.partial", ".figure.png.7.part", "fdk/.volume.nii.gz.7.part")
    write(folder, *torn)
    record = json.loads((folder / "record.json").read_text())
    runfolder.write_json(folder / "record.json", {**record, "status": "interrupted"})
    settings().run(folder, fresh=fresh)
    assert tree(folder).keys() == tree(clean).keys() | set(theirs)


class Killed(BaseException):
    """Stands for a kill: from some write or removal on, none of them happens any more."""


def killed_at(count: int, patch: pytest.MonkeyPatch) -> None:
    left, replace, unlink = [count], os.replace, Path.unlink

    def or_die(path: object) -> None:
        left[0] -= Path(str(path)).name != ".lock"
        if left[0] < 0:
            raise Killed

    patch.setattr(os, "replace", lambda old, new: or_die(new) or replace(old, new))
    patch.setattr(Path, "unlink", lambda self, **how: or_die(self) or unlink(self, **how))


def killed_ever_later(begun, monkeypatch, **options):
    """Runs into the folders that `begun` gives, each killed one write later; yields each when it went on to its end."""
    for count in range(100):
        folder = begun(count)
        with monkeypatch.context() as patch:
            killed_at(count, patch)
            try:
                settings().run(folder, **options)
            except Killed:
                pass
            else:
                return
        again = settings().run(folder, fresh=count == 0)  # killed before its first write, it is what it was
        assert again.record["status"] == "done" and [m["label"] for m in again.record["methods"]] == ["FDK", "SIRT"]
        yield folder


def same_volumes(folder: Path, other: Path) -> bool:
    names = [name for name in tree(other) if name.endswith(".nii.gz")]
    return len(names) == 3 and all((folder / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.fixture
def no_picture(monkeypatch):
    """It takes most of the time of so small a run."""
    monkeypatch.setattr(run_module, "_figure", lambda *given: None)


def test_a_run_killed_at_any_moment_goes_on(clean, tmp_path, monkeypatch, no_picture):
    folders = list(killed_ever_later(lambda count: tmp_path / str(count), monkeypatch))
    assert len(folders) > 8 and all(same_volumes(folder, clean) for folder in folders)


def test_a_fresh_run_killed_at_any_moment_takes_nothing_of_the_earlier_one(clean, tmp_path, monkeypatch, no_picture):
    earlier = settings(solver={**SETTINGS["solver"], "steps": 5}).run(tmp_path / "earlier").folder
    assert not same_volumes(earlier, clean)
    folders = list(
        killed_ever_later(lambda count: shutil.copytree(earlier, tmp_path / str(count)), monkeypatch, fresh=True)
    )
    assert len(folders) > 16 and all(same_volumes(folder, clean) for folder in folders)


REFUSED = {
    "run": ["item=nobody", "solver.name=fbp", "measurement.frozen=./none.safetensors", "operator.source_axis_mm=5"],
    "sample": ["prior={name='patch3d', weights='./none.safetensors'}"],
    "train": ["title=no scan"],
}


@pytest.mark.parametrize(("command", "change"), [(c, change) for c, changes in REFUSED.items() for change in changes])
def test_what_is_refused_leaves_nothing_behind(command, change, tmp_path, monkeypatch):
    (tmp_path / "small.toml").write_text(TOMLS[command])
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [command, "small.toml", "--set", change])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert "run folder" not in done.output and [p.name for p in tmp_path.iterdir()] == ["small.toml"]


def test_a_refused_fresh_run_leaves_the_earlier_one_alone(clean):
    before = tree(clean)
    with pytest.raises(ConfigError, match="solver 'fbp'"):
        settings(solver={"name": "fbp"}).run(clean, fresh=True)
    assert tree(clean) == before
