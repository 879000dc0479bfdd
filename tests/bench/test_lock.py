"""What stands between tuning and testing: the lock, and the refusal to tune on what was tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from pdframe import runfolder
from pdframe.bench.config import Bench, load_bench
from pdframe.bench.lock import LOCK, LOG, TUNING, joined, read_lock, refuse_after_test, tuned, write_lock
from pdframe.mistakes import ConfigError

PHANTOM = {"name": "phantom", "shape": [8, 8, 8], "spacing_mm": [20.0, 20.0, 20.0]}
TV = {"name": "admm_tv", "label": "TV", "steps": 3, "search": {"weight": {"low": 1e-6, "high": 1e-3, "log": True}}}
CHOSEN = {"few": {"settings": {"weight": 2e-4}}, "many": {"settings": {}}}


def table(**more: Any) -> dict[str, Any]:
    return {
        "base": {"operator": {"name": "cone_beam", "views": 4}, "metrics": {"name": "ct"}},
        "problem": [{"label": "few"}, {"label": "many", "set": {"operator": {"views": 6}}}],
        "scan": [
            {"label": "a", "split": "validation", "dataset": {**PHANTOM, "figure": "ellipsoids"}},
            {"label": "b", "split": "test", "dataset": PHANTOM},
        ],
        "method": [TV, {"name": "fdk", "label": "FDK"}],
        "tuning": {"trials": 2},
    } | more


def locked(folder: Path, bench: Bench) -> dict[str, Any]:
    runfolder.write(folder / TUNING / LOG, "".join(f'{{"method": "{m.label}"}}\n' for m in bench.method if m.search))
    nothing = {problem: {"settings": {}} for problem in CHOSEN}
    return write_lock(bench, folder, {m.label: CHOSEN if m.search else nothing for m in bench.method})


def test_the_test_split_stays_closed_until_tuning_has_ended(tmp_path):
    bench = load_bench(table())
    with pytest.raises(ConfigError, match="test split stays closed. Run `pdframe bench tune` first"):
        tuned(bench, tmp_path)
    locked(tmp_path, bench)
    assert tuned(bench, tmp_path)["TV"] == {"few": {"weight": 2e-4}, "many": {}}


def test_a_bench_without_tuning_needs_no_lock(tmp_path):
    plain = {key: value for key, value in table().items() if key != "tuning"}
    assert tuned(load_bench(plain), tmp_path) == {m: {"few": {}, "many": {}} for m in ("TV", "FDK")}


@pytest.mark.parametrize("closed", [False, True], ids=["half-way", "ended"])
def test_tuning_cannot_be_left_out_once_it_began(tmp_path, closed):
    """`--set tuning.trials=0` would open the test split, or run it with settings of one's own."""
    locked(tmp_path, load_bench(table()))
    if not closed:
        (tmp_path / TUNING / LOCK).unlink()
    with pytest.raises(ConfigError, match=r"tuning began there, and the bench has no \[tuning\] now"):
        tuned(load_bench(table(), ["tuning.trials=0"]), tmp_path)


def test_the_lock_names_its_cases_and_reads_back(tmp_path):
    bench = load_bench(table())
    lock = locked(tmp_path, bench)
    assert read_lock(bench, tmp_path) == lock
    assert lock["cases"] == ["few--a--s0", "many--a--s0"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seeds": [0, 1]}, "tuned for another bench"),
        ({"tuning": {"trials": 3}}, "table was changed after tuning"),
        ({"method": [TV | {"steps": 5}, {"name": "fdk", "label": "FDK"}]}, "'TV' or the .tuning. table was changed"),
        ({"method": [TV | {"search": {"weight": [1e-4]}}]}, "'TV' or the .tuning. table was changed"),
        ({"method": [TV, TV | {"label": "other"}]}, "'other' is not in the lock"),
    ],
)
def test_what_was_tuned_cannot_be_changed_afterwards(tmp_path, change, told):
    locked(tmp_path, load_bench(table()))
    with pytest.raises(ConfigError, match=told):
        tuned(load_bench(table(**change)), tmp_path)


