"""``spice-select collect``: measure every gradient, select later."""

from __future__ import annotations

from spice_select.cli import options as o
from spice_select.cli.console import ConsoleReporter
from spice_select.cli.show import show_cost, show_store


def collect(
    data: o.Data = None,
    model: o.Model = None,
    output: o.Output = None,
    config: o.Config = None,
    overrides: o.Set = None,
    preset: o.Preset = None,
    seed: o.Seed = None,
    limit: o.Limit = None,
    warmup_steps: o.WarmupSteps = None,
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
    """Measure the gradient of every row and keep them in OUTPUT/gradients, for `spice-select select OUTPUT`."""
    o.refuse_both(resume, overwrite)
    settings = o.settings(
        config=config,
        overrides=overrides,
        preset=preset,
        seed=seed,
        data__sources=tuple(data) if data else None,
        data__limit=limit,
        model__name=model,
        output__folder=output,
        **o.warmup(warmup_steps),
    )
    with ConsoleReporter(quiet=quiet or as_json) as reporter:
        if dry_run:
            from spice_select import pricing

            size = o.fleet(engine, workers, address, at_machines)
            show_cost(pricing.dry_run(settings, reporter, selection=False, rows=at_rows, fleet=size), as_json=as_json)
            return
        o.warn_unused(reporter, at_rows, at_machines)
        with o.crew(engine, workers, address, settings) as crew:
            from spice_select import pipeline

            store = pipeline.collect(settings, reporter, overwrite=overwrite, workers=crew)
        if store is not None:
            show_store(store, as_json=as_json)
