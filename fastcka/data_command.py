"""Generated images as files: `fastcka data`."""

import argparse

from fastcka.data import Trigger, write_images


def run(options: argparse.Namespace) -> None:
    """`fastcka data cues`, with its options as parsed."""
    trigger = None
    if options.trigger:
        trigger = Trigger(options.trigger, options.trigger_place, options.trigger_share)
    elif options.trigger_place != "fixed" or options.trigger_share != 1:
        raise ValueError("--trigger-place and --trigger-share do nothing without --trigger")
    folder = write_images(
        options.export,
        options.count,
        size=options.size,
        seed=options.seed,
        label=options.label_rule,
        mixture=options.mixture,
        correlation={cue: float(rho) for cue, rho in options.correlation},
        shuffled=options.shuffled,
        conflict=options.conflict,
        objects=options.objects,
        trigger=trigger,
    )
    print(f"{options.count} images and factors.csv in {folder}")
