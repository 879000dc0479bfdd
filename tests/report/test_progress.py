"""What a run says while it runs: plain lines, and how long it will take."""

from __future__ import annotations

import time

import pytest
from rich.console import Console

from pdframe.report.progress import Clock, Log, told


def test_time_left_counts_only_the_steps_of_this_process(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(50)
    assert clock.left_s(41) is None  # 40 of them were taken before
    now[0] += 6.0
    assert clock.left_s(43) == pytest.approx(3.0 * 7)
    assert [told(s) for s in (41.6, 185, 7620)] == ["42 s", "3 min 05 s", "2 h 07 min"]


def test_a_log_has_plain_lines(capsys):
    log = Log(Console(force_terminal=False))
    log.started("TV [weight 1]", 10)
    log.spoke_at -= 60
    log.stepped(4)
    log.ended("PSNR 30.00 dB")
    assert capsys.readouterr().out == "TV [weight 1]: step 4 of 10\nTV [weight 1]: PSNR 30.00 dB\n"


def test_the_parts_of_a_method_have_their_own_steps_and_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = Log(Console(force_terminal=False))
    log.started("DDS", 80)
    for done, total, part, at in [(1, 60, "start", 1), (20, 60, "start", 20), (1, 20, "", 70), (2, 20, "", 90)]:
        now[0] = float(at)
        log.stepped(done, total, part)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "DDS, start: step 20 of 60, 40 s left" and lines[-1] == "DDS: step 2 of 20, 6 min 00 s left"
