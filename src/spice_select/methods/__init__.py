"""Selection methods behind one door: SPICE, and what it is compared with."""

from spice_select.methods.base import Choice, Method, Need, finished, ranked
from spice_select.methods.inputs import Checkpoint, Inputs, Learner, Step, Target, Tokens
from spice_select.methods.registry import GROUP, make_method, method_class, method_names

__all__ = [
    "GROUP",
    "Checkpoint",
    "Choice",
    "Inputs",
    "Learner",
    "Method",
    "Need",
    "Step",
    "Target",
    "Tokens",
    "finished",
    "make_method",
    "method_class",
    "method_names",
    "ranked",
]
