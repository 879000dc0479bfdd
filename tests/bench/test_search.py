"""What tuning tries: defaults first, then draws that stay in their space and do not depend on chance or on a kill."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch

from pdframe.bench.config import Range
from pdframe.bench.search import Trial, propose
from pdframe.hooks import BackendMissing

SPACE = {"weight": Range(low=1e-6, high=1e-2, log=True), "steps": Range(low=5, high=8), "order": ["cg", "gd"]}

TOLD = {key: value.model_dump() if isinstance(value, Range) else value for key, value in SPACE.items()}


def search(number: int, sampler: str = "random", space=SPACE, key=(0, "8 views", "TV"), score=lambda s: 0.0) -> list:
    trials: list[Trial] = []
    for _ in range(number):
        settings = propose(space, trials, key=key, sampler=sampler)
        if settings is None:
            break
        trials.append(Trial(settings, score(settings)))
    return trials


@pytest.fixture(params=["random", "optuna"])
def sampler(request: pytest.FixtureRequest) -> str:
    if request.param == "optuna":
        pytest.importorskip("optuna", reason="optuna is not installed")
    return request.param


def test_defaults_come_first_then_draws_within_the_space(sampler, capfd):
    before = torch.get_rng_state()
    first, *rest = (trial.settings for trial in search(12, sampler))
    assert first == {}
    assert len(rest) == 11
    for settings in rest:
        assert settings.keys() == SPACE.keys()
        assert 1e-6 <= settings["weight"] <= 1e-2
        assert settings["steps"] in (5, 6, 7, 8) and isinstance(settings["steps"], int)
        assert settings["order"] in ("cg", "gd")
    assert torch.equal(before, torch.get_rng_state())
    assert capfd.readouterr() == ("", "")


def test_a_search_that_was_killed_goes_on_as_it_would_have_gone(sampler):
    whole = search(9, sampler, score=lambda s: s.get("weight", 0.0))
    for number in (1, 4, 8):
        key = (0, "8 views", "TV")
        assert propose(SPACE, whole[:number], key=key, sampler=sampler) == whole[number].settings
    code = (
        "from pdframe.bench.config import Range; from pdframe.bench.search import Trial, propose\n"
        f"trials = {[(t.settings, t.score) for t in whole[:4]]!r}\n"
        f"space = {{k: Range(**v) if isinstance(v, dict) else v for k, v in {TOLD!r}.items()}}\n"
        f"print(propose(space, [Trial(*t) for t in trials], key={key!r}, sampler={sampler!r}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}  # another process hashes otherwise
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout.strip() == repr(whole[4].settings)


def test_other_keys_draw_otherwise():
    drawn = [search(2, key=key)[1].settings for key in ((0, "a", "m"), (1, "a", "m"), (0, "b", "m"), (0, "a", "n"))]
    assert len({settings["weight"] for settings in drawn}) == 4


def test_a_logarithmic_range_is_even_in_its_logarithm():
    space = {"w": Range(low=1e-4, high=1.0, log=True)}
    decades = [math.floor(math.log10(t.settings["w"])) for t in search(401, space=space)[1:]]
    for decade in (-4, -3, -2, -1):  # 400 draws in four equal bins: three deviations
        assert decades.count(decade) == pytest.approx(100, abs=26)


def test_integers_are_drawn_evenly_ends_included():
    space = {"n": Range(low=1, high=4), "free": Range(low=0.0, high=1.0)}
    drawn = [t.settings["n"] for t in search(401, space=space)[1:]]
    for n in (1, 2, 3, 4):
        assert drawn.count(n) == pytest.approx(100, abs=26)


def test_nothing_is_tried_twice_and_a_small_space_ends(sampler):
    trials = search(20, sampler, space={"order": ["cg", "gd", "lsqr"]})
    assert sorted(t.settings["order"] for t in trials[1:]) == ["cg", "gd", "lsqr"]
    assert [t.settings for t in search(20, sampler, space={})] == [{}]


def test_what_is_drawn_can_be_read_by_a_person(sampler):
    for trial in search(8, sampler)[1:]:
        assert trial.settings["weight"] == float(f"{trial.settings['weight']:.3g}")


def test_optuna_finds_a_peak_sooner_than_chance_and_lives_with_failures():
    pytest.importorskip("optuna", reason="optuna is not installed")

    def score(settings):
        weight = settings.get("weight", 1e-6)
        return None if weight > 5e-3 else -abs(math.log10(weight) + 4.0)

    def mean(sampler):
        found = [t.score for seed in range(3) for t in search(25, sampler, key=(seed, "p", "m"), score=score)[12:]]
        return sum(s for s in found if s is not None) / len(found)

    assert mean("optuna") > mean("random") + 0.1


def test_without_optuna_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(BackendMissing, match=r'pip install "pdframe\[tune\]"'):
        search(2, "optuna")
