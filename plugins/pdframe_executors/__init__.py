"""Where the rows of a bench are run."""

from pdframe.hooks import Entry, hookimpl


@hookimpl
def pdframe_register() -> list[Entry]:
    return [
        Entry("executor", "local", "pdframe_executors.local:LocalConfig", "Processes on this machine, one per device"),
    ]
