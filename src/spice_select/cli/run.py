"""``spice-select run``: rows in, a subset out."""

from __future__ import annotations

from spice_select.cli import options as o
from spice_select.cli.console import ConsoleReporter
from spice_select.cli.show import show_cost, show_result


def run(
    data: o.Data = None,
    model: o.Model = None,
    budget: o.Budget = None,
    output: o.Output = None,
    config: o.Config = None,
    overrides: o.Set = None,
    preset: o.Preset = None,
    seed: o.Seed = None,
    limit: o.Limit = None,
    method: o.Method = None,
    target: o.Target = None,
    schedule: o.Schedule = None,
    warmup_steps: o.WarmupSteps = None,
    partitions: o.Partitions = None,
    engine: o.Engine = "local",
    workers: o.Workers = None,
    address: o.Address = None,
    dry_run: o.DryRun = False,
    at_rows: o.AtRows = None,
    at_machines: o.AtMachines = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Choose a subset: read the rows, measure every gradient, select, and write a data set that trains as it stands.

    A run that was cut off goes on where it stopped when the same command is given again.
    """
    o.refuse_both(resume, overwrite)
    settings = o.settings(
        config=config,
        overrides=overrides,
        preset=preset,
        seed=seed,
        data__sources=tuple(data) if data else None,
        data__limit=limit,
        model__name=model,
        selection__budget=budget,
        selection__partitions=partitions,
        output__folder=output,
        method__name=method,
        data__target=tuple(target) if target else None,
        schedule__kind=schedule,
        **o.warmup(warmup_steps),
    )
    with ConsoleReporter(quiet=quiet or as_json) as reporter:
        if dry_run:
            from spice_select import pricing

            size = o.fleet(engine, workers, address, at_machines)
            show_cost(pricing.dry_run(settings, reporter, rows=at_rows, fleet=size), as_json=as_json)
            return
        o.warn_unused(reporter, at_rows, at_machines)
        with o.crew(engine, workers, address, settings) as crew:
            from spice_select import pipeline

            result = pipeline.run(settings, reporter, overwrite=overwrite, workers=crew)
        if result is not None:
            show_result(result, as_json=as_json)
