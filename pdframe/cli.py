"""The command line: each command reads its arguments, calls one function, and says what came of it.

Exit codes: 0 done, 1 the run failed, 2 usage or config, 3 a back end is missing, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from pdframe import machine, registry
from pdframe.bench.cli import bench
from pdframe.hooks import BackendMissing
from pdframe.mistakes import ConfigError

#: What these commands read: module and class, to be imported late.
_TOMLS = {
    "run": ("pdframe.config", "Experiment"),
    "train": ("pdframe.train", "Training"),
    "sample": ("pdframe.config", "Sampling"),
    "bench": ("pdframe.bench.config", "Bench"),
}
TOML = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

overrides_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting, e.g. solver.steps=20."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class _Group(click.Group):
    """Turns every exception into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("pdframe: interrupted", err=True)
            ctx.exit(130)
        except Exception as error:
            if os.environ.get("PDFRAME_TRACEBACK") == "1":
                traceback.print_exc()
            click.echo(f"pdframe: {_told(error)}", err=True)
            ctx.exit(exit_code(error))


def exit_code(error: Exception) -> int:
    """2 for what the user wrote, 3 for what the machine lacks, 1 for a run that failed."""
    if isinstance(error, BackendMissing):
        return 3
    return 2 if isinstance(error, ConfigError | registry.RegistryError) else 1


def _told(error: Exception) -> str:
    if isinstance(error, ConfigError):  # one line for each mistake
        return str(error).replace("\n", "\npdframe: ")
    words = " ".join(str(error).split())
    if isinstance(error, BackendMissing | registry.RegistryError):
        return words
    from pdframe.core.memory import is_refused

    if type(error) is not MemoryError and is_refused(error):  # a library's words say where in it, not what to do
        words += "; take a smaller grid or batch, or a machine with more memory"
    return f"{type(error).__name__}: {words} (PDFRAME_TRACEBACK=1 shows where)"


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pdframe", message="pdframe %(version)s")
def main() -> None:
    """Inverse problems with learned and classical priors: simulate, reconstruct, compare, train."""


main.add_command(bench)


@main.command()
@click.argument("toml", type=TOML)
@overrides_option
@click.option("--out", "out_dir", type=FOLDER, help="Run folder.  [default: chosen from the TOML's name]")
@click.option("--fresh", is_flag=True, help="Start anew, even where an unfinished run could go on.")
def run(toml: Path, overrides: tuple[str, ...], out_dir: Path | None, fresh: bool) -> None:
    """Run the experiment in TOML. Everything goes into one run folder."""
    from pdframe.config import load

    experiment = load(toml, overrides)
    experiment.require()
    experiment.run(out_dir, fresh=fresh, console=True)


@main.command()
@click.argument("toml", type=TOML)
@overrides_option
@click.option("--out", "out_dir", type=FOLDER, help="Folder of the training.  [default: runs/NAME of the TOML]")
def train(toml: Path, overrides: tuple[str, ...], out_dir: Path | None) -> None:
    """Train a prior as TOML says. The same command goes on with a training that was stopped."""
    from pdframe.train import load_training

    training = load_training(toml, overrides)
    click.echo(training.run(out_dir or Path("runs") / toml.stem, on_log=_show_training))


@main.command()
@click.argument("toml", type=TOML, required=False)
@overrides_option
@click.option("--out", "out_dir", type=FOLDER, help="Folder of the samples.  [default: runs/sample]")
def sample(toml: Path | None, overrides: tuple[str, ...], out_dir: Path | None) -> None:
    """Draw volumes from a prior alone. The prior is named in TOML or by --set prior.name=NAME."""
    from pdframe.config import load_sampling

    sampling = load_sampling(toml or {}, overrides)
    from pdframe.sample import sample as draw

    draw(sampling, out_dir=out_dir or Path("runs/sample"), console=True)


@main.command()
@json_option
def plugins(as_json: bool) -> None:
    """List what is installed. Says where each comes from, what to cite, and what does not work and why."""
    offers = [_offer(plugin, entry) for plugin in registry.plugins() for entry in plugin.entries]
    failed = [{k: v for k, v in vars(f).items() if k != "traceback"} for f in registry.failures()]
    if as_json:
        click.echo(json.dumps({"entries": offers, "failures": failed}, indent=2))
        return
    click.echo("\n".join(_plugin_lines(offers, failed)))


@main.command()
@click.argument("what", type=click.Choice(tuple(_TOMLS)), default="run")
def schema(what: str) -> None:
    """Print the JSON Schema of a TOML: that of `pdframe run`, `train`, `sample` or `bench`.

    It covers all installed plugins.
    """
    from pdframe.config import schema as schema_of

    module, name = _TOMLS[what]
    click.echo(json.dumps(schema_of(getattr(import_module(module), name)), indent=2))


@main.command()
@click.argument("toml", type=TOML, required=False)
@overrides_option
@json_option
def doctor(toml: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say what this machine can run. With a TOML, prove its operator and prior in seconds."""
    from pdframe.doctor import examine

    diagnosis = examine(toml, overrides)
    click.echo(json.dumps(diagnosis.as_dict(), indent=2) if as_json else diagnosis.as_text())
    if not diagnosis.healthy:
        raise click.exceptions.Exit(1)


def _offer(plugin: registry.Plugin, entry: Any) -> dict[str, Any]:
    try:
        lacking, refused = registry.missing(entry), ""
        install = registry.install_command(entry) if lacking else ""
    except registry.RegistryError as error:  # the name is claimed twice
        lacking, install, refused = (), "", str(error)
    untrained = machine.untrained(plugin, entry)
    return {
        "kind": entry.kind,
        "name": entry.name,
        "summary": entry.summary,
        "plugin": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "usable": not lacking and not refused and not untrained,
        "missing": list(lacking),
        "install": install,
        "untrained": untrained,
        "refused": refused,
        "cite": entry.cite,
    }


def _plugin_lines(offers: list[dict[str, Any]], failed: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    width = max((len(o["name"]) for o in offers), default=0)
    for kind in dict.fromkeys(o["kind"] for o in sorted(offers, key=lambda o: o["kind"])):
        lines += ["", kind]
        for o in sorted((o for o in offers if o["kind"] == kind), key=lambda o: o["name"]):
            source = f"{o['plugin']}, {o['distribution']} {o['version']}"
            keys = ", ".join(_keys(o["cite"]))
            lines.append(f"  {o['name']:{width}}  {o['summary']}  ({source}{'; cite ' + keys if keys else ''})")
            if o["missing"]:
                lines.append(f"  {'':{width}}  not usable here, needs {', '.join(o['missing'])}: {o['install']}")
            if o["untrained"]:
                lines.append(f"  {'':{width}}  {o['untrained']}")
    if failed:
        lines += ["", "failed"]
        lines += [f"  {f['plugin']}  ({f['distribution']} {f['version']})  {f['error']}" for f in failed]
    return lines[1:] or ["no plugin is installed"]


def _keys(bibtex: str) -> list[str]:
    from pdframe.cite import references

    try:
        return list(references(bibtex))
    except ValueError as error:
        return [f"nothing: {error}"]


def _show_training(row: dict[str, Any]) -> None:
    numbers = row.get("validation", row)
    shown = "  ".join(f"{k} {v:.4g}" for k, v in numbers.items() if k not in ("step", "seconds", "left_s"))
    left = f"  {row['left_s'] / 3600:.2f} h left" if "left_s" in row else "  (held apart)"
    click.echo(f"step {row['step']}  {shown}{left}")
