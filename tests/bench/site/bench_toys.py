"""A third party's plugin for the tests of the bench: a small operator, a fair solver and a number of unfair ones."""

from pdframe.hooks import Entry, hookimpl


@hookimpl
def pdframe_register() -> list[Entry]:
    return [
        Entry("operator", "toy_matrix", "bench_toys_parts:MatrixConfig", "Random rays"),
        Entry("prior", "toy_white", "bench_toys_parts:WhiteConfig", "A white Gaussian"),
        Entry("solver", "toy_descent", "bench_toys_parts:DescentConfig", "Noisy gradient descent, fair or not"),
        Entry("solver", "toy_steered", "bench_toys_parts:SteeredConfig", "The same with a prior"),
        Entry("solver", "toy_absent", "bench_toys_parts:DescentConfig", "Never usable", requires=("no_such_library",)),
    ]
