"""The curve of a training: loss and validation error against steps."""

from __future__ import annotations

from pathlib import Path

from pdframe.report.figure import save


def draw_training(rows: list[dict], path: Path) -> None:
    """One picture from the rows of `log.jsonl`: training loss (log scale) and validation RMSE by noise level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in rows if "loss" in row]
    left.plot(steps, [row["loss"] for row in rows if "loss" in row], lw=0.6, alpha=0.6, label="training")
    checks = [row for row in rows if row.get("validation")]
    if checks:
        at = [row["step"] for row in checks]
        left.plot(at, [row["validation"]["loss"] for row in checks], marker=".", label="validation (averaged weights)")
        for key in checks[-1]["validation"]:
            if key != "loss":
                values = [row["validation"][key] for row in checks]
                (line,) = right.plot(at, values, marker=".")
                told = {"xytext": (6, -3), "textcoords": "offset points", "fontsize": 7, "color": line.get_color()}
                right.annotate(key.replace("_", " "), (at[-1], values[-1]), **told)
    left.set(yscale="log", xlabel="step", ylabel="weighted loss")
    right.set(yscale="log", xlabel="step", ylabel="validation")
    right.spines["right"].set_visible(False)  # names stand there
    left.legend(frameon=False)
    save(figure, path)
