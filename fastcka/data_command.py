"""Generated images as files: `fastcka data`."""

import argparse

from fastcka.data import Cues, Trigger, contact_sheet, write_images


def run(options: argparse.Namespace) -> None:
    """`fastcka data cues`, with its options as parsed."""
    trigger = None
    if options.trigger:
        trigger = Trigger(options.trigger, options.trigger_place, options.trigger_share)
    elif options.trigger_place != "fixed" or options.trigger_share != 1:
        raise ValueError("--trigger-place and --trigger-share do nothing without --trigger")
    if options.mixture != 0.5 and options.label_rule != "mixture":
        raise ValueError("--mixture does nothing without --label-rule mixture")
    if not (options.export or options.sheet):
        raise ValueError("say where to: --export FOLDER, --sheet FILE.png, or both")
    images = {
        "count": options.count,
        "size": options.size,
        "seed": options.seed,
        "label": options.label_rule,
        "mixture": options.mixture,
        "correlation": {cue: float(rho) for cue, rho in options.correlation},
        "shuffled": options.shuffled,
        "conflict": options.conflict,
        "objects": options.objects,
        "trigger": trigger,
    }
    if options.sheet:
        contact_sheet(Cues(**images)).save(options.sheet)
        print(f"a row a class, in {options.sheet}")
    if options.export:
        folder = write_images(options.export, **images)
        print(f"{options.count} images and factors.csv in {folder}")
