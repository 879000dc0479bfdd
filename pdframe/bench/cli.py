"""`pdframe bench ...`: each command reads its arguments, calls one function, and says what came of it."""

from __future__ import annotations

from pathlib import Path

import click

TOML = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

overrides_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting, e.g. budget.seconds=20."
)
out_option = click.option("--out", "out_dir", type=FOLDER, help="Bench folder.  [default: runs/NAME of the TOML]")


def variant_options(command: click.Command) -> click.Command:
    """--quick and --smoke: which of the bench's own short forms to take."""
    for name, text in (
        ("smoke", "The shortest form: does it work at all?"),
        ("quick", "A short form for one machine."),
    ):
        command = click.option(f"--{name}", "variant", flag_value=name, help=f"{text} Lays [{name}] over the bench.")(
            command
        )
    return command


@click.group()
def bench() -> None:
    """Compare many methods on the same frozen measurements, fairly."""


@bench.command()
@click.argument("toml", type=TOML)
@overrides_option
@out_option
@variant_options
@click.option("--only", multiple=True, metavar="PATTERN", help="Rows whose CASE/METHOD or method's label matches.")
@click.option("--timing", is_flag=True, help="One row at a time; rows that ran beside others are run again.")
@click.option("--retry", is_flag=True, help="Run rows again that failed.")
@click.option("--freeze", is_flag=True, help="Only freeze the cases that come next, to be copied to other machines.")
def run(
    toml: Path,
    overrides: tuple[str, ...],
    out_dir: Path | None,
    variant: str | None,
    only: tuple[str, ...],
    timing: bool,
    retry: bool,
    freeze: bool,
) -> None:
    """Tune where the bench says so, run the rows of the test split that are missing, write the report.

    A second run changes nothing and says so.
    """
    from pdframe.bench.config import load_bench
    from pdframe.bench.run import check_only, freeze_bench, run_bench
    from pdframe.bench.tune import tune_bench

    loaded = load_bench(toml, overrides, variant or "")
    where = {"out_dir": out_dir, "variant": variant or "", "console": True}
    if freeze:
        freeze_bench(loaded, **where)
        return
    check_only(loaded, only)
    if loaded.tuning is not None:
        tune_bench(loaded, **where)
    result = run_bench(loaded, **where, only=only, timing=timing, retry=retry, overrides=overrides)
    if result.ran or _is_behind(result.folder):
        click.echo(_reported(result.folder))


@bench.command()
@click.argument("toml", type=TOML)
@overrides_option
@out_option
@variant_options
def tune(toml: Path, overrides: tuple[str, ...], out_dir: Path | None, variant: str | None) -> None:
    """Choose the settings of every method on the validation split, with equal effort, and lock them."""
    from pdframe.bench.config import load_bench
    from pdframe.bench.tune import tune_bench

    tune_bench(load_bench(toml, overrides, variant or ""), out_dir=out_dir, variant=variant or "", console=True)


@bench.command()
@click.argument("into", type=FOLDER)
@click.argument("sources", type=FOLDER, nargs=-1, required=True)
def merge(into: Path, sources: tuple[Path, ...]) -> None:
    """Join the bench folders SOURCES into the folder INTO. What contradicts itself is refused."""
    from pdframe.bench.merge import merge as join

    merged = join(into, sources)
    click.echo(f"{merged.added} rows joined into {merged.folder}; {merged.known} were there before or came twice")


@bench.command()
@click.argument("folder", type=FOLDER)
@click.option("--reference", default="", metavar="METHOD", help="Compare all others with it.  [default: the first]")
@click.option("--metric", default="psnr_db", show_default=True, help="What the comparison is made in.")
def report(folder: Path, reference: str, metric: str) -> None:
    """Write report.html into the bench folder FOLDER, one page that opens offline, table.csv, .md and .tex, and a
    picture of a case of each problem."""
    click.echo(_reported(folder, reference, metric))


def _is_behind(folder: Path) -> bool:
    """Whether there is no page yet, or a row that came after it: a run may have been killed between the two."""
    from pdframe.bench.rows import PAGE, ROW, ROWS, whole

    page = folder / PAGE
    rows = whole(folder / ROWS, f"*/*/{ROW}")
    return not page.is_file() or any(row.stat().st_mtime > page.stat().st_mtime for row in rows)


def _reported(folder: Path, reference: str = "", metric: str = "psnr_db") -> Path:
    """Writes everything that a report is; the path of its page."""
    from pdframe.bench.rows import PAGE, read_rows
    from pdframe.report.page import write_page
    from pdframe.report.page_data import read
    from pdframe.report.pictures import write_pictures
    from pdframe.report.tables import write_tables

    write_tables(folder, read_rows(folder), reference=reference, metric=metric)
    write_pictures(read(folder, reference, metric))
    return write_page(folder, folder / PAGE, reference=reference, metric=metric)


@bench.command()
@click.argument("folder", type=FOLDER)
@click.option(
    "--benchopt", "benchopt_dir", type=FOLDER, required=True, help="Where to write: new, or a benchmark's own."
)
def export(folder: Path, benchopt_dir: Path) -> None:
    """Write the rows of the bench folder FOLDER for benchopt, which shows them and joins them with its own."""
    from pdframe.bench.export import export_folder

    table = export_folder(folder, benchopt_dir)
    click.echo(f"{table}\nshow it: benchopt plot {benchopt_dir}")
