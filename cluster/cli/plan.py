"""`shoal plan`: a dry run of table placement."""

from typing import Annotated, Literal, get_args

import typer

from cluster.cli.options import AsJson, Overrides, console_for, print_json

# Written out, so that --help imports no module that knows them. A test compares the two.
Device = Literal["cpu", "cuda"]
GpuPreset = Literal["a100-80gb", "h100-80gb", "h200-141gb"]
Scaling = Literal["weak", "strong"]


Config = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="config of a run, or a workload (configs/plans/)", show_default=False),
]
Preset = Annotated[
    GpuPreset | None,
    typer.Option(metavar="NAME", help=f"memory and speeds of a GPU: {', '.join(get_args(GpuPreset))}"),
]
Rows = Annotated[list[str] | None, typer.Option(metavar="TABLE=N", help="rows of a table, where no dataset exists yet")]
Compare = Annotated[
    str | None,
    typer.Option(metavar="KEY=VALUE,...", help="also plan with other settings, such as devices=128, and compare"),
]
Calibrate = Annotated[
    list[str] | None,
    typer.Option(metavar="RUN_DIR", help="fit the cost model to the measurements of this run; repeatable"),
]
Simulate = Annotated[
    bool,
    typer.Option("--simulate", help="predict step time, traffic, cost of failures and goodput for several workers"),
]
Workers = Annotated[
    str | None,
    typer.Option(metavar="N,N,...", help="with --simulate: numbers of workers; default: powers of two up to 1,024"),
]
ScalingOption = Annotated[
    Scaling | None,
    typer.Option(help="with --simulate: weak keeps the batch per worker (default), strong keeps the global batch"),
]
Constants = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="with --simulate: TOML file with constants of devices and storage"),
]
Out = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="folder for plan.json and plan.html, or simulation.json and simulation.html"),
]


def plan(
    config: Config,
    devices: Annotated[int | None, typer.Option(help="number of devices (one worker per device)")] = None,
    devices_per_host: Annotated[int | None, typer.Option(help="number of devices on each host")] = None,
    device: Annotated[Device | None, typer.Option(help="type of the devices")] = None,
    device_memory: Annotated[str | None, typer.Option(help="memory of a device, such as 80GiB")] = None,
    host_memory: Annotated[str | None, typer.Option(help="memory of a host, such as 2TiB")] = None,
    preset: Preset = None,
    rows: Rows = None,
    compare: Compare = None,
    calibrate: Calibrate = None,
    simulate: Simulate = False,
    workers: Workers = None,
    scaling: ScalingOption = None,
    constants: Constants = None,
    out: Out = None,
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
    every = [*(overrides or []), *settings]
    refuse_together(simulate, compare, workers, scaling, constants)
    if simulate:
        from cluster.plan.simulation import command as simulation

        of_workers = simulation.run(
            config, every, rows or [], workers, scaling or "weak", constants, out, calibrate or []
        )
        if as_json:
            print_json(simulation.json_of(of_workers))
        else:
            simulation.print_for_people(of_workers, console_for(False))
        return
    answer = command.run(config, every, rows or [], compare, out, calibrate or [])
    if as_json:
        print_json(command.json_of(answer))
    else:
        command.print_for_people(answer, console_for(False))


def refuse_together(
    simulate: bool, compare: str | None, workers: str | None, scaling: str | None, constants: str | None
) -> None:
    """Raise UserError for options that have no effect together."""
    from trainer.errors import UserError

    if simulate and compare is not None:
        raise UserError(
            "--compare: has no effect with --simulate; simulate each of the settings by a command of its own"
        )
    for name, value in (("--workers", workers), ("--scaling", scaling), ("--constants", constants)):
        if value is not None and not simulate:
            raise UserError(f"{name}: has an effect with --simulate only; add --simulate, or omit it")
