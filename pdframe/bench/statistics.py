"""Numbers with what is known of their error: bootstrap intervals, exact sign-flip tests, Holm's correction.

A case is (patient, seed). Patients are what a claim is made about; seeds of one patient are not independent of each
other, so patients are resampled first and flipped whole. Each scan counts as a patient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from pdframe.core.seeds import generator

Case = tuple[str, int]

#: Up to this many patients every combination of signs is tried; beyond, FLIPS of them are drawn.
EXACT_PATIENTS = 16
FLIPS = 100_000


@dataclass(frozen=True)
class Interval:
    """A mean over patients (of means over seeds) and its confidence interval; low and high are None for one case.

    patients: 1 if only seeds could be resampled; the interval then speaks of that patient alone.
    seeds: the number of different seeds; cases: of values, fewer than patients x seeds where some are missing.
    """

    mean: float
    low: float | None
    high: float | None
    patients: int
    seeds: int
    cases: int


def interval(values: Mapping[Case, float], *, level: float = 0.95, resamples: int = 10_000) -> Interval:
    """The mean of the values by case and its hierarchical bootstrap interval, always the same for the same values.

    Patients are drawn with replacement, then seeds within each drawn patient. Percentiles are expanded for few
    patients (Hesterberg, The American Statistician 69, 2015, section 5.3), so that on Gaussian data they agree with
    Student's t as far as resampling can: an interval never leaves the range of its values, see `most_coverage`.
    Raises ValueError without values, or if one is not finite.
    """
    groups = _by_patient(values)
    facts = (len(groups), len({seed for _, seed in values}), len(values))
    mean = patient_mean(values)
    if len(values) == 1:
        return Interval(mean, None, None, *facts)
    units = len(groups) if len(groups) > 1 else len(values)
    tail = _expanded_tail((1.0 - level) / 2.0, units)
    means = _resampled_means(groups, resamples)
    low, high = torch.quantile(means, torch.tensor([tail, 1.0 - tail], dtype=torch.float64)).tolist()
    return Interval(mean, low, high, *facts)


def patient_mean(values: Mapping[Case, float]) -> float:
    """The mean over patients of their means over seeds; for a choice between settings, never for a table."""
    return float(torch.stack([group.mean() for group in _by_patient(values)]).mean())


def most_coverage(patients: int) -> float:
    """How often the range of n patients holds the median, 1 - 2^(1-n): more no interval by resampling can promise."""
    return 1.0 - 2.0 ** (1 - patients)


def sign_flip_p(differences: Mapping[Case, float]) -> float:
    """Two-sided p of "the method and its reference differ by chance": the mean against itself with patients' signs
    flipped. Exact up to `EXACT_PATIENTS` patients (then at least 2^(1-n)), by Monte Carlo beyond.
    """
    means = torch.stack([group.mean() for group in _by_patient(differences)])
    n = len(means)
    if n <= EXACT_PATIENTS:  # a common flip of all signs changes nothing, so the first sign stays
        bits = torch.arange(2 ** (n - 1))[:, None] >> torch.arange(n)[None, :] & 1
    else:
        bits = torch.randint(2, (FLIPS, n), generator=generator(0, "sign flip"))
    sums = ((1 - 2 * bits).double() @ means).abs()
    as_large = int((sums >= means.sum().abs() - 1e-12 * means.abs().sum()).sum())
    return as_large / len(sums) if n <= EXACT_PATIENTS else (1 + as_large) / (1 + len(sums))


def holm(p_values: Sequence[float]) -> list[float]:
    """p corrected for their number, in the order they came (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def student_quantile(probability: float, freedom: int) -> float:
    """t with P(T <= t) = probability >= 1/2, Student's distribution with `freedom` >= 1 degrees of freedom."""
    wanted, low, high = 2.0 * probability - 1.0, 0.0, math.pi / 2.0
    for _ in range(60):
        angle = (low + high) / 2.0
        low, high = (angle, high) if _student_within(angle, freedom) < wanted else (low, angle)
    return math.tan(low) * math.sqrt(freedom)


def _student_within(angle: float, freedom: int) -> float:
    """P(|T| <= tan(angle) sqrt(freedom)): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total


def _expanded_tail(tail: float, units: int) -> float:
    """The tail of the resampled means whose interval is as wide as Student's."""
    return NormalDist().cdf(-student_quantile(1.0 - tail, units - 1) * math.sqrt(units / (units - 1)))


def _resampled_means(groups: Sequence[Tensor], resamples: int) -> Tensor:
    """(resamples,) means over patients drawn with replacement and, in each, over seeds drawn with replacement."""
    rng = generator(0, "bootstrap")
    patients, most = len(groups), max(len(group) for group in groups)
    table = torch.zeros(patients, most, dtype=torch.float64)
    for row, group in zip(table, groups, strict=True):
        row[: len(group)] = group
    count = torch.tensor([len(group) for group in groups])
    drawn = torch.randint(patients, (resamples, patients), generator=rng)
    room = count[drawn][..., None]
    seeds = (torch.rand(resamples, patients, most, generator=rng, dtype=torch.float64) * room).long()
    values = table[drawn[..., None], seeds] * (torch.arange(most) < room)
    return (values.sum(-1) / room[..., 0]).mean(-1)


def _by_patient(values: Mapping[Case, float]) -> list[Tensor]:
    """The values of each patient, float64; sorted, so that the order of the rows changes nothing."""
    if not values:
        raise ValueError("there are no values to summarise: no case has a number")
    if wrong := [case for case, value in values.items() if not math.isfinite(value)]:
        raise ValueError(f"the value of case {wrong[0]} is not finite: a failed case has no number, leave it out")
    patients = sorted({patient for patient, _ in values})
    return [
        torch.tensor([values[case] for case in sorted(values) if case[0] == patient], dtype=torch.float64)
        for patient in patients
    ]
