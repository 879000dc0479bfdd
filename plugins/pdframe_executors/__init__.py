"""Where the rows of a bench are run."""

from pdframe.hooks import Entry, hookimpl


@hookimpl
def pdframe_register() -> list[Entry]:
    return [
        Entry("executor", "local", "pdframe_executors.local:LocalConfig", "Processes on this machine, one per device"),
        Entry(
            "executor",
            "ray",
            "pdframe_executors.ray:RayConfig",
            "A Ray cluster: rows on any node that has room",
            requires=("ray",),
            extra="ray",
        ),
    ]
