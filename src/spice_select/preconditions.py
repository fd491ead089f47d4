"""What a command must have been told before it begins."""

from __future__ import annotations

from spice_select.config import RunConfig, resolve
from spice_select.errors import ConfigError
from spice_select.gradients.precondition import check_precondition
from spice_select.methods import Method, Need, make_method
from spice_select.methods.base import Varies
from spice_select.methods.information import InformationMethod
from spice_select.reporter import Reporter
from spice_select.run_folder import RunFolder


def require_named(config: RunConfig, *, output: bool) -> None:
    """Rows, a proxy and, where something will be written, an output must be named.

    Rows are counted in tokens of the proxy, so that a method that measures nothing needs its name as well.

    Raises:
        ConfigError: One is missing.
    """
    if not any(config.data.sources):
        raise ConfigError("No data was named; give files, folders or Hub ids, such as 'spice-select run rows.jsonl'.")
    if not all(config.data.sources):
        raise ConfigError("A source of data.sources has an empty name; leave it out, or name '.' for this folder.")
    if not config.model.name:
        raise ConfigError("No proxy model was named; give a folder or Hub id with --model.")
    if output and not config.output.folder:
        raise ConfigError("No output folder was named; give one with --output.")


def warn_of_patterns(folder: RunFolder, reporter: Reporter) -> None:
    """Say that a path will be read as a pattern by those who load the result."""
    path = str(folder.path.absolute())
    if found := sorted(set(path) & set("*?[")):
        reporter.warn(
            f"The output {path} has {' and '.join(found)} in its path, which datasets.load_dataset reads as a pattern; "
            "rename it before you load it."
        )


def chosen_method(config: RunConfig) -> tuple[RunConfig, Method]:
    """The method of a run, and the configuration with all that follows from it.

    Every setting of the method then stands in the configuration, so that a written one replays the run whatever later
    versions take as defaults; and the selection section says what a method that maximises information does.

    Raises:
        ConfigError: An unknown method or setting, or a method that these settings do not go with.
    """
    check_precondition(config)
    method = make_method(config.method.name, config.method.settings)
    selection = {**config.selection.model_dump(), **method.in_selection()}
    settings = {
        **config.model_dump(exclude={"selection", "method"}),
        "selection": selection,
        "method": {"name": method.name, **method.model_dump(mode="json", exclude_none=True)},
    }
    resolved = resolve(settings)
    if config.schedule.kind == "pools" and not isinstance(method, InformationMethod):
        raise ConfigError(
            f"schedule.kind pools selects by information, pool by pool, and method '{method.name}' does not; use "
            "schedule.kind fixed, or method spice or fisher."
        )
    if Need.TARGET in method.required() and not config.data.target:
        raise ConfigError(
            f"Method '{method.name}' chooses towards target examples, and none were given; name a file of them with "
            "--target FILE."
        )
    return resolved, method


def varies(method: Method, config: RunConfig) -> Varies:
    """What of a method's answer depends on the seed, given the selection section it goes by."""
    drawn = isinstance(method, InformationMethod) and config.selection.approximate
    return "draw" if drawn else method.varying()


def measures_alone(method: Method) -> bool:
    """Whether a method needs anything that one process must measure by itself."""
    return not method.required() <= {Need.GRADIENTS}


def require_budget(config: RunConfig, method: Method) -> None:
    """A selection needs a budget or a stop ratio, unless its method takes everything.

    Raises:
        ConfigError: It has neither.
    """
    if method.takes_budget and config.selection.budget is None and config.selection.stop_ratio is None:
        raise ConfigError("No budget was given; give one with --budget (such as 10%), or a selection.stop_ratio.")


def require_same_gradients(earlier: RunConfig, later: RunConfig) -> None:
    """Refuse settings that gradients which are there already cannot answer to.

    Raises:
        ConfigError: A setting of rows, proxy, gradients or schedule differs.
    """
    for section in ("data", "model", "gradients", "schedule", "seed"):
        if getattr(earlier, section) != getattr(later, section):
            raise ConfigError(
                f"A setting of '{section}' belongs to the gradients, which are there already; "
                "set selection settings only, or collect again into another folder."
            )
