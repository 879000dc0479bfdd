"""The picture of a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdframe.report import curve


@pytest.mark.parametrize("validated", [False, True])
def test_loss_and_each_validation_error_have_a_line_over_the_steps(tmp_path: Path, monkeypatch, validated: bool):
    drawn = []
    monkeypatch.setattr(curve, "save", lambda figure, path: drawn.append((figure, path)))
    rows = [{"step": step, "loss": 1 / step} for step in (20, 40)]
    if validated:
        errors = {"rmse_hu_at_25": 39.0, "rmse_hu_at_50": 49.0}
        rows += [{"step": step, "validation": {"loss": 0.5, **errors}} for step in (30, 40)]
    curve.draw_training(rows, tmp_path / "curve.png")
    ((figure, path),) = drawn
    left, right = figure.axes
    assert path.name == "curve.png" and list(left.lines[0].get_ydata()) == [1 / 20, 1 / 40]
    assert (len(left.lines), len(right.lines)) == ((2, 2) if validated else (1, 0))
    if validated:
        assert [list(line.get_ydata()) for line in right.lines] == [[39.0, 39.0], [49.0, 49.0]]
        assert [text.get_text() for text in right.texts] == ["rmse hu at 25", "rmse hu at 50"]
