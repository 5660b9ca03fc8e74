"""Names of networks turned into networks with their preprocessing, by timm."""

from fastcka.models.loading import Network, load
from fastcka.models.names import known, labels

__all__ = ["Network", "known", "labels", "load"]
