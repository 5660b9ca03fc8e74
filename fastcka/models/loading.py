"""From a name to a network that is ready to be measured."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastcka.models.names import label
from fastcka.models.weights import Source, find, one_line
from fastcka.options import check_whole_number


@dataclass(frozen=True, eq=False)
class Network:
    """A network with the preprocessing its weights were trained for.

    Attributes:
        name: a label, without the folders of files.
        module: in evaluation mode, float32, on the CPU; None where the rest alone is known.
        data_config: input size, interpolation, crop, mean and standard deviation, as timm has them.
        provenance: what the numbers depend on; can be written as JSON.
    """

    name: str
    module: torch.nn.Module | None
    data_config: dict
    provenance: dict

    @property
    def untrained(self) -> bool:
        """Whether its weights are as they were initialised."""
        return self.provenance["weights"].startswith("untrained")

    def transform(self) -> Callable:
        """From a PIL RGB image to the tensor the network takes, [3, height, width].

        >>> from fastcka import models
        >>> from PIL import Image
        >>> image = Image.new("RGB", (300, 200))
        >>> models.load("resnet10t").transform()(image).shape
        torch.Size([3, 176, 176])
        """
        from timm.data import create_transform

        return create_transform(**self.data_config, is_training=False)


def load(
    name: str,
    *,
    pretrained: bool = False,
    seed: int = 0,
    img_size: int | None = None,
    **options,
) -> Network:
    """A network by its name, with weights from a seed, a file or the Hugging Face hub.

    Args:
        name: MODEL or MODEL@CHECKPOINT. MODEL is a name of timm, with or without a tag,
            `hf-hub:owner/model`, or `local-dir:/path`, which brings its own weights. CHECKPOINT is
            a .safetensors, .pth, .pt or .bin file as timm reads it; its head gives the number of
            classes. It must fit in every key, except where timm itself is lenient (DLA,
            MobileNetV5).
        pretrained: take weights from the hub, or from its cache without any network, where `name`
            does not bring its own.
        seed: of untrained weights, from 0 on; the caller's random state is left alone.
        img_size: pixels of a side of the images; None is what the weights were trained for.
        options: for timm.create_model, such as num_classes.

    Returns:
        The network. Costs one initialisation on the CPU, and one reading of the weights.

    Raises:
        ValueError: an unknown model, or weights that are missing, unreadable or of another model.
        FileNotFoundError: no such file.
        RuntimeError: the weights are not on this machine and cannot be downloaded.

    >>> from fastcka import models
    >>> network = models.load("vit_tiny_patch16_224", img_size=32, seed=1)
    >>> network.provenance["weights"], network.provenance["input_size"]
    ('untrained, seed 1', [3, 32, 32])
    """
    from timm.data import resolve_model_data_config

    check_whole_number("seed", seed, 0)
    if img_size is not None:
        check_whole_number("img_size", img_size, 1)
    source = find(name, pretrained)
    if img_size is not None and source.fixed_size:  # other models take images of any size
        options["img_size"] = img_size
    # A generator of its own for the CPU; torch.manual_seed would seed the GPUs as well.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = _build(source, options).float().eval()
    data_config = resolve_model_data_config(
        module, args={"input_size": (3, img_size, img_size)} if img_size else None
    )
    provenance = {
        "name": name,
        "architecture": module.pretrained_cfg["architecture"],
        "class": type(module).__name__,
        "parameters": sum(p.numel() for p in module.parameters()),
        "options": {key: str(value) for key, value in options.items()},
        "weights": source.origin or f"untrained, seed {seed}",
        "sha256": _sha256(source),
        "input_size": list(data_config["input_size"]),
    }
    return Network(label(name), module, data_config, provenance)


def _build(source: Source, options: dict) -> torch.nn.Module:
    import timm

    overlay = {}
    if source.weights is not None:
        # The empty source sends timm to the file also for folders and the hub.
        overlay = {"source": "", "file": str(source.weights), "custom_load": False}
    if source.classes is not None:
        options = {"num_classes": source.classes, **options}
        # As if timm had known this head: all of it is loaded.
        overlay["num_classes"] = options["num_classes"]
    try:
        return timm.create_model(
            source.model,
            pretrained=source.weights is not None,
            pretrained_cfg_overlay=overlay,
            **options,
        )
    except TypeError as error:
        raise TypeError(f"{source.model} does not take these options: {error}") from error
    except RuntimeError as error:
        if source.weights is None:
            raise
        # Three keys of each kind are enough to see what is wrong.
        few = re.sub(r'((?:"[^"]*", ){3})(?:"[^"]*"(?:, )?)+', r"\1...", str(error))
        raise ValueError(
            f"the weights in {str(source.weights)!r} do not fit {source.model}: "
            f"{one_line(RuntimeError(few))}"
        ) from None


def _sha256(source: Source) -> str | None:
    if source.weights is None:
        return None
    with open(source.weights, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
