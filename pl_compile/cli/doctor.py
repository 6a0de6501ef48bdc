"""`plc doctor`."""

from dataclasses import asdict

import click

from pl_compile.cli.terminal import json_option, print_json, print_table


@click.command("doctor", epilog="Example: plc doctor")
@json_option
def command(as_json: bool) -> None:
    """Say what works on this machine, what does not, and why."""
    from pl_compile.driver.doctor import examine

    findings = examine()
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
        return
    rows = [[f.name, "yes" if f.works else "no", f.detail] for f in findings]
    print_table("This machine", ["what", "works", "detail"], rows)
