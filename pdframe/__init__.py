"""pdframe: a modular plugin framework for inverse problems.

The public names below are imported on first use, so that `import pdframe` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdframe.config import Experiment as Experiment
    from pdframe.config import load as load
    from pdframe.core.budget import Budget as Budget
    from pdframe.core.budget import Usage as Usage
    from pdframe.core.grid import Grid as Grid
    from pdframe.core.noise import Noise as Noise
    from pdframe.core.operator import ForwardOperator as ForwardOperator
    from pdframe.core.operator import adjoint_mismatch as adjoint_mismatch
    from pdframe.core.operator import apply as apply
    from pdframe.core.operator import apply_adjoint as apply_adjoint
    from pdframe.core.operator import operator_norm as operator_norm
    from pdframe.core.operator import pseudoinverse as pseudoinverse
    from pdframe.core.prior import Prior as Prior
    from pdframe.core.prior import score as score
    from pdframe.core.problem import Case as Case
    from pdframe.core.problem import Dataset as Dataset
    from pdframe.core.problem import Item as Item
    from pdframe.core.problem import Metric as Metric
    from pdframe.core.problem import Problem as Problem
    from pdframe.core.solve import Posterior as Posterior
    from pdframe.core.solve import Solution as Solution
    from pdframe.core.solve import Status as Status
    from pdframe.core.solve import posterior as posterior
    from pdframe.core.solve import solve as solve
    from pdframe.core.solver import Progress as Progress
    from pdframe.core.solver import Solver as Solver
    from pdframe.hooks import BackendMissing as BackendMissing
    from pdframe.hooks import Config as Config
    from pdframe.hooks import Entry as Entry
    from pdframe.hooks import hookimpl as hookimpl
    from pdframe.mistakes import ConfigError as ConfigError
    from pdframe.registry import RegistryError as RegistryError
    from pdframe.registry import build as build
    from pdframe.registry import entries as entries

_NAMES = {
    "config": ("Experiment", "load"),
    "core.budget": ("Budget", "Usage"),
    "core.grid": ("Grid",),
    "core.noise": ("Noise",),
    "core.operator": (
        "ForwardOperator",
        "adjoint_mismatch",
        "apply",
        "apply_adjoint",
        "operator_norm",
        "pseudoinverse",
    ),
    "core.prior": ("Prior", "score"),
    "core.problem": ("Case", "Dataset", "Item", "Metric", "Problem"),
    "core.solve": ("Posterior", "Solution", "Status", "posterior", "solve"),
    "core.solver": ("Progress", "Solver"),
    "hooks": ("BackendMissing", "Config", "Entry", "hookimpl"),
    "mistakes": ("ConfigError",),
    "registry": ("RegistryError", "build", "entries"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("pdframe")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pdframe' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pdframe.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
