"""`python -m pdframe`: the command line."""

from pdframe.cli import main

main(prog_name="pdframe")
