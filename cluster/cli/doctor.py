"""`shoal doctor`: a check of the machine and its installation."""

from dataclasses import asdict

import typer

from cluster.cli.options import AsJson, console_for, print_json


def doctor(as_json: AsJson = False) -> None:
    """Check the installation, Ray's left-over processes and the limits of this machine, and suggest remedies."""
    from cluster.doctor.probe import diagnose

    console = console_for(as_json)
    with console.status("checking the installation and this machine"):  # importing torch can take half a minute
        findings = diagnose()
    problems = [finding for finding in findings if finding.status == "problem"]
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        from rich.table import Table

        table = Table(show_lines=False)
        for heading in ("check", "status", "result", "remedy"):
            table.add_column(heading, overflow="fold")  # a path or a command that is cut off is of no use
        for finding in findings:
            table.add_row(finding.name, finding.status, finding.what, finding.remedy)
        console.print(table)
    raise typer.Exit(2 if problems else 0)
