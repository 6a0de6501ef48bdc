"""`python -m pl_compile.cli`: the command `plc` where it is not on the path."""

from pl_compile.cli.main import main

main()
