"""`pdframe doctor`: what this machine can run and why not; and, of one experiment, that its parts are what they say.

The proofs take seconds: the operator's adjoint is its transpose, its scale is right (a box of ones projects to the
length of each ray in the box), the truth lies where the prior was made for, and the prior takes noise off it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdframe import machine, registry
from pdframe.config import Experiment, load
from pdframe.hooks import Entry
from pdframe.machine import Finding

if TYPE_CHECKING:
    import torch

    from pdframe.core.operator import ForwardOperator
    from pdframe.core.prior import Prior
    from pdframe.core.problem import Item

#: Rounding of a float32 dot test over a whole scan.
ADJOINT_TOLERANCE = 1e-6
#: A volume is denoised whole up to this many voxels, by its middle part above.
PROOF_VOXELS = 128**3


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `examine` found; healthy unless a proof failed."""

    machine: Mapping[str, object]
    libraries: tuple[Finding, ...]
    plugins: tuple[Finding, ...]
    proofs: tuple[Finding, ...] = ()
    experiment: str = field(default="")

    @property
    def healthy(self) -> bool:
        """No proof failed."""
        return all(proof.ok is not False for proof in self.proofs)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "healthy": self.healthy}

    def as_text(self) -> str:
        """For a terminal."""
        lines = ["machine"]
        for key, value in self.machine.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines += [f"  {key:18} {shown}"] if shown not in ("", None) else []
        for title, findings, marks in (
            ("libraries", self.libraries, {True: "yes", False: "no"}),
            ("plugins", self.plugins, {True: "yes", False: "no"}),
            (self.experiment, self.proofs, {True: "ok", False: "FAILED"}),
        ):
            lines += ["", title] if findings else []
            lines += [f"  {marks.get(f.ok, ''):6} {f.name:12} {f.said}" for f in findings]
        return "\n".join(lines)


def examine(toml: Path | None = None, overrides: Sequence[str] = ()) -> Diagnosis:
    """Look at the machine and, if a TOML is given, prove its parts. ConfigError if the TOML cannot be read."""
    experiment = load(toml, overrides) if toml is not None else None
    return Diagnosis(
        machine=machine.facts(),
        libraries=tuple(machine.libraries()),
        plugins=tuple(_plugins()),
        proofs=tuple(prove(experiment)) if experiment else (),
        experiment=str(toml or ""),
    )


