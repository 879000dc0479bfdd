"""Intervals, tests and corrections against closed forms, other implementations and worked examples."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from pdframe.bench import statistics
from pdframe.bench.statistics import holm, interval, most_coverage, sign_flip_p, student_quantile
from pdframe.core.seeds import generator


def cases(*patients: list[float]) -> dict[tuple[str, int], float]:
    return {(f"p{i}", seed): value for i, group in enumerate(patients) for seed, value in enumerate(group)}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed, "test"), dtype=torch.float64)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 8, 29, 100])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.9995])
def test_student_quantiles_agree_with_scipy(freedom, probability):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9)


def test_many_gaussian_patients_give_students_interval():
    values = normal(60)
    found = interval({(f"p{i}", 0): v for i, v in enumerate(values.tolist())})
    half = student_quantile(0.975, 59) * float(values.std()) / math.sqrt(60)
    assert found.mean == pytest.approx(float(values.mean()), abs=1e-12)
    # A percentile of 10 000 resamples is off by about 3 % of the half width; a finite sample's skewness adds to it.
    assert found.mean - found.low == pytest.approx(half, rel=0.1)
    assert found.high - found.mean == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize("patients", [7, 12])
def test_an_interval_covers_the_mean_as_often_as_it_says(patients):
    draws = normal(400, patients)
    hits = 0
    for row in draws.tolist():
        found = interval({(f"p{i}", 0): v for i, v in enumerate(row)}, resamples=1000)
        hits += found.low <= 0.0 <= found.high
    # Binomial(400, 0.95) has a deviation of 1.1 %; resampling seven patients may lose two more.
    assert 0.91 <= hits / len(draws) <= 0.98


def test_two_patients_span_the_whole_interval_and_half_the_truth():
    found = interval(cases([1.0], [3.0]))
    assert (found.mean, found.low, found.high) == (2.0, 1.0, 3.0)
    drawn = [interval(cases([a], [b]), resamples=200) for a, b in normal(400, 2).tolist()]
    assert most_coverage(2) == 0.5
    assert sum(one.low <= 0.0 <= one.high for one in drawn) / 400 == pytest.approx(0.5, abs=0.08)
    assert most_coverage(6) > 0.95 > most_coverage(5)


def test_patients_weigh_the_same_however_many_seeds_they_have():
    found = interval(cases([0.0, 0.0, 0.0], [6.0]))
    assert found.mean == 3.0
    assert (found.patients, found.seeds, found.cases) == (2, 3, 4)


def test_seeds_of_one_patient_do_not_pass_for_patients():
    """Ten seeds of two patients that differ: the interval stays as wide as the patients are apart."""
    wide = interval(cases([1.0] * 10, [3.0] * 10))
    narrow = interval(cases(*([v] for v in [1.0] * 10 + [3.0] * 10)))
    assert wide.high - wide.low == 2.0
    assert narrow.high - narrow.low < 1.2


def test_seeds_are_resampled_within_a_patient():
    found = interval(cases([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert found.patients == 1
    assert 1.0 <= found.low < 3.0 < found.high <= 5.0


def test_one_case_has_no_interval():
    found = interval({("p", 0): 2.0})
    assert (found.mean, found.low, found.high, found.cases) == (2.0, None, None, 1)


def test_the_order_of_rows_changes_nothing_and_nothing_is_drawn_from_the_global_state():
    values = cases([1.0, 4.0], [2.0, 7.0], [3.0, 1.5])
    before = torch.get_rng_state()
    assert interval(values) == interval(dict(reversed(values.items())))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("values", [{}, {("p", 0): math.nan}, {("p", 0): math.inf}])
def test_what_is_no_number_is_refused(values):
    with pytest.raises(ValueError, match="no case has a number|not finite"):
        interval(values)


def test_sign_flips_of_few_patients_are_exact():
    values = [0.9, -0.2, 1.4, 0.5, 0.3]
    sums = [sum(s * v for s, v in zip(signs, values, strict=True)) for signs in product((1, -1), repeat=5)]
    expected = sum(abs(s) >= sum(values) - 1e-9 for s in sums) / 32
    assert sign_flip_p(cases(*([v] for v in values))) == expected == 4 / 32


def test_sign_flips_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    values = (normal(10) + 0.5).numpy()
    found = stats.permutation_test((values,), lambda v, axis: v.mean(axis), permutation_type="samples", n_resamples=1e4)
    assert sign_flip_p({(f"p{i}", 0): float(v) for i, v in enumerate(values)}) == pytest.approx(found.pvalue)


@pytest.mark.parametrize("patients", [2, 5, 8])
def test_the_smallest_p_is_that_of_the_patients_not_of_the_seeds(patients):
    assert sign_flip_p(cases(*([1.0 + i, 2.0 + i, 1.5 + i] for i in range(patients)))) == 2.0 ** (1 - patients)


def test_no_difference_has_p_one():
    assert sign_flip_p(cases([0.0], [0.0], [0.0])) == 1.0


def test_drawn_flips_agree_with_all_flips(monkeypatch):
    values = cases(*([v] for v in (normal(12) + 0.4).tolist()))
    exact = sign_flip_p(values)
    monkeypatch.setattr(statistics, "EXACT_PATIENTS", 4)
    # 100 000 draws: three standard errors.
    assert sign_flip_p(values) == pytest.approx(exact, abs=3 * math.sqrt(exact * (1 - exact) / 1e5))


def test_p_is_uniform_when_nothing_differs():
    p = torch.tensor([sign_flip_p({(f"p{i}", 0): v for i, v in enumerate(r)}) for r in normal(500, 8).tolist()])
    for level in (0.1, 0.25, 0.5):
        assert float((p <= level).double().mean()) == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / 500))


def test_holm_follows_a_worked_example():
    # Four hypotheses: 0.01 x 4, 0.02 x 3, 0.03 x 2 -> 0.06 held, 0.04 x 1 -> 0.06 held.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
