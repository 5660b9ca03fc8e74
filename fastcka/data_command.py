"""Generated images as files: `fastcka data`."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from fastcka.command import WrongOption, correlation, in_options
from fastcka.data import Cues, Trigger, contact_sheet, write_images

# Options that are called otherwise than the arguments that they give.
RENAMED = {"label": "--label-rule"}
OF_TRIGGER = {"kind": "--trigger", "place": "--trigger-place", "share": "--trigger-share"}


def run(options: argparse.Namespace) -> None:
    """`fastcka data cues`, with its options as parsed."""
    trigger = None
    if options.trigger:
        with in_options(options, **OF_TRIGGER):
            trigger = Trigger(options.trigger, options.trigger_place, options.trigger_share)
    elif options.trigger_place != "fixed" or options.trigger_share != 1:
        raise WrongOption("--trigger-place and --trigger-share do nothing without --trigger")
    if options.mixture != 0.5 and options.label_rule != "mixture":
        raise WrongOption("--mixture does nothing without --label-rule mixture")
    if not (options.export or options.sheet):
        raise WrongOption("say where to: --export FOLDER, --sheet FILE.png, or both")
    images = {
        "count": options.count,
        "size": options.size,
        "seed": options.seed,
        "label": options.label_rule,
        "mixture": options.mixture,
        "correlation": correlation(options.correlation),
        "shuffled": options.shuffled,
        "conflict": options.conflict,
        "objects": options.objects,
        "trigger": trigger,
    }
    with in_options(options, **RENAMED):
        shown = Cues(**images)
    if options.sheet:
        with _written("--sheet", "a picture such as cues.png", options.sheet):
            contact_sheet(shown).save(options.sheet)
        print(f"a row a class, in {options.sheet}")
    if options.export:
        with _written("--export", "a folder", options.export):
            folder = write_images(options.export, **images)
        print(f"{options.count} images, factors.csv and cues.json in {folder}")


@contextmanager
def _written(option: str, what: str, place: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WrongOption(
            f"{option} must be {what} that can be written, but is {place!r}: {reason}"
        ) from None