def prove(experiment: Experiment) -> Iterator[Finding]:
    """One Finding for each part of an experiment and each law that it must obey; never an exception of theirs.

    BackendMissing if this machine lacks the device that the experiment names.
    """
    _device(experiment)
    parts: dict[str, Any] = {}
    for name, proof in _PROOFS.items():
        try:
            found = proof(experiment, parts)
        except KeyError as error:
            if error.args and error.args[0] in _BUILT:  # what it needs could not be built, and that is said already
                continue
            found = Finding(name, False, f"KeyError: {error}")
        except Exception as error:
            found = Finding(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")
        if found is not None:
            yield found


def _data(experiment: Experiment, parts: dict[str, Any]) -> Finding:
    dataset = experiment.dataset.build()
    item = dataset.load(experiment.item or dataset.names()[0])
    parts |= {"dataset": dataset, "item": item}
    low, high, finite = float(item.x.min()), float(item.x.max()), bool(item.x.isfinite().all())
    shape, spacing = " x ".join(map(str, item.grid.shape)), " x ".join(f"{s:g}" for s in item.grid.spacing)
    said = f"{item.name}: {shape} voxels of {spacing}, values {low:.4g} to {high:.4g} {item.grid.unit}"
    said += "".join(f"; note: {note}" for note in item.header.get("notes", ()))
    return Finding("data", finite, said if finite else f"{said}, and some are not finite")


def _operator(experiment: Experiment, parts: dict[str, Any]) -> Finding:
    operator = experiment.operator.build(grid=parts["item"].grid)
    parts["operator"] = operator
    said = f"{experiment.operator.name}: data of shape {tuple(operator.data_shape)}"
    return Finding("operator", None, said + _off_centre(operator))


def _measurement(experiment: Experiment, parts: dict[str, Any]) -> Finding | None:
    """Of a frozen one, that it is of this scan with this noise."""
    from pdframe import measure
    from pdframe.core.noise import NoNoise

    if not experiment.measurement.frozen:
        return None
    noise = experiment.noise.build() if experiment.noise else NoNoise()
    dataset, item, operator = parts["dataset"], parts["item"], parts["operator"]
    found = measure.obtain(experiment.measurement, dataset, item.name, operator, noise)
    return Finding("measurement", True, f"{found.record['file']}: of this item, geometry and noise")


def _adjoint(experiment: Experiment, parts: dict[str, Any]) -> Finding:
    from pdframe.core.operator import adjoint_mismatch
    from pdframe.core.seeds import generator

    operator = parts["operator"]
    mismatch = adjoint_mismatch(operator, rng=generator(0, "doctor"), device=_device(experiment))
    said = f"|<Ax, y> - <x, A'y>| / |Ax||y| = {mismatch:.1e}"
    if not operator.matched:
        return Finding("adjoint", None, f"{said}; the operator says that its adjoint is approximate")
    passed = mismatch < ADJOINT_TOLERANCE
    return Finding("adjoint", passed, said if passed else f"{said}, more than {ADJOINT_TOLERANCE:.0e}: not a transpose")


def _scale(experiment: Experiment, parts: dict[str, Any]) -> Finding:
    import torch

    operator: ForwardOperator = parts["operator"]
    ones = torch.ones(1, 1, *operator.grid.shape, device=_device(experiment))
    start = time.perf_counter()
    y = operator.forward(ones)[0, 0].cpu()
    seconds = time.perf_counter() - start
    if (ratio := _chord_ratio(operator, y)) is None:
        return Finding("scale", None, f"A of ones is {float(y.min()):.4g} to {float(y.max()):.4g}, in {seconds:.2g} s")
    error, allowed = abs(ratio - 1), max(0.01, 1 / min(n for n in operator.grid.shape if n > 1))
    said = f"a box of ones projects to {ratio:.4f} of the length of the rays in it, in {seconds:.2g} s"
    return Finding("scale", error <= allowed, said if error <= allowed else f"{said}: check the units of the geometry")


def _norm(experiment: Experiment, parts: dict[str, Any]) -> Finding:
    from pdframe.core.operator import operator_norm

    norm = operator_norm(parts["operator"], device=_device(experiment))
    return Finding("norm", 0 < norm < float("inf"), f"largest singular value {norm:.5g}")


def _prior(experiment: Experiment, parts: dict[str, Any]) -> Finding | None:
    from pdframe.core.prior import prior_on, unfamiliar

    chosen = next((m.prior for m in experiment.methods if m.prior is not None), experiment.prior)
    if chosen is None:
        return None
    item: Item = parts["item"]
    prior: Prior = prior_on(chosen.build(grid=item.grid, operator=parts.get("operator")), item.grid)
    parts["prior"] = prior
    mean, spread = float(item.x.mean()), float(item.x.std())
    (low, high), unit = prior.sigma_range, item.grid.unit
    note = unfamiliar(prior, item.grid)
    inside = abs(mean - prior.mean) <= 3 * prior.deviation and 0.1 <= spread / prior.deviation <= 10
    said = (
        f"{chosen.name}: made for voxels of {prior.mean:.4g} +- {prior.deviation:.4g} {unit} and noise of {low:.2g} to "
        f"{high:.2g} {unit}; the truth has {mean:.4g} +- {spread:.4g}"
    ) + (f"; note: {note}" if note else "")
    return Finding(
        "prior", inside and 0 <= low < high, said if inside else f"{said}, out of its range: check the units"
    )


def _denoise(experiment: Experiment, parts: dict[str, Any]) -> Finding:
    import torch

    from pdframe.core.prior import prior_on
    from pdframe.core.seeds import generator, normal

    prior, grid, x = parts["prior"], parts["item"].grid, _middle(parts["item"].x)
    if tuple(x.shape[2:]) != tuple(grid.shape):
        prior = prior_on(prior, type(grid)(tuple(x.shape[2:]), grid.spacing, grid.centre, grid.unit))
    x = x.to(_device(experiment))
    low, high = prior.sigma_range
    sigma = min((low * high) ** 0.5 or prior.deviation / 3, prior.deviation / 3)
    noise = sigma * normal(x, generator(0, "doctor"))
    start = time.perf_counter()
    with torch.no_grad():
        clean = prior.denoise(x + noise, x.new_full((1,), sigma))
    seconds = time.perf_counter() - start
    if clean.shape != x.shape or not bool(clean.isfinite().all()):
        return Finding("denoise", False, f"{tuple(x.shape)} became {tuple(clean.shape)}, or values that are not finite")
    left = float((clean - x).norm() / noise.norm())
    said = (
        f"leaves {100 * left:.0f} % of noise of {sigma:.3g} on {' x '.join(map(str, x.shape[2:]))}, in {seconds:.2g} s"
    )
    return Finding("denoise", left < 1, said if left < 1 else f"{said}: the prior is not made for volumes like this")


def _memory(experiment: Experiment, parts: dict[str, Any]) -> Finding:
    from pdframe.core.memory import available_bytes
    from pdframe.run import memory_estimate

    device, given = _device(experiment), {"grid": parts["item"].grid, "operator": parts["operator"]}
    solvers = [m.build(**given, prior=m.prior.build(**given) if m.prior else None) for m in experiment.methods]
    need, free = memory_estimate(parts["operator"], solvers, device=device), available_bytes(device)
    said = f"a solve takes about {need / 2**30:.2f} GiB"
    if free is None:
        return Finding("memory", None, said)
    return Finding("memory", need < free, f"{said}; {free / 2**30:.1f} GiB are free on {device}")


_PROOFS: dict[str, Callable[[Experiment, dict[str, Any]], Finding | None]] = {
    "data": _data,
    "operator": _operator,
    "measurement": _measurement,
    "adjoint": _adjoint,
    "scale": _scale,
    "norm": _norm,
    "prior": _prior,
    "denoise": _denoise,
    "memory": _memory,
}
_BUILT = ("dataset", "item", "operator", "prior")


def _plugins() -> Iterator[Finding]:
    for plugin in registry.plugins():
        names = ", ".join(entry.name for entry in plugin.entries)
        yield Finding(plugin.name, True, f"{plugin.distribution} {plugin.version}: {names or 'nothing'}")
        for entry in plugin.entries:
            if lacking := _missing(entry):
                yield Finding(plugin.name, False, f"{entry.kind} {entry.name} needs {lacking}")
            if hint := machine.untrained(plugin, entry):
                yield Finding(plugin.name, False, f"{entry.kind} {entry.name} {hint}")
    for failure in registry.failures():
        yield Finding(failure.plugin, False, f"{failure.distribution} {failure.version}: {failure.error}".strip(" :"))


def _missing(entry: Entry) -> str:
    try:
        lacking = registry.missing(entry)
        return f"{', '.join(lacking)}: {registry.install_command(entry)}" if lacking else ""
    except registry.RegistryError:  # claimed twice: among the failures
        return ""


def _chord_ratio(operator: ForwardOperator, projected_ones: torch.Tensor) -> float | None:
    """Median over the long rays of a few views of A(1) / length of the ray in the box; None if this is no CT scan."""
    import numpy as np

    from pdframe.ct.chords import chord_mm
    from pdframe.ct.geometry import Geometry

    geometry = getattr(operator, "geometry", None)
    if not isinstance(geometry, Geometry):
        return None
    ratios = []
    for view in range(0, geometry.views, max(1, geometry.views // 4)):
        chord = chord_mm(geometry, operator.grid, view)
        long = chord > 0.5 * chord.max()
        ratios.append(projected_ones[view].double().numpy()[long] / chord[long])
    return float(np.median(np.concatenate(ratios)))


def _off_centre(operator: ForwardOperator) -> str:
    """Where a scan turns about another point than the middle of the grid: seldom meant, and never wrong."""
    from pdframe.ct.scan import geometry_of

    geometry = geometry_of(operator)
    if geometry is None:
        return ""
    away = [i - c for i, c in zip(geometry.isocentre[::-1], operator.grid.centre, strict=True)]
    if all(abs(a) < s / 2 for a, s in zip(away, operator.grid.spacing, strict=True)):
        return ""
    return f"; turns about a point ({', '.join(f'{a:.4g}' for a in away)}) mm (z, y, x) from the middle of the grid"


def _middle(x: torch.Tensor) -> torch.Tensor:
    """The volume, or its middle part where it is large."""
    while x[0, 0].numel() > PROOF_VOXELS:
        axis = max(range(2, x.ndim), key=lambda a: x.shape[a])
        x = x.narrow(axis, x.shape[axis] // 8, max(1, x.shape[axis] * 3 // 4))
    return x


def _device(experiment: Experiment) -> torch.device:
    return machine.chosen(experiment.device)
