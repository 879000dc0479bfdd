"""Loops compiled by numba. Imported only by the files that hold such loops, and these only when they are first used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
from numba.core.compiler import Compiler

# On small grids the loops come out wrong as LLVM tunes them for Zen 4 (adjoint off by 1e-2), and right as it does
# for another CPU with the same vectors. Whoever has chosen a CPU by NUMBA_CPU_NAME keeps it.
if llvmlite.binding.get_host_cpu_name() in ("znver4", "znver5") and numba.config.CPU_NAME is None:
    numba.config.CPU_NAME = "skylake-avx512"


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
