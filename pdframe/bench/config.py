"""A bench as a TOML tells it: cases = problems x scans x seeds, methods, budget; read, completed, checked, hashed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, GetJsonSchemaHandler, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from pdframe import layers, registry, runfolder
from pdframe.config import (
    Budget,
    DatasetPart,
    ExecutorPart,
    FromFile,
    Measurement,
    MetricPart,
    NoisePart,
    OperatorPart,
    SolverPart,
    read,
    table_sha256,
)
from pdframe.hooks import Config
from pdframe.mistakes import nested
from pdframe.part import Part, PartOf

Split = Literal["validation", "test"]


class Base(Config):
    """What a problem is, apart from the scan: how it is measured, and how the answer is judged."""

    operator: OperatorPart
    noise: NoisePart | None = None
    measurement: Measurement = Field(Measurement(), description="how it is simulated; its seed is that of the case")
    metrics: MetricPart


class Problem(Config):
    """One problem: [base] with some of its keys set otherwise."""

    label: str = "all"
    set: dict[str, Any] = Field({}, description="table laid over [base]")
    tuned_as: str | None = Field(None, description="label of the problem whose tuned settings it takes; none: its own")

    @property
    def tuned_on(self) -> str:
        """Label of the problem on which its settings are tuned."""
        return self.tuned_as or self.label


class Scan(Config):
    """One truth: an item of a dataset, and the split that it belongs to."""

    label: str = Field(min_length=1)
    split: Split = "test"
    dataset: DatasetPart
    item: str = Field("", description="name of the dataset's item; empty for the first")


class Range(Config):
    """Values between two numbers; whole numbers if both ends are."""

    low: int | float
    high: int | float
    log: bool = Field(False, description="drawn evenly in the logarithm")

    @model_validator(mode="after")
    def _it_is_one(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"needs low < high, and low > 0 with log = true: got {self.low} and {self.high}")
        return self


class Method(Config):
    """A solver's table with a label, and how it is sampled and tuned. Keys of the solver stand beside these."""

    samples: int = Field(1, ge=1, description="independent posterior samples")
    search: dict[str, tuple[Any, ...] | Range] = Field(
        {}, description="what tuning may choose: setting (dotted inside tables) -> list of values, or {low, high, log}"
    )
    settings_for: dict[str, dict[str, Any]] = Field(
        {}, alias="for", description="settings that hold for one problem, by its label"
    )
    solver: SolverPart

    @model_validator(mode="before")
    @classmethod
    def _solver_apart(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        own = {key: raw[key] for key in registry.METHOD_KEYS if key in raw}
        rest = {key: value for key, value in raw.items() if key not in own}
        return own if not rest else {**own, "solver": layers.over(own.get("solver", {}), rest)}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """As it is written in a TOML: the solver's keys beside its own, or laid over another method."""
        table = handler.resolve_ref_schema(handler(core))
        own = {key: value for key, value in table["properties"].items() if key != "solver"}
        beside = [
            {**choice, "properties": {**choice["properties"], **own}}
            for choice in table["properties"]["solver"].get("oneOf", ())
        ]
        like = {"type": "object", "properties": {"like": {"type": "string"}, **own}, "required": ["like"]}
        return {
            "anyOf": [*beside, {**like, "description": "a method laid over the one of that label, before it"}, table]
        }

    @property
    def label(self) -> str:
        """Its name in tables."""
        return self.solver.label

    def part(self, problem: str, chosen: Mapping[str, Any] | None = None) -> Part:
        """The solver for one problem: its table, what tuning chose, what `for` says of the problem, in this order."""
        table = self.solver.table()
        for key, value in (chosen or {}).items():
            table = layers.over(table, layers.nest(key, value))
        for key, value in self.settings_for.get(problem, {}).items():
            table = layers.over(table, layers.nest(key, value))
        return PartOf("solver").read(table)


class Tuning(Config):
    """How the settings of the methods are chosen, on the validation split alone, with equal effort."""

    trials: int | None = Field(
        None, ge=0, description="settings tried for each method; this or `seconds`. 0: no tuning, settings as written"
    )
    seconds: float | None = Field(None, gt=0, description="solver seconds given to each method")
    metric: str = Field("psnr_db", description="what is best, averaged over the validation cases")
    goal: Literal["highest", "lowest"] = Field("highest", description="which value of the metric is best")
    seed: int = Field(0, ge=0)
    sampler: Literal["random", "optuna"] = "random"
    seeds: tuple[int, ...] | None = Field(
        None, min_length=1, description="noise seeds of the validation cases; default: those of the bench"
    )
    samples: int | None = Field(None, ge=1, description="samples that a trial draws; default: those of the method")

    @model_validator(mode="after")
    def _one_currency(self) -> Tuning:
        if (self.trials is None) == (self.seconds is None):
            raise ValueError("needs either trials or seconds")
        return self


@dataclass(frozen=True)
class CasePlan:
    """One cell of problems x scans x seeds. `id` names its folder."""

    id: str
    problem: str
    scan: str
    split: Split
    seed: int


class Bench(FromFile):
    """Many methods on the same frozen measurements."""

    title: str = ""
    device: str = Field("auto", description='"auto", "cpu", "cuda"...; which of several GPUs, the executor decides')
    base: dict[str, Any] = Field({}, description="what all problems share: operator, noise, measurement, metrics")
    problem: tuple[Problem, ...] = Field((Problem(),), min_length=1, description="default: one, [base] as it is")
    scan: tuple[Scan, ...] = Field(min_length=1, description="the truths, apart for tuning and for testing")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="seed of a case: of its noise and of the solvers")
    method: tuple[Method, ...] = Field(min_length=1, description="what is compared")
    budget: Budget = Field(Budget(), description="limits of each solve, the same for all methods; none: to convergence")
    timeout_s: float = Field(3600.0, gt=0, description="wall clock after which a row is given up")
    memory_limit_gib: float | None = Field(None, gt=0, description="memory that a row may take; beyond it, it fails")
    curve_points: int = Field(
        16, ge=0, description="points of quality against cost for each row, and for what it starts from; 0: no curve"
    )
    executor: ExecutorPart = Field(
        default_factory=lambda: PartOf("executor").read({"name": "local"}),
        description="where the rows are run; default: local",
    )
    tuning: Tuning | None = Field(None, description="how settings are chosen; none: they are as written")
    quick: dict[str, Any] = Field({}, description="laid over the bench by --quick")
    smoke: dict[str, Any] = Field({}, description="laid over the bench by --smoke")

    _bases: dict[str, Base] = PrivateAttr(default_factory=dict)

    @field_validator("method", mode="before")
    @classmethod
    def _methods_like_others(cls, methods: Any) -> Any:
        """A method with `like = "label"` is laid over the one of that label, which stands before it."""
        if not isinstance(methods, list | tuple) or not all(isinstance(table, Mapping) for table in methods):
            return methods
        whole: list[Mapping[str, Any]] = []
        for i, table in enumerate(methods):
            own = {key: value for key, value in table.items() if key != "like"}
            if "like" in table:
                known = {other.get("label"): other for other in whole}
                if table["like"] not in known:
                    before = ", ".join(str(label) for label in known if label) or "none"
                    raise _at(
                        (i, "like"), f"no method before this one is labelled {table['like']!r}; there are {before}"
                    )
                own = layers.over(known[table["like"]], own)
            whole.append(own)
        return whole

    @field_validator("tuning")
    @classmethod
    def _no_trials_is_no_tuning(cls, tuning: Tuning | None) -> Tuning | None:
        return None if tuning is not None and tuning.trials == 0 else tuning

    @field_validator("device")
    @classmethod
    def _no_gpu_by_its_number(cls, device: str) -> str:
        kind, _, number = device.partition(":")
        if number:
            raise ValueError(
                f'each worker is given a GPU of its own: write "{kind}", and choose GPUs by the environment variable '
                "CUDA_VISIBLE_DEVICES"
            )
        return device

    @model_validator(mode="after")
    def _names_are_different(self) -> Bench:
        for kind, labels in (
            ("problems", [p.label for p in self.problem]),
            ("scans", [s.label for s in self.scan]),
            ("methods", [m.label for m in self.method]),
        ):
            slugs = [runfolder.folder_names([label])[0] for label in labels]
            for i, name in enumerate(slugs):
                if name in slugs[:i]:
                    first = labels[slugs.index(name)]
                    raise ValueError(f"two {kind} would share a folder: {first!r} and {labels[i]!r}; rename one")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds should be different whole numbers >= 0, got {list(self.seeds)}")
        return self

    @model_validator(mode="after")
    def _no_scan_is_in_both_splits(self) -> Bench:
        tests = {_volume(scan): scan.label for scan in self.scan if scan.split == "test"}
        for i, scan in enumerate(self.scan):
            if scan.split == "validation" and (twin := tests.get(_volume(scan))):
                raise _at(("scan", i), f"is the same volume as {twin!r} of the test split: tune on another scan")
        return self

    @model_validator(mode="after")
    def _tuned_as_a_problem_that_is_tuned(self) -> Bench:
        tuned = [problem.label for problem in self.problem if not problem.tuned_as]
        for i, problem in enumerate(self.problem):
            if problem.tuned_on not in tuned:
                known = ", ".join(tuned) or "none"
                raise _at(("problem", i, "tuned_as"), f"should name a problem that is tuned itself; there are {known}")
        return self

    @model_validator(mode="after")
    def _problems_are_complete(self) -> Bench:
        for i, problem in enumerate(self.problem):
            place = ("problem", i, "set") if problem.set else ("base",)
            try:
                self._bases[problem.label] = Base.model_validate(layers.over(self.base, problem.set))
            except ValidationError as error:
                inner = {"errors": error.errors(include_url=False), "model": Base, "more_keys": ()}
                raise nested([{"type": "nested", "loc": place, "ctx": inner}], type(self)) from None
        return self

    @model_validator(mode="after")
    def _methods_are_complete(self) -> Bench:
        labels = [problem.label for problem in self.problem]
        for i, method in enumerate(self.method):
            self._search_is_possible(i, method)
            if unknown := [label for label in method.settings_for if label not in labels]:
                raise _at(("method", i, "for"), f"no problem is labelled {unknown[0]!r}; there are {', '.join(labels)}")
            for label in labels:
                try:
                    part = method.part(label)
                except PydanticCustomError as error:
                    found = {"type": error.type, "loc": ("method", i, "for", label), "ctx": error.context}
                    raise nested([found], type(self)) from None
                if "prior" in part.needs and part.prior is None:
                    raise _at(("method", i), f"solver {part.name!r} needs a `prior` table")
                if (part.name, part.label) != (method.solver.name, method.label):
                    raise _at(("method", i, "for", label), "may set neither `name` nor `label`; add a [[method]]")
        return self

    def _search_is_possible(self, i: int, method: Method) -> None:
        for key, choices in method.search.items():
            first = choices.low if isinstance(choices, Range) else next(iter(choices), None)
            try:
                PartOf("solver").read(layers.over(method.solver.table(), layers.nest(key, first)))
            except PydanticCustomError as error:
                found = {"type": error.type, "loc": ("method", i, "search"), "ctx": error.context}
                raise nested([found], type(self)) from None

    def problem_of(self, label: str) -> Base:
        """The whole of one problem, by its label."""
        return self._bases[label]

    def cases(self, split: Split = "test") -> tuple[CasePlan, ...]:
        """Problems x scans of the split x seeds, in this order; for validation those problems that are tuned."""
        apart = split == "validation" and self.tuning is not None and self.tuning.seeds is not None
        seeds = self.tuning.seeds if apart else self.seeds
        return tuple(
            CasePlan("--".join([*runfolder.folder_names([p.label]), *runfolder.folder_names([s.label]), f"s{seed}"]),
                     p.label, s.label, s.split, seed)
            for p in self.problem
            for s in self.scan
            if s.split == split and not (split == "validation" and p.tuned_as)
            for seed in seeds
        )  # fmt: skip

    def resolved(self) -> dict[str, Any]:
        """The bench with every problem complete, as a TOML table that reads back as this bench."""
        table = self.model_dump(mode="json", exclude_none=True, by_alias=True, exclude={"base", "quick", "smoke"})
        whole = {label: base.model_dump(mode="json", exclude_none=True) for label, base in self._bases.items()}
        return {**table, "problem": [{**told, "set": whole[told["label"]]} for told in table["problem"]]}


