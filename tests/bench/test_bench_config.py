"""A bench's TOML: what it means, what is refused and in which words, what its hash depends on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w
from toy_bench import TABLE

from pdframe.bench.config import Bench, bench_sha256, load_bench
from pdframe.mistakes import ConfigError

Make = Callable[..., Bench]
ANOTHER = {"name": "phantom", "figure": "ellipsoids", "shape": [6, 8, 10], "spacing_mm": [40.0, 30.0, 24.0]}
TWO = [{"label": "4 views"}, {"label": "9 views, exact", "set": {"operator": {"views": 9}, "noise": {"name": "none"}}}]


def test_cases_are_problems_by_scans_of_the_split_by_seeds(make_bench: Make):
    scans = [*TABLE["scan"], {"label": "Ada's head", "split": "validation", "dataset": ANOTHER}]
    bench = make_bench(problem=TWO, scan=scans)
    assert [case.id for case in bench.cases()] == [
        f"{problem}--head--s{seed}" for problem in ("4-views", "9-views-exact") for seed in (0, 1)
    ]
    assert {case.scan for case in bench.cases("validation")} == {"Ada's head"}
    assert len(bench.cases("validation")) == 4
    coarser = {**TABLE["scan"][0]["dataset"], "shape": [3, 4, 5]}
    twin = {"label": "the same", "split": "validation", "dataset": coarser}
    with pytest.raises(ConfigError, match=r"scan.1: is the same volume as 'head' of the test split"):
        make_bench(scan=[*TABLE["scan"], twin])


def test_the_bench_of_the_docs_is_one():
    page = (Path(__file__).parents[2] / "docs" / "bench.md").read_text()
    (example,) = re.findall(r"^```toml\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    bench = load_bench(tomli.loads(example))
    assert [case.id for case in bench.cases()][-1] == "8-views--head--s1"
    assert bench.problem_of("8 views").operator.settings.views == 8 and len(bench.method) == 2


def test_a_problem_is_laid_over_the_base(make_bench: Make):
    bench = make_bench(problem=TWO)
    exact = bench.problem_of("9 views, exact")
    assert (exact.operator.settings.views, exact.noise.name) == (9, "none")
    assert bench.problem_of("4 views").noise.settings.deviation == 0.01


def test_settings_come_from_the_method_then_tuning_then_the_problem(make_bench: Make):
    method = {"name": "dds", "label": "D", "prior": {"name": "toy_white"}, "steps": 7}
    method |= {"start": {"name": "toy_descent"}, "for": {"9 views, exact": {"steps": 9, "start.steps": 4}}}
    bench = make_bench(problem=TWO, method=[method])
    plain, tuned = bench.method[0].part("4 views"), bench.method[0].part("4 views", {"steps": 8, "start.steps": 3})
    assert (plain.settings.steps, plain.settings.start.settings.steps, plain.prior.name) == (7, 6, "toy_white")
    assert (tuned.settings.steps, tuned.settings.start.settings.steps, tuned.label) == (8, 3, "D")
    fixed = bench.method[0].part("9 views, exact", {"steps": 8})
    assert (fixed.settings.steps, fixed.settings.start.settings.steps) == (9, 4)


def test_a_method_like_another_says_only_what_differs(make_bench: Make):
    first = {"name": "dds", "label": "D", "prior": {"name": "toy_white"}, "steps": 7, "start": {"name": "toy_descent"}}
    bench = make_bench(method=[first, {"like": "D", "label": "E", "steps": 9}, {"like": "E", "label": "F", "eta": 0.5}])
    settings = [m.part("4 views").settings for m in bench.method]
    assert [(s.steps, s.eta, s.start.name) for s in settings] == [
        (7, 1.0, "toy_descent"),
        (9, 1.0, "toy_descent"),
        (9, 0.5, "toy_descent"),
    ]
    assert "like" not in bench.resolved()["method"][1]


def test_no_trials_are_no_tuning_and_validation_may_have_seeds_of_its_own(make_bench: Make):
    assert make_bench(tuning={"trials": 0}).tuning is None
    scans = [{**TABLE["scan"][0], "split": "validation"}]
    bench = make_bench(scan=scans, seeds=[0, 1, 2], tuning={"trials": 1, "seeds": [7]})
    assert [case.seed for case in bench.cases("validation")] == [7]


@pytest.mark.parametrize("variant", ["quick", "smoke"])
def test_a_short_form_is_laid_over_the_bench_and_below_set(variant: str, toys: None, tmp_path: Path):
    toml = tmp_path / "b.toml"
    toml.write_text(tomli_w.dumps({**TABLE, variant: {"seeds": [5], "budget": {"steps": 3, "seconds": 2.0}}}))
    assert load_bench(toml).seeds == (0, 1)
    short = load_bench(toml, ["budget.seconds=1.0"], variant)
    assert (short.seeds, short.budget.steps, short.budget.seconds) == ((5,), 3, 1.0)


def test_resolved_it_reads_back_as_the_same_bench(make_bench: Make, tmp_path: Path):
    method = {**TABLE["method"][0], "samples": 2, "search": {"steps": {"low": 1, "high": 9}}, "for": {"4 views": {}}}
    bench = make_bench(problem=TWO, method=[method], tuning={"trials": 2})
    (tmp_path / "bench.toml").write_text(tomli_w.dumps(bench.resolved()))
    again = load_bench(tmp_path / "bench.toml")
    assert again.resolved() == bench.resolved() and bench_sha256(again) == bench_sha256(bench)


def test_its_hash_is_of_what_makes_rows_comparable(make_bench: Make):
    same = bench_sha256(make_bench())
    for change in ("title=other", "timeout_s=9", "method.0.steps=3", "executor.workers=3", "curve_points=0"):
        assert bench_sha256(make_bench(change)) == same, change
    assert bench_sha256(make_bench(method=TABLE["method"][:1])) == same
    for change in (
        "seeds=[0]",
        "base.operator.views=3",
        "base.noise.deviation=0.1",
        "budget.seconds=3",
        "scan.0.item=x",
    ):
        assert bench_sha256(make_bench(change)) != same, change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("base.operator.veiws=3", "base.operator.veiws: unknown key; did you mean `views`?"),
        ("problem.1.set.operator.veiws=3", "problem.1.set.operator.veiws: unknown key; did you mean `views`?"),
        ("method.0.stpes=3", "method.0.solver.stpes: unknown key; did you mean `steps`?"),
        ('method.0.for."4 views".stpes=3', "unknown key; did you mean `steps`?"),
        ('method.0.for."5 views".steps=3', "no problem is labelled '5 views'; there are 4 views, 9 views, exact"),
        ('method.0.for."4 views".label="x"', "may set neither `name` nor `label`; add a [[method]]"),
        ("method.0.search.stpes=[1]", "method.0.search.stpes: unknown key; did you mean `steps`?"),
        ("method.0.search.steps={low=3,high=1}", "needs low < high"),
        ("method.0.label=Short", "two methods would share a folder: 'Short' and 'Short'; rename one"),
        ("method.0.label='short!'", "two methods would share a folder: 'short!' and 'Short'; rename one"),
        ("method.0.like=none", "method.0.like: no method before this one is labelled 'none'; there are none"),
        ("method.1.like=Shrot", "no method before this one is labelled 'Shrot'; there are "),
        ("method.0.name=toy_steered", "method.0: solver 'toy_steered' needs a `prior` table"),
        ("problem.1.tuned_as=four", "should name a problem that is tuned itself; there are 4 views"),
        ("seeds=[1, 1]", "seeds should be different whole numbers"),
        ("scna=[]", "scna: unknown key; did you mean `scan`?"),
        ("tuning.metric=ssim", "tuning: needs either trials or seconds"),
        ("executor.name=loacl", "no executor is called 'loacl'; did you mean `local`?"),
        ("device=cuda:1", 'each worker is given a GPU of its own: write "cuda"'),
        ("budget.seconds=0", "budget.seconds: should be greater than 0"),
    ],
)
def test_a_mistake_is_named_with_its_place(change: str, message: str, make_bench: Make):
    changes: dict[str, Any] = {"problem": TWO}
    with pytest.raises(ConfigError) as caught:
        make_bench(change, **changes)
    assert message in str(caught.value)
    key, *rest = change.split("=")[0].split(".")
    if rest and rest[0].isdigit() and "share a folder" not in message:
        assert caught.value.mistakes[0].place[:2] == (key, int(rest[0]))
    else:
        assert key in str(caught.value)
