"""A run's data set on the Hugging Face Hub: its rows and its card, and nothing else of the run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from spice_select.analysis.record import SelectionRecord
from spice_select.errors import ConfigError, OutputError, SpiceError, StoreError
from spice_select.export.card import Raw, code_span, escape_markdown

PATTERNS = ("data/*.parquet", "README.md")
METRICS = "## Metrics of the selection"


@dataclass(frozen=True)
class Pushed:
    """What is on the Hub now.

    Attributes:
        repository: ``owner/name``.
        address: Where it is.
        files: Names of the files that were handed over.
        private: Whether the repository was asked to be private.
    """

    repository: str
    address: str
    files: tuple[str, ...]
    private: bool


def push_dataset(folder: Path, record: SelectionRecord, repository: str, *, private: bool = False) -> Pushed:
    """Hand a run's rows and card to the Hub.

    The files are laid into an empty folder first, so that gradients, settings, traces and the page cannot leave the
    machine, whatever patterns mean to the library.

    Args:
        folder: The run's folder.
        record: What it selected; the card's metrics are from it.
        repository: ``owner/name``.
        private: Make a new repository private.

    Raises:
        ConfigError: The repository's name is none.
        StoreError: The run has no rows or no card.
        OutputError: There is no token, the repository is public where a private one was asked for, or the Hub refused.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise ConfigError(_name(repository)) from None
    if repository.count("/") != 1:
        raise ConfigError(_name(repository))
    files = sorted((folder / "data").glob("train-*.parquet"))
    card = folder / "README.md"
    if not files or not card.is_file():
        raise StoreError(f"{folder} lacks its rows (data/*.parquet) or its card (README.md); finish the run first.")
    if not get_token():
        raise OutputError(
            f"--push-to-hub {repository} needs a token that may write; log in with 'hf auth login', or set HF_TOKEN."
        )
    api = HfApi()
    with tempfile.TemporaryDirectory(prefix="spice-select-push-") as temporary:
        staged = Path(temporary)
        (staged / "data").mkdir()
        for file in files:
            (staged / "data" / file.name).symlink_to(file.resolve())
        (staged / card.name).write_text(with_metrics(card.read_text("utf-8"), record), "utf-8")
        try:
            made = api.create_repo(repository, repo_type="dataset", private=private or None, exist_ok=True)
            if private and not api.dataset_info(repository).private:
                raise OutputError(
                    f"--push-to-hub {repository} names a repository that is there already and public; make it private,"
                    " name another, or leave --private out."
                )
            api.upload_folder(
                repo_id=repository,
                repo_type="dataset",
                folder_path=staged,
                allow_patterns=list(PATTERNS),
                # Rows of an earlier push whose shards had other names would be loaded beside these.
                delete_patterns=["data/train-*.parquet"],
                commit_message=f"{record.k} rows chosen by {record.label}",
            )
        except SpiceError:
            raise
        except Exception as error:  # the library's own, and those of whichever HTTP client its version uses
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
            raise OutputError(
                f"--push-to-hub {repository} did not succeed ({reason}); check the name, the token's rights and the"
                " connection, and push again."
            ) from None
    names = (*(f"data/{file.name}" for file in files), card.name)
    return Pushed(repository, str(made), names, private)


def with_metrics(card: str, record: SelectionRecord) -> str:
    """The card with a table of what the record holds; a card that has one already keeps it."""
    lines = metrics(record)
    if not lines or METRICS in card:
        return card
    table = "\n".join(f"| {escape_markdown(name)} | {value} |" for name, value in lines)
    return f"{card.rstrip()}\n\n{METRICS}\n\n| measure | value |\n|---|--:|\n{table}\n"


def metrics(record: SelectionRecord) -> list[tuple[str, Raw]]:
    """Name and value of everything that the record has measured of the picks; no entry for what it has not."""
    summary, found = record.summary, list[tuple[str, str | None]]()
    found.append(("rows chosen, of usable rows", f"{record.k:,} of {record.usable:,}"))
    found.append(("information of the picks", _number(record.information, " nats")))
    if record.certificate is not None:
        found.append(("share of the best possible information, proven", f"{100 * record.certificate.value:.1f}%"))
    lengths = summary.length_mean
    found.append(("response tokens, mean: picks", _number(lengths.picks)))
    found.append(("response tokens, mean: pool", _number(lengths.pool)))
    if summary.norm_median is not None:
        found.append(("gradient norm, median: picks", _number(summary.norm_median.picks)))
        found.append(("gradient norm, median: pool", _number(summary.norm_median.pool)))
    if summary.opposing_share is not None:
        found.append(("picks that oppose the reference gradient", f"{100 * summary.opposing_share:.1f}%"))
    if summary.changed_by_penalty is not None:
        found.append(("picks that the penalty changed", f"{summary.changed_by_penalty:,}"))
    if record.fingerprints.rows is not None:
        found.append(("SHA-256 of the pool", code_span(record.fingerprints.rows)))
    return [(name, Raw(value)) for name, value in found if value is not None]


def _number(value: float | None, unit: str = "") -> str | None:
    return None if value is None else f"{value:.6g}{unit}"


def _name(repository: str) -> str:
    return f"--push-to-hub {repository!r} is no name of a repository; give it as owner/name."
