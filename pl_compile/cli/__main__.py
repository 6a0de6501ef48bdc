"""`python -m pl_compile.cli`: the command where nothing is on the path."""

from pl_compile.cli.main import main

main()
