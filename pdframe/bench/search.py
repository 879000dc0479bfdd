"""What tuning tries next: the defaults first, then draws from a search space, at random or by Optuna's TPE.

A draw depends only on its key (seed, problem, method, number) and on the trials before it: a search that was killed
goes on as it would have gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pdframe.bench.config import Range
from pdframe.core.seeds import generator
from pdframe.hooks import BackendMissing

#: Draws until a space is taken to be exhausted.
ATTEMPTS = 1000


#: Dotted key of a solver's setting -> its choices, or its range.
Space = Mapping[str, Sequence[Any] | Range]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, and their score: more is better, None if a case failed."""

    settings: Settings
    score: float | None


def propose(
    space: Space, before: Sequence[Trial], *, key: tuple[str | int, ...], sampler: str = "random"
) -> dict[str, Any] | None:
    """The next settings to try, different from all before; {} (the defaults) first, None when there are no more.

    key: what tells this search from others: the seed, problem and method. sampler: "random" or "optuna".
    Raises BackendMissing if Optuna is asked for and missing.
    """
    if not before:
        return {}
    draw = SAMPLERS[sampler](space, before, (*key, len(before))) if space else None
    tried = [dict(trial.settings) for trial in before]
    for _ in range(ATTEMPTS if draw else 0):
        settings = draw()
        if settings not in tried:
            return settings
    return None


def random_draws(space: Space, before: Sequence[Trial], key: tuple[str | int, ...]) -> Callable[[], dict[str, Any]]:
    """Independent draws: choices with equal chances, ranges evenly or log-evenly."""
    seed, *role = key
    rng = generator(int(seed), "tune", *role)
    return lambda: {name: _drawn(choices, rng) for name, choices in space.items()}


def optuna_draws(space: Space, before: Sequence[Trial], key: tuple[str | int, ...]) -> Callable[[], dict[str, Any]]:
    """Draws by Optuna's tree-structured Parzen estimator from the trials before; failed ones are its failed ones."""
    try:
        import optuna
    except ImportError as error:
        raise BackendMissing(
            'tuning.sampler = "optuna" needs Optuna: pip install "pdframe[tune]", or set it to "random"'
        ) from error

    seed, *role = key
    first = int(torch.randint(2**31, (), generator=generator(int(seed), "tune", *role)))
    sampler = optuna.samplers.TPESampler(seed=first, n_startup_trials=min(4, max(1, len(before))))
    with _quiet(optuna):
        study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {name: _distribution(optuna, choices) for name, choices in space.items()}
    for trial in before:
        if trial.settings.keys() == space.keys():
            study.add_trial(_told(optuna, space, distributions, trial))

    def draw() -> dict[str, Any]:
        params = study.ask(distributions).params
        return {name: _choice(space[name], value) for name, value in params.items()}

    return draw


SAMPLERS: Mapping[str, Callable[..., Callable[[], dict[str, Any]]]] = {"random": random_draws, "optuna": optuna_draws}


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Optuna tells of every study that is made; nobody asked."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _drawn(choices: Sequence[Any] | Range, rng: torch.Generator) -> Any:
    if not isinstance(choices, Range):
        return choices[int(torch.randint(len(choices), (), generator=rng))]
    u = float(torch.rand((), generator=rng, dtype=torch.float64))
    half = 0.5 if _whole(choices) else 0.0  # so that both ends are as likely as what lies between
    low, high = choices.low - half, choices.high + half
    value = math.exp(math.log(low) + u * math.log(high / low)) if choices.log else low + u * (high - low)
    return _rounded(choices, value)


def _whole(choices: Range) -> bool:
    return isinstance(choices.low, int) and isinstance(choices.high, int)


def _rounded(choices: Range, value: float) -> float | int:
    """A whole number, or three digits: enough to tune with, and a person can read them."""
    value = round(value) if _whole(choices) else float(f"{value:.3g}")
    return min(max(value, choices.low), choices.high)


def _distribution(optuna: Any, choices: Sequence[Any] | Range) -> Any:
    if not isinstance(choices, Range):  # by place: a choice may be a list or a table
        return optuna.distributions.CategoricalDistribution(list(range(len(choices))))
    kind = optuna.distributions.IntDistribution if _whole(choices) else optuna.distributions.FloatDistribution
    return kind(choices.low, choices.high, log=choices.log)


def _told(optuna: Any, space: Space, distributions: Mapping[str, Any], trial: Trial) -> Any:
    state = optuna.trial.TrialState
    return optuna.trial.create_trial(
        params={name: _place(space[name], value) for name, value in trial.settings.items()},
        distributions=dict(distributions),
        value=trial.score,
        state=state.FAIL if trial.score is None else state.COMPLETE,
    )


def _place(choices: Sequence[Any] | Range, value: Any) -> Any:
    return value if isinstance(choices, Range) else list(choices).index(value)


def _choice(choices: Sequence[Any] | Range, value: Any) -> Any:
    return _rounded(choices, value) if isinstance(choices, Range) else choices[value]
