"""An experiment as a TOML tells it: read, completed by the plugins' own settings, checked, dumped and hashed.

A table that names a plugin (`[solver] name = "dds"`) is checked by that plugin's Config, and only plugins that are
named are imported. `extends` and `--set` are laid over each other as tables before anything is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import Field, PrivateAttr, ValidationError, model_validator

from pdframe import layers, registry
from pdframe.hooks import Config, NameOrFile
from pdframe.mistakes import ConfigError, explain
from pdframe.part import Part, PartOf

if TYPE_CHECKING:
    from pdframe.core import budget as core_budget

OperatorPart = Annotated[Part, PartOf("operator")]
PriorPart = Annotated[Part, PartOf("prior")]
SolverPart = Annotated[Part, PartOf("solver")]
DatasetPart = Annotated[Part, PartOf("dataset")]
MetricPart = Annotated[Part, PartOf("metric")]
NoisePart = Annotated[Part, PartOf("noise")]
TaskPart = Annotated[Part, PartOf("task")]
ExecutorPart = Annotated[Part, PartOf("executor")]

AnyConfig = TypeVar("AnyConfig", bound=Config)


class Measurement(Config):
    """How the measurement is simulated from the truth, or where a frozen one is."""

    seed: int = Field(0, ge=0, description="seed of the noise; the solver has its own")
    frozen: NameOrFile = Field("", description="name or file of a frozen measurement, used instead of simulating one")
    simulate_on: Literal["native", "grid"] = Field(
        "native", description="simulate on the dataset's native (finer) grid where it has one, or on the grid itself"
    )
    detector_oversampling: int = Field(1, ge=1, description="detector samples per pixel and axis in the simulation")


class Budget(Config):
    """Where a solve stops, in the currencies that a run is charged in; what is left out is not limited."""

    seconds: float | None = Field(None, gt=0)
    network_voxels: float | None = Field(None, gt=0, description="voxel-evaluations of the network")
    network_flops: float | None = Field(None, gt=0, description="floating-point operations of the network")
    view_calls: int | None = Field(None, gt=0, description="projected and back-projected views")
    peak_memory_bytes: int | None = Field(
        None, gt=0, description="memory at its highest: of the GPU, or on a CPU of the whole process"
    )
    steps: int | None = Field(None, gt=0, description="outer iterations of the solver")

    def build(self) -> core_budget.Budget:
        """The same limits as `solve` takes them."""
        from pdframe.core.budget import Budget as Limits

        return Limits(**dict(self))


class Report(Config):
    """What the picture shows."""

    window_hu: tuple[float, float] = Field((-1000.0, 400.0), description="grey-value window, HU")

    @model_validator(mode="after")
    def _window_opens(self) -> Report:
        if not self.window_hu[0] < self.window_hu[1]:
            raise ValueError(f"window_hu must be (low, high) with low < high, got {list(self.window_hu)}")
        return self


class FromFile(Config):
    """Settings that a command reads from one file."""

    _source: Path | None = PrivateAttr(None)

    @property
    def source(self) -> Path | None:
        """The file that it was read from, if it was."""
        return self._source


class Experiment(FromFile):
    """One experiment: a problem simulated from a dataset's item, solved by one method or by several side by side."""

    title: str = ""
    seed: int = Field(0, ge=0, description="seed of the solver")
    device: str = Field("auto", description='"auto", "cpu", "cuda", "cuda:1"...')
    samples: int = Field(1, ge=1, description="posterior samples drawn by a solver that draws")
    item: str = Field("", description="name of the dataset's item; empty for the first")
    dataset: DatasetPart
    operator: OperatorPart
    noise: NoisePart | None = None
    measurement: Measurement = Measurement()
    prior: PriorPart | None = Field(None, description="prior of every method that asks for one and has none of its own")
    solver: SolverPart
    compare: tuple[SolverPart, ...] = Field((), description="further methods on the same measurement")
    budget: Budget = Budget()
    metrics: MetricPart | None = None
    report: Report = Report()

    @model_validator(mode="after")
    def _methods_are_complete(self) -> Experiment:
        labels = [method.label for method in self.methods]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"two methods are labelled {twice[0]!r}; give one another `label`")
        for method in self.methods:
            if "prior" in method.needs and method.prior is None:
                raise ValueError(f"solver {method.name!r} needs a [prior] table")
        return self

    @property
    def methods(self) -> tuple[Part, ...]:
        """The solver and those it is compared with, each with the prior that it is to use."""
        return tuple(method.with_prior(self.prior) for method in (self.solver, *self.compare))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every plugin that this experiment names."""
        named = (self.dataset, self.operator, self.noise, self.prior, self.metrics)
        own_priors = [method.prior for method in (self.solver, *self.compare)]
        return tuple(p for p in (*named, self.solver, *self.compare, *own_priors) if p is not None)

    def require(self) -> None:
        """BackendMissing, before any work is done, if a plugin named here lacks a library on this machine."""
        for part in self.parts:
            registry.require(part.entry)

    def run(self, out_dir: str | os.PathLike[str] | None = None, **options: Any) -> Any:
        """`pdframe.run.run_experiment` on this experiment."""
        from pdframe.run import run_experiment

        return run_experiment(self, out_dir=out_dir, **options)


class Sampling(Config):
    """Volumes drawn from a prior alone."""

    title: str = ""
    seed: int = Field(0, ge=0)
    device: str = Field("auto", description='"auto", "cpu", "cuda", "cuda:1"...')
    samples: int = Field(1, ge=1, description="volumes to draw")
    shape: tuple[int, ...] = Field((128, 128, 128), description="voxels along (z, y, x)")
    spacing_mm: tuple[float, ...] = Field((2.75, 2.75, 2.75), description="voxel size along (z, y, x)")
    steps: int = Field(50, ge=1, description="noise levels")
    eta: float = Field(0.85, ge=0, le=1, description="share of fresh noise in each DDIM step; 0 is deterministic")
    rounds: int = Field(1, ge=1, description="rounds at each level, re-noised to the same level in between (K)")
    tilings: int = Field(1, ge=1, description="denoiser calls averaged in each round, each with a fresh tiling (K)")
    prior: PriorPart
    nearest: DatasetPart | None = Field(None, description="dataset whose nearest volume is shown beside each sample")
    report: Report = Report()

    @model_validator(mode="after")
    def _one_spacing_per_axis(self) -> Sampling:
        if len(self.shape) != len(self.spacing_mm) or min(self.shape) < 1 or min(self.spacing_mm) <= 0:
            raise ValueError(
                f"shape and spacing_mm need one positive value per axis, got {self.shape} and {self.spacing_mm}"
            )
        return self


def load(source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in a TOML file (or in a dict), after `overrides` such as "solver.steps=20".

    ConfigError names the file, the place and the nearest valid name of each mistake.
    """
    return read(Experiment, source, overrides)


