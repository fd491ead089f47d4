"""Numbers about a selection: what was picked from what, how good it provably is, and whether the theory holds on it.

Everything here takes arrays, tensors or gradient stores and gives frozen results with ``to_pandas()`` and
``model_dump_json()``. The names are loaded on first use.

Whole analyses:
    ``analyse_rows``: every part below for an array or a store, with or without its selection.
    ``analyse_theory``: epsilon-decomposition, bounds, curvature, gain curves and conflict correlations.
    ``certify``, ``certify_selection``: a proven lower bound on how much of the best possible information picks hold.

Diversity:
    ``measure_diversity``: every measure of the picks beside random rows.
    ``novelsum``, ``vendi``, ``vendi_of_kernel``, ``g_vendi``, ``ldd_wang``, ``logdet_similarity``.

Comparison:
    ``overlaps``, ``expected_jaccard``: what selections have in common.
    ``measure_coverage``, ``length_labels``, ``cluster_labels``: what of the pool the picks cover.

Figures:
    ``figures``: functions that return matplotlib figures.

A run's folder is analysed by :func:`spice_select.analysis_of.analyse_folder`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spice_select.analysis import figures
    from spice_select.analysis.account import Analysis
    from spice_select.analysis.assemble import analyse_rows
    from spice_select.analysis.certificate import Certificate, certify, certify_selection
    from spice_select.analysis.coverage import Coverage, cluster_labels, length_labels, measure_coverage
    from spice_select.analysis.directions import Score
    from spice_select.analysis.diversity import Diversity, measure_diversity
    from spice_select.analysis.ldd import ldd_wang, logdet_similarity
    from spice_select.analysis.novel_sum import NovelSum, novelsum
    from spice_select.analysis.overlap import Overlap, Overlaps, expected_jaccard, overlaps
    from spice_select.analysis.theory import TheoryReport, analyse_theory
    from spice_select.analysis.vendi_score import g_vendi, vendi, vendi_of_kernel

_HOMES = {
    "Analysis": "account",
    "Certificate": "certificate",
    "Coverage": "coverage",
    "Diversity": "diversity",
    "NovelSum": "novel_sum",
    "Overlap": "overlap",
    "Overlaps": "overlap",
    "Score": "directions",
    "TheoryReport": "theory",
    "analyse_rows": "assemble",
    "analyse_theory": "theory",
    "certify": "certificate",
    "certify_selection": "certificate",
    "cluster_labels": "coverage",
    "expected_jaccard": "overlap",
    "g_vendi": "vendi_score",
    "ldd_wang": "ldd",
    "length_labels": "coverage",
    "logdet_similarity": "ldd",
    "measure_coverage": "coverage",
    "measure_diversity": "diversity",
    "novelsum": "novel_sum",
    "overlaps": "overlap",
    "vendi": "vendi_score",
    "vendi_of_kernel": "vendi_score",
}

__all__ = [
    "Analysis",
    "Certificate",
    "Coverage",
    "Diversity",
    "NovelSum",
    "Overlap",
    "Overlaps",
    "Score",
    "TheoryReport",
    "analyse_rows",
    "analyse_theory",
    "certify",
    "certify_selection",
    "cluster_labels",
    "expected_jaccard",
    "figures",
    "g_vendi",
    "ldd_wang",
    "length_labels",
    "logdet_similarity",
    "measure_coverage",
    "measure_diversity",
    "novelsum",
    "overlaps",
    "vendi",
    "vendi_of_kernel",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"spice_select.analysis.{_HOMES[name]}"), name)
    if name == "figures":
        return import_module("spice_select.analysis.figures")
    raise AttributeError(f"module 'spice_select.analysis' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
