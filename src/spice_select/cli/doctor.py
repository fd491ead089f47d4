"""``spice-select doctor``: does it work here, and on this model?"""

from __future__ import annotations

import typer

from spice_select.cli import options as o
from spice_select.cli.console import say
from spice_select.cli.show import size


def doctor(
    model: o.Model = None,
    config: o.Config = None,
    overrides: o.Set = None,
    as_json: o.Json = False,
) -> None:
    """Print versions, device, memory and disk; with --model, test its gradients against autograd.

    Exits with 3 if the gradients differ by more than rounding.
    """
    from spice_select.checkup import examine

    settings = o.settings(config=config, overrides=overrides, model__name=model)
    found = examine(settings.model, settings.gradients)
    if as_json:
        say(found.model_dump_json())
    else:
        say("versions   " + ", ".join(f"{name} {number}" for name, number in found.versions.items()))
        memory = f", {size(found.device_memory_bytes)} of its own" if found.device_memory_bytes else ""
        say(f"device     {found.device} ({found.device_name}{memory}), {found.cores} cores")
        say(f"memory     {size(found.memory_bytes)}")
        say(f"disk       {size(found.disk_free_bytes)} free here")
        if found.gradients is None:
            say("gradients  not tested; name a model with --model")
        else:
            check = found.gradients
            say(
                f"gradients  {'pass' if check.passed else 'FAIL'}: {check.compared} of the {check.layers} layers of "
                f"{check.model} agree with autograd to {check.largest_relative_error:.1e} relative; "
                f"{check.coverage:.1%} of the non-embedding weights covered"
            )
    if found.gradients is not None and not found.gradients.passed:
        raise typer.Exit(3)
