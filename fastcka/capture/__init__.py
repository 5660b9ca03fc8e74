"""WHERE the data comes from: which activations of a model are taken, and taking them.

Knows nothing of CKA: hands every activation to a function the moment it exists, and keeps none.
"""

from fastcka.capture.hooks import Capture
from fastcka.capture.tap import Tap

__all__ = ["Capture", "Tap"]