def load_bench(
    source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = (), variant: str = ""
) -> Bench:
    """The bench in a TOML file (or in a dict), after `variant` ("quick", "smoke") and `overrides` are laid over it."""
    return read(Bench, source, overrides, variant)


def bench_sha256(bench: Bench) -> str:
    """Hash of what makes rows comparable: problems, scans, seeds, budget. Methods may be added without changing it."""
    told = bench.model_dump(mode="python", exclude_none=True, include={"scan", "seeds", "budget"})
    told["problem"] = {label: base.model_dump(mode="python", exclude_none=True) for label, base in bench._bases.items()}
    return table_sha256(told, folder_of(bench))


def folder_of(bench: Bench) -> Path:
    """The folder that the bench's paths are told relative to."""
    return bench.source.parent if bench.source else Path.cwd()


def _volume(scan: Scan) -> str:
    """The same for two scans that are one volume, on whatever grid, by whatever path."""
    table = scan.dataset.table("python")
    grid = ("shape", "spacing_mm")
    told = {key: value for key, value in table.items() if key not in grid}
    return json.dumps(
        [told, scan.item], sort_keys=True, default=lambda v: os.path.realpath(v) if isinstance(v, Path) else str(v)
    )


def lacking(part: Part) -> str:
    """What a method needs and this machine lacks, in one line; empty if nothing."""
    for needed in (part, part.prior):
        if needed is not None:
            try:
                registry.require(needed.entry)
            except registry.BackendMissing as error:
                return str(error)
    return ""


def _at(place: tuple[str | int, ...], sentence: str) -> PydanticCustomError:
    return nested([{"type": "value_error", "loc": place, "msg": sentence}], Bench)
