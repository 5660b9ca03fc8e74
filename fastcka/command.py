"""What the commands that run models share: networks, images, and how they speak."""

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fastcka import models
from fastcka.data import ImageBatches, write_images
from fastcka.distributed import Share
from fastcka.fingerprints import SUFFIX
from fastcka.launch import device
from fastcka.models import Network
from fastcka.warning import CKAWarning

RESULTS = Path("fastcka-results")


class WrongOption(ValueError):
    """An option that cannot be as it was given: ends a command with 2, as argparse does."""


def in_option_words(options: argparse.Namespace, text: str, **renamed: str) -> str:
    """What is said of `arguments`, said of the options that gave them.

    Args:
        renamed: by argument, the option, where it is not called the same.
    """

    def option(argument: re.Match) -> str:
        name, key = argument.groups()
        if name not in renamed and not hasattr(options, name):
            return argument[0]
        named = renamed.get(name, f"--{name.replace('_', '-')}")
        return f"{named} {key}" if key else named

    return re.sub(r"`(\w+)(?:\['(\w+)'\])?`", option, text)


@contextmanager
def in_options(options: argparse.Namespace, **renamed: str) -> Iterator[None]:
    """What is refused of `arguments` is refused of the options that gave them."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise WrongOption(in_option_words(options, str(error), **renamed)) from None


def correlation(given: Sequence[tuple[str, str]]) -> dict[str, float]:
    """What --correlation was given, each time a cue and a share."""
    shares = {}
    for cue, rho in given:
        try:
            shares[cue] = float(rho)
        except ValueError:
            raise WrongOption(
                f"--correlation {cue} must be a number from 0 to 1, but is {rho!r}"
            ) from None
    return shares


def check_used(options: argparse.Namespace) -> None:
    """An option that would do nothing is a mistake, and so is a model for a layer."""
    if options.amp_dtype and not options.amp:
        raise ValueError("--amp-dtype does nothing without --amp")
    if options.split is not None and options.data is None:
        raise ValueError("--split does nothing without --data")
    if options.generate is not None and options.data is not None:
        raise ValueError("--generate does nothing beside --data")
    for name in ("layers", "layers_a", "layers_b"):
        # They take all that stands behind them, models too.
        for value in getattr(options, name, None) or ():
            if value.endswith(SUFFIX) or models.is_model(value):
                raise ValueError(
                    f"--{name.replace('_', '-')} was given {value!r}, which is a model: models "
                    "come before the options"
                )


def is_this(command: str) -> bool:
    """Whether an earlier command asked for the same as this one, however they were started."""
    earlier, now = command.split()[1:], " ".join(sys.argv).split()[1:]
    return [word for word in earlier if word != "--resume"] == [
        word for word in now if word != "--resume"
    ]


def makers(
    options: argparse.Namespace, names: Sequence[str], labels: Sequence[str]
) -> dict[str, Callable[[], Network]]:
    """What loads the networks of these names, by label."""
    makers = {}
    for place, (label, name) in enumerate(zip(labels, names, strict=True)):
        # A model that is named twice is two networks: the second has weights of its own.
        seed = options.seed + names[:place].count(name)
        makers[label] = partial(
            models.load, name, pretrained=options.pretrained, seed=seed, img_size=options.img_size
        )
    return makers


def tell_untrained(options: argparse.Namespace, networks: dict[str, Network]) -> None:
    untrained = [label for label, network in networks.items() if network.untrained]
    if untrained:
        tell(options, f"untrained, for want of --pretrained or NAME@FILE: {', '.join(untrained)}")


def images(
    options: argparse.Namespace, place: Path, networks: dict[str, Network], share: Share
) -> ImageBatches:
    """The images of --data, or generated ones within `place`, as each network takes them."""
    root = options.data
    if root is None:
        count = 512 if options.generate is None else options.generate
        size = max(before_crop(network) for network in networks.values())
        root = place / f"images-{count}-{size}px-seed{options.seed}"
        tell(options, f"no --data: {count} generated images, in {root}")
        share.from_first(lambda: write_images(root, count, size=size, seed=options.seed))
    transforms, shared = {}, {}
    for label, network in networks.items():
        # Models with the same preprocessing share the view.
        transforms[label] = shared.setdefault(str(network.data_config), network.transform())
    return ImageBatches(
        root,
        transforms,
        batch_size=options.batch_size,
        seed=options.seed,
        workers=options.workers,
        max_images=options.max_images,
        on_broken=options.on_broken,
        split=options.split,
    )


def before_crop(network: Network) -> int:
    """Pixels of a side that the network's preprocessing neither enlarges nor shrinks."""
    config = network.data_config
    return max(16, int(max(config["input_size"][1:]) / config["crop_pct"]))


def view(label: str) -> Callable:
    """From a batch to what the network of this label is called with."""
    return lambda batch: batch["views"][label]


def measure_options(options: argparse.Namespace) -> dict:
    """The arguments that all measurements have."""
    return {
        "n": options.n,
        "estimator": options.estimator,
        "gram": options.gram,
        "bandwidth": options.bandwidth,
        "operand": options.operand,
        "autocast": (options.amp_dtype or "float16") if options.amp else None,
        "device": device() if options.device in (None, "cuda") else options.device,
        "backend": options.backend,
        "progress": not options.quiet,
    }


@contextmanager
def own_warnings(options: argparse.Namespace) -> Iterator[None]:
    """Tell each of our warnings in a line; the place in the code says nothing here."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CKAWarning)
        show = warnings.showwarning

        def shown(message, category, *place):
            if issubclass(category, CKAWarning):
                tell(options, str(message))
            else:
                show(message, category, *place)

        warnings.showwarning = shown
        yield


def tell(options: argparse.Namespace, text: str) -> None:
    """A line on the error stream, from the first process alone."""
    if not options.silent:
        print(f"fastcka: {text}", file=sys.stderr)
