"""`plc doctor`."""

from dataclasses import asdict

import click

from pl_compile.cli.terminal import json_option, print_json, print_table


@click.command("doctor", epilog="Example: plc doctor")
@click.option(
    "--cmake-dir",
    is_flag=True,
    help="Print only the folder where CMake finds libplc_runtime, for C and C++ programs: "
    'cmake -DCMAKE_PREFIX_PATH="$(plc doctor --cmake-dir)".',
)
@json_option
def command(as_json: bool, cmake_dir: bool) -> None:
    """Say what works on this machine, what does not, and why."""
    from pl_compile.driver import doctor

    if cmake_dir:
        folder = str(doctor.cmake_dir())
        print_json({"cmake_dir": folder}) if as_json else click.echo(folder)
        return
    findings = doctor.examine()
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
        return
    rows = [[f.name, "yes" if f.works else "no", f.detail] for f in findings]
    print_table("This machine", ["what", "works", "detail"], rows)
