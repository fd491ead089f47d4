"""``spice-select methods``: what there is to select with."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from spice_select.cli import options as o
from spice_select.cli.console import say


def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method with its settings.", show_default=False)] = None,
    as_json: o.Json = False,
) -> None:
    """List the selection methods: what each maximises, what it needs of the rows, what it costs, and its source."""
    from spice_select.method_list import describe_method, list_methods

    entries = list_methods() if name is None else [describe_method(name)]
    if as_json:
        found = [entry.model_dump(mode="json") for entry in entries]
        say(json.dumps(found if name is None else found[0], indent=2, ensure_ascii=False))
        return
    for entry in entries:
        for line in entry.describe(settings=name is not None):
            say(line)
