"""What a network learns from a batch: its label, and where the object is."""

import torch
import torch.nn.functional as F
from torch import nn

from fastcka.data.cues.fields import TEXTURES

# Of each kind of network, an early layer whose features lie on a grid of eight by eight.
EARLY = {"vit": "blocks.2", "mixer": "blocks.2", "resnet": "layer2"}
GRID = 8


class Supervised(nn.Module):
    """A network and the head of its second task: (logits, mask of the object by cells of a grid).

    The mask makes a transformer find edges before it has learned what they are good for; labels
    alone teach it too little. Its head is not kept.
    """

    def __init__(self, network: nn.Module, kind: str, size: int):
        super().__init__()
        self.network = network
        self.prefix = getattr(network, "num_prefix_tokens", 0)
        self._early: list[torch.Tensor] = []
        network.get_submodule(EARLY[kind]).register_forward_hook(self._keep)
        was = network.training
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, size, size))
        network.train(was)
        features = self._features()
        if features.shape[1] != GRID * GRID:
            raise ValueError(
                f"{EARLY[kind]} has {features.shape[1]} places, and must have {GRID * GRID}: "
                f"images of {size} pixels do not fit this network"
            )
        width = features.shape[2]
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, (size // GRID) ** 2))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.network(images)
        return logits, self.head(self._features())

    def _keep(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self._early[:] = [output]

    def _features(self) -> torch.Tensor:
        """[batch, places, channels], of the last pass."""
        features = self._early.pop()
        if features.ndim == 4:
            return features.flatten(2).transpose(1, 2)
        return features[:, self.prefix :]


def loss_of(
    logits: torch.Tensor,
    cells: torch.Tensor,
    labels: torch.Tensor,
    masks: torch.Tensor,
    weight: float,
) -> torch.Tensor:
    """Cross-entropy of the labels, and `weight` times that of the masks."""
    loss = F.cross_entropy(logits, labels)
    if weight:
        loss = loss + weight * F.binary_cross_entropy_with_logits(cells, in_cells(masks))
    return loss


def in_cells(masks: torch.Tensor) -> torch.Tensor:
    """[batch, size, size] -> [batch, places, pixels of a place]."""
    cells = masks.unflatten(2, (GRID, -1)).unflatten(1, (GRID, -1))  # b, row, y, column, x
    return cells.transpose(2, 3).flatten(3).flatten(1, 2)


def turned(
    images: torch.Tensor, masks: torch.Tensor, labels: torch.Tensor, turns: torch.Tensor, label: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each image in one of the eight positions of a square, with its mask and label.

    Args:
        images: [batch, size, size, 3].
        turns: [batch], 0 to 7: bits for left and right, up and down, and rows and columns.
        label: what the labels name. A texture is another one when it is turned.
    """
    for bit, move in enumerate((_mirrored, _upside_down, _transposed)):
        chosen = (turns >> bit & 1).bool()
        images = torch.where(chosen[:, None, None, None], move(images), images)
        masks = torch.where(chosen[:, None, None], move(masks), masks)
        if label == "texture":
            table = torch.tensor(TURNED_TEXTURES[bit], device=labels.device)
            labels = torch.where(chosen, table[labels], labels)
    return images, masks, labels


def _mirrored(x: torch.Tensor) -> torch.Tensor:
    return x.flip(2)


def _upside_down(x: torch.Tensor) -> torch.Tensor:
    return x.flip(1)


def _transposed(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2)


def _after(change) -> list[int]:
    """The texture that each texture becomes when its orientation in degrees changes so."""
    names = list(TEXTURES)
    split = (name.rsplit("_", 1) for name in names)
    return [names.index(f"{kind}_{change(int(degrees)) % 180}") for kind, degrees in split]


TURNED_TEXTURES = (
    _after(lambda degrees: -degrees),
    _after(lambda degrees: -degrees),
    _after(lambda degrees: 90 - degrees),
)
