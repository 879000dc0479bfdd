"""What a run says while it runs: a live bar on a terminal, plain lines in a log, nothing in a library call."""

from __future__ import annotations

import abc
import time
from typing import TYPE_CHECKING

from pdframe.core.interface import Interface

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

#: Seconds between two lines of one method in a log.
LOG_EVERY_S = 15.0


class Progress(Interface):
    """Told of everything that happens in a run, in this order for each method: started, stepped..., ended."""

    @abc.abstractmethod
    def say(self, text: str) -> None:
        """A line or more of plain text."""

    @abc.abstractmethod
    def started(self, label: str, total: int) -> None:
        """A method begins; it means to take `total` steps."""

    @abc.abstractmethod
    def stepped(self, done: int, total: int | None = None, part: str = "") -> None:
        """`done` of its steps are taken; or of the `total` of a part of it, which has a time left of its own."""

    @abc.abstractmethod
    def ended(self, text: str) -> None:
        """The method is over; `text` says how it went."""


class Silent(Progress):
    """Says nothing."""

    def say(self, text: str) -> None:
        pass

    def started(self, label: str, total: int) -> None:
        pass

    def stepped(self, done: int, total: int | None = None, part: str = "") -> None:
        pass

    def ended(self, text: str) -> None:
        pass


class Clock:
    """Time left, from the steps taken since this process began with them: a resumed run does not flatter itself.

    part: of the method, the one whose `total` steps are counted; "" for the whole.
    """

    def __init__(self, total: int, part: str = "") -> None:
        self.total, self.part = total, part
        self.began = time.monotonic()
        self.first: int | None = None
        self.first_at = self.began

    def at(self, total: int | None, part: str) -> Clock:
        """Itself, or a new one where another part begins; `total` is None if the steps are of the whole."""
        return self if (total or self.total, part) == (self.total, self.part) else Clock(total or self.total, part)

    def left_s(self, done: int) -> float | None:
        """Seconds; None before the second step."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.first_at = done, now
            return None
        steps = done - self.first
        return (now - self.first_at) / steps * (self.total - done) if steps > 0 else None

    def left(self, done: int) -> str:
        """ "42 s left"; empty before the second step."""
        seconds = self.left_s(done)
        return "" if seconds is None else f"{told(seconds)} left"


class Log(Progress):
    """Plain lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.label, self.clock, self.spoke_at = "", Clock(0), 0.0

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def started(self, label: str, total: int) -> None:
        self.label, self.clock, self.spoke_at = label, Clock(total), time.monotonic()

    def stepped(self, done: int, total: int | None = None, part: str = "") -> None:
        self.clock = self.clock.at(total, part)
        left = self.clock.left(done)
        if time.monotonic() - self.spoke_at >= LOG_EVERY_S and done < self.clock.total:
            self.spoke_at = time.monotonic()
            self.say(f"{listed(self.label, part)}: {listed(f'step {done} of {self.clock.total}', left)}")

    def ended(self, text: str) -> None:
        self.say(f"{self.label}: {text}")


class Live(Progress):
    """A bar that moves; finished methods stay as lines above it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.label, self.clock = "", Clock(0)
        self.bar: Bar | None = None

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def started(self, label: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self.label, self.clock = label, Clock(total)
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        clocks = [TimeElapsedColumn(), TextColumn("{task.fields[left]}")]
        self.bar = Bar(*columns, *clocks, console=self.console, transient=True)
        self.bar.add_task(label, total=total, left="")
        self.bar.start()

    def stepped(self, done: int, total: int | None = None, part: str = "") -> None:
        if self.bar is None:
            return
        self.clock = self.clock.at(total, part)
        where = {"description": listed(self.label, part), "total": self.clock.total}
        self.bar.update(self.bar.task_ids[0], completed=done, left=self.clock.left(done), **where)

    def ended(self, text: str) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        self.say(f"{self.label}: {text}")


def on_console() -> Progress:
    """Live on a terminal, a log elsewhere."""
    from rich.console import Console

    console = Console()
    return Live(console) if console.is_terminal else Log(console)


def listed(*names: str) -> str:
    """Those that are not empty, with commas."""
    return ", ".join(filter(None, names))


def told(seconds: float) -> str:
    """42 s, 3 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
