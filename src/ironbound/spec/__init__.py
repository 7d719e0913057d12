"""Properties of networks as plain data, and the competition's files: VNNLIB, counterexamples, lists of instances.

`constraints` holds the data, `properties` makes properties of labels, `vnnlib` reads and `vnnlib_text` writes,
`instances` reads the list of a benchmark.
"""

from ironbound.spec.constraints import Case, Clause, Constraint, Property
from ironbound.spec.instances import Instance, read_instances
from ironbound.spec.properties import label_property, margin_label
from ironbound.spec.vnnlib import parse_vnnlib, read_vnnlib
from ironbound.spec.vnnlib_text import counterexample_text, vnnlib_text

__all__ = [
    "Case",
    "Clause",
    "Constraint",
    "Instance",
    "Property",
    "counterexample_text",
    "label_property",
    "margin_label",
    "parse_vnnlib",
    "read_instances",
    "read_vnnlib",
    "vnnlib_text",
]
