"""Loops compiled by numba. Imported only by the files that hold such loops, and these only when they are first used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba.core.compiler import Compiler


class _Restrict(Compiler):
    """numba's compiler with C's `restrict` on array arguments: without it LLVM must not vectorise the gathers."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.state.flags.noalias = True


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled at its first call and kept on disk. It holds the GIL nowhere; no two arrays that it is
    given may overlap. Sums keep their order, so that results do not depend on the machine's vectors."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}, "pipeline_class": _Restrict}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep the cache in
        return numba.njit(**options)(function)
