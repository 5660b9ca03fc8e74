"""How alike do networks represent the same images, layer by layer?

>>> import fastcka, numpy
>>> x = numpy.random.default_rng(0).normal(size=(64, 8))
>>> round(fastcka.cka(x, 3 * x[:, ::-1] + 1), 6)
1.0
"""

from importlib.metadata import version as _version

from fastcka import data, models
from fastcka.capture import Tap
from fastcka.comparison import compare, compare_many
from fastcka.fingerprinting import fingerprint
from fastcka.fingerprints import Fingerprint
from fastcka.functional import cka, hsic
from fastcka.planning import Plan, plan
from fastcka.result import CKAResult, CKAResults
from fastcka.streaming import MinibatchCKA
from fastcka.warning import CKAWarning

__version__ = _version("fastcka")
__all__ = [
    "CKAResult",
    "CKAResults",
    "CKAWarning",
    "Fingerprint",
    "MinibatchCKA",
    "Plan",
    "Tap",
    "cka",
    "compare",
    "compare_many",
    "data",
    "fingerprint",
    "hsic",
    "models",
    "plan",
]
