"""Names of networks turned into networks with their preprocessing, by timm."""

from fastcka.models.loading import Network, load
from fastcka.models.names import is_model, known, labels

__all__ = ["Network", "is_model", "known", "labels", "load"]
