"""`shoal plan`: a dry run of table placement."""

from typing import Annotated, Literal, get_args

import typer

from cluster.cli.options import AsJson, Overrides, console_for, print_json

# Written out, so that --help imports no module that knows them. A test compares the two.
Device = Literal["cpu", "cuda"]
GpuPreset = Literal["a100-80gb", "h100-80gb", "h200-141gb"]


def plan(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="config of a run, or a workload (configs/plans/)", show_default=False),
    ],
    devices: Annotated[int | None, typer.Option(help="number of devices (one worker per device)")] = None,
    devices_per_host: Annotated[int | None, typer.Option(help="number of devices on each host")] = None,
    device: Annotated[Device | None, typer.Option(help="type of the devices")] = None,
    device_memory: Annotated[str | None, typer.Option(help="memory of a device, such as 80GiB")] = None,
    host_memory: Annotated[str | None, typer.Option(help="memory of a host, such as 2TiB")] = None,
    preset: Annotated[
        GpuPreset | None,
        typer.Option(metavar="NAME", help=f"memory and speeds of a GPU: {', '.join(get_args(GpuPreset))}"),
    ] = None,
    rows: Annotated[
        list[str] | None, typer.Option(metavar="TABLE=N", help="rows of a table, where no dataset exists yet")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="KEY=VALUE,...", help="also plan with other settings, such as devices=128, and compare"),
    ] = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN_DIR", help="fit the cost model to the measurements of this run; repeatable"),
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="FOLDER", help="folder for plan.json and plan.html")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Plan table placement for given devices and estimate the step cost (dry run)."""
    from cluster.plan import command

    options = {
        "devices": devices,
        "devices_per_host": devices_per_host,
        "device": device,
        "device_memory": device_memory,
        "host_memory": host_memory,
        "preset": preset,
    }
    settings = [f"{name}={value}" for name, value in options.items() if value is not None]
    answer = command.run(config, [*(overrides or []), *settings], rows or [], compare, out, calibrate or [])
    if as_json:
        print_json(command.json_of(answer))
    else:
        command.print_for_people(answer, console_for(False))