def test_a_method_with_nothing_to_tune_may_join_later(tmp_path):
    locked(tmp_path, load_bench(table()))
    joined = table(method=[TV, {"name": "cgls", "label": "CGLS"}])
    assert tuned(load_bench(joined), tmp_path)["CGLS"] == {"few": {}, "many": {}}


def test_a_chosen_file_is_found_from_the_folder_of_the_bench(tmp_path):
    """In the log it is a text like any other; relative to the TOML it is a file."""
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "bench.toml"
    dds = {"name": "dds", "prior": {"name": "patch3d"}, "search": {"prior.weights": ["shipped", "./mine.safetensors"]}}
    file.write_text(tomli_w.dumps(table(method=[dds])))
    bench = load_bench(file)
    runfolder.write(tmp_path / TUNING / LOG, '{"trial": 0}\n')
    write_lock(bench, tmp_path, {"dds": {"few": {"settings": {"prior.weights": "./mine.safetensors"}}}})
    chosen = tuned(bench, tmp_path)["dds"]["few"]
    assert bench.method[0].part("few", chosen).prior.settings.weights == file.parent / "mine.safetensors"


def test_neither_lock_nor_log_can_be_edited(tmp_path):
    bench = load_bench(table())
    lock = locked(tmp_path, bench)
    lock["methods"]["TV"]["chosen"]["few"]["settings"]["weight"] = 1e-4
    (tmp_path / TUNING / LOCK).write_text(json.dumps(lock))
    with pytest.raises(ConfigError, match="edited after tuning"):
        tuned(bench, tmp_path)
    locked(tmp_path, bench)
    (tmp_path / TUNING / LOG).write_text('{"trial": 1}\n')
    with pytest.raises(ConfigError, match="not the log that the lock was made from"):
        tuned(bench, tmp_path)


@pytest.mark.parametrize("status", ["finished", "timeout"])
def test_a_test_row_ends_all_tuning_be_it_failed_or_not(tmp_path, status):
    row = {"case": "few--b--s0", "method": "FDK", "split": "validation", "status": status, "rows": []}
    runfolder.write_json(tmp_path / "rows" / "few--b--s0" / "fdk" / "row.json", row)
    refuse_after_test(tmp_path)
    runfolder.write_json(tmp_path / "rows" / "few--b--s0" / "fdk" / "row.json", row | {"split": "test"})
    with pytest.raises(ConfigError, match="test split was opened, 1 of its rows"):
        refuse_after_test(tmp_path)


def test_what_is_joined_was_not_edited_and_has_ended(tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    locked(whole, load_bench(table()))
    runfolder.write(half / TUNING / LOG, '{"trial": 0}\n')
    assert joined([whole])[0] == json.loads((whole / TUNING / LOCK).read_text())
    assert joined([tmp_path]) is None
    with pytest.raises(ConfigError, match="its tuning has not ended"):
        joined([whole, half])
    (whole / TUNING / LOG).write_text('{"trial": 1}\n')
    with pytest.raises(ConfigError, match="not the log that the lock was made from"):
        joined([whole])


def test_rows_that_were_not_tuned_do_not_join_those_that_were(tmp_path):
    whole, loose = tmp_path / "whole", tmp_path / "loose"
    locked(whole, load_bench(table()))
    row = {"case": "few--b--s0", "method": "FDK", "split": "test", "status": "finished", "rows": []}
    runfolder.write_json(loose / "rows" / "few--b--s0" / "fdk" / "row.json", row)
    assert joined([whole, loose])[0]["methods"].keys() == {"TV", "FDK"}  # FDK has nothing to tune
    runfolder.write_json(loose / "rows" / "few--b--s0" / "tv" / "row.json", row | {"method": "TV"})
    with pytest.raises(ConfigError, match="has rows of TV that were not tuned as in"):
        joined([whole, loose])