def load_sampling(source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()) -> Sampling:
    """The sampling in a TOML file (or in a dict): as `load`, for `pdframe sample`."""
    return read(Sampling, source, overrides)


def read(
    model: type[AnyConfig],
    source: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str] = (),
    variant: str = "",
) -> AnyConfig:
    """Any Config from a TOML file or a dict, with `extends` and `overrides` applied.

    variant: a table of the file, such as [quick], that is laid over the rest before `overrides` are.
    """
    stack = [layers.Layer("settings", dict(source))] if isinstance(source, Mapping) else layers.read(Path(source))
    if variant:
        stack.append(layers.variant(stack, variant))
    stack += [layers.override(text) for text in overrides]
    try:
        config = model.model_validate(layers.merged(stack))
    except ValidationError as error:
        mistakes = explain(error, model)
        raise ConfigError(mistakes, {m: layers.blame(stack, m.place) for m in mistakes}) from None
    if isinstance(config, FromFile) and not isinstance(source, Mapping):
        config._source = Path(source).resolve()
    return config


def dump(config: Config) -> str:
    """The resolved settings as TOML: every default filled in, paths absolute. `load` reads it back as it was."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True, by_alias=True))


def sha256(config: Config) -> str:
    """Hash of the resolved settings, the same on every machine: keys sorted, paths relative to the TOML's folder."""
    return table_sha256(config.model_dump(mode="python", exclude_none=True, by_alias=True), _folder_of(config))


def table_sha256(table: Mapping[str, Any], folder: Path) -> str:
    """Hash of a table of settings as `model_dump(mode="python")` gives it; paths count relative to `folder`."""

    def plain(value: object) -> object:
        if isinstance(value, Path):
            return _relative(value, folder)
        if isinstance(value, Enum):
            return value.value
        raise TypeError(f"a setting must be text, a number, a path, or a table or list of these: got {value!r}")

    text = json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()


def named_files(config: FromFile) -> dict[str, str]:
    """SHA-256 of every file that the settings name and that is there, by its path relative to the TOML's folder."""
    folder = _folder_of(config)
    found: dict[str, str] = {}

    def walk(value: object) -> None:
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, list | tuple):
            for one in value:
                walk(one)
        elif isinstance(value, Path) and value.is_file():
            with value.open("rb") as file:
                found[_relative(value, folder)] = hashlib.file_digest(file, "sha256").hexdigest()

    walk(config.model_dump(mode="python", exclude_none=True, by_alias=True))
    return found


def _folder_of(config: Config) -> Path:
    """What paths count relative to."""
    return config.source.parent if isinstance(config, FromFile) and config.source else Path.cwd()


def _relative(path: Path, folder: Path) -> str:
    """The same on every machine."""
    return Path(os.path.relpath(path, folder)).as_posix()


def schema(model: type[Config] = Experiment) -> dict[str, Any]:
    """JSON Schema of a TOML over all installed plugins: a table's `name` decides what it may hold."""
    table = model.model_json_schema()
    file_name = {"type": "string", "description": "TOML that this one is laid over"}
    table["properties"]["extends"] = {"anyOf": [file_name, {"type": "array", "items": file_name}]}
    title = f"pdframe {model.__name__.lower()}"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **table, "title": title}
