"""Templates, the policy of a page, and numbers as a person reads them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spice_select.analysis.certificate import percent_down
from spice_select.report.text import markup


def render(template: str, **values: object) -> str:
    """A page from a template; style and script are its own, and their hashes are all that its policy allows.

    Args:
        template: Name of the template.
        **values: What it shows; all text is made plain and escaped.
    """
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    return page.render(style=Markup(style), script=Markup(script), policy=Markup(policy), **values)


def embedded(value: object) -> Markup:
    """JSON that no HTML parser can take for markup, and no script for a line's end."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text.encode("utf-8", "replace").decode())


def number(value: float | int | None, digits: int = 4) -> str:
    """A number with so many significant digits, and thousands set apart."""
    if value is None:
        return "none"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("spice_select.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters["number"] = number
    environment.filters["commands"] = _commands
    environment.filters["proven"] = lambda share: "" if share is None else percent_down(share)
    environment.filters["percent"] = lambda share: "" if share is None else f"{share:.1%}"
    return environment


def _finalize(value: object) -> object:
    """Every expression of the template is made plain as well as escaped, whoever wrote it."""
    return value if isinstance(value, Markup) else markup(value)


def _commands(sentence: str) -> Markup:
    """A sentence whose settings look like what is typed, and don't break at their hyphens."""
    return Markup(re.sub(r"--set [a-z_.]+=[a-z_0-9]+|--schedule [a-z]+", r"<code>\g<0></code>", str(markup(sentence))))


def _asset(name: str) -> str:
    return files("spice_select.report").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
