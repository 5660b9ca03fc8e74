"""The command line. Does nothing that the Python interface cannot."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from fastcka import compare_command, fingerprint_command, list_command
from fastcka.fingerprints import STORED
from fastcka.info import describe
from fastcka.kernels.dispatch import BACKENDS
from fastcka.kernels.operations import OPERANDS
from fastcka.measures import OF_LAYERS, OF_PAIRS
from fastcka.options import ESTIMATORS, GRAMS, check_whole_number
from fastcka.permutation import PERMUTATIONS
from fastcka.streaming import WEIGHTINGS

MODEL = "timm name, hf-hub:OWNER/NAME, local-dir:FOLDER, or NAME@FILE with weights from a file"


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="fastcka",
        description="How alike do networks represent the same images, layer by layer?",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_compare(commands)
    _add_fingerprint(commands)
    _add_list(commands)
    commands.add_parser(
        "info", help="versions, instruction sets, and which backend runs where and why"
    ).set_defaults(run=lambda _: print(describe()))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("fastcka: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # of `fastcka list models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print(f"fastcka: {error}{notes}", file=sys.stderr)
        return 1
    return 0


def _add_compare(commands) -> None:
    parser = commands.add_parser(
        "compare",
        help="CKA between all layers of models, in one pass over a folder of images",
        description="CKA between all layers of one, two or more models, in one pass over a folder "
        "of images: result.safetensors, heatmap.png, heatmap.pdf and summary.json. Models come "
        "first; files of `fastcka fingerprint`, which end in .fp, are models too.",
        epilog="example: fastcka compare vit_tiny_patch16_224 resnet18 --layers raghu --data DIR",
    )
    parser.set_defaults(run=compare_command.run)
    parser.add_argument("models", nargs="+", metavar="MODEL", help=f"{MODEL}; or FILE.fp")
    add = _add_data(parser)
    add(
        "--passes",
        type=int,
        default=1,
        metavar="N",
        help="over the data, each in another order (default: %(default)s)",
    )
    add = _add_models(parser)
    add("--layers-a", nargs="+", metavar="LAYER", help="of the first model alone")
    add("--layers-b", nargs="+", metavar="LAYER", help="of the second model alone")
    add(
        "--one-by-one",
        action="store_true",
        help="run each model alone, where they do not fit together; needs room on the disk",
    )
    add = _add_measure(parser)
    add(
        "--weighting",
        choices=WEIGHTINGS,
        default="pairs",
        help="of the batches (default: %(default)s)",
    )
    add(
        "--calibrate",
        type=int,
        nargs="?",
        const=PERMUTATIONS,
        default=0,
        metavar="N",
        help="p-values and scores beyond chance, from N random orders (default: %(const)s)",
    )
    add(
        "--also",
        nargs="+",
        default=[],
        choices=[*OF_PAIRS, *OF_LAYERS],
        metavar="MEASURE",
        help=f"beside CKA: {', '.join([*OF_PAIRS, *OF_LAYERS])}",
    )
    add = parser.add_argument_group("output").add_argument
    add("--output", metavar="DIR", help="folder (default: fastcka-results/MODEL-MODEL)")
    add("--overwrite", action="store_true", help="replace an earlier result there")
    _add_state(add)
    add("--errors", action="store_true", help="standard errors in the figure")
    add("--title", help="of the figure")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")


def _add_fingerprint(commands) -> None:
    parser = commands.add_parser(
        "fingerprint",
        help="measure a model once, to compare it later without its weights",
        description="Writes the Gram matrices of all layers of a model on named images to a file, "
        "which `fastcka compare` takes in place of the model. Files are compared on the same "
        "images in the same batches: with the same --data, --max-images, --seed, --batch-size "
        "and --n.",
        epilog="example: fastcka fingerprint resnet18 --data DIR --output resnet18.fp",
    )
    parser.set_defaults(run=fingerprint_command.run)
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    _add_data(parser)
    _add_models(parser)
    _add_measure(parser)
    add = parser.add_argument_group("output").add_argument
    add("--output", metavar="FILE", help="ends in .fp (default: fastcka-results/MODEL.fp)")
    add("--dtype", choices=STORED, default="fp32", help="of the file (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an earlier file")
    _add_state(add)
    add("--quiet", action="store_true", help="print nothing but warnings and errors")


def _add_state(add: Callable) -> None:
    add("--resume", action="store_true", help="go on with an unfinished run")
    add(
        "--save-every",
        type=float,
        default=300,
        metavar="SECONDS",
        help="how often the state of a long run is saved (default: %(default)s)",
    )


def _add_data(parser) -> Callable:
    add = parser.add_argument_group("data").add_argument
    add(
        "--data",
        metavar="DIR",
        help="folder of images or of .tar shards, or 'x-{000..099}.tar'; without it, images are "
        "generated",
    )
    add("--generate", type=int, metavar="N", help="how many, without --data (default: 512)")
    add("--max-images", type=int, metavar="N", help="take so many, chosen at random")
    add(
        "--on-broken",
        choices=("stop", "skip"),
        default="stop",
        help="at an unreadable image (default: %(default)s)",
    )
    add(
        "-b",
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="images a forward pass (default: %(default)s)",
    )
    add(
        "-j",
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that decode images (default: %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="of the order, and of untrained weights (default: %(default)s)",
    )
    return add


def _add_models(parser) -> Callable:
    add = parser.add_argument_group("models").add_argument
    add("--layers", nargs="+", default=["blocks"], metavar="LAYER",
        help="names, globs, or blocks, leaves, raghu (default: blocks)")  # fmt: skip
    add("--pretrained", action="store_true", help="weights from the hub or its cache")
    add("--img-size", type=int, metavar="N", help="pixels of a side, for all models")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    add("--threads", type=_threads, metavar="N", help="of each process")
    add("--amp", action="store_true", help="run the models under autocast")
    add("--amp-dtype", choices=("float16", "bfloat16"), help="of --amp (default: float16)")
    return add


def _add_measure(parser) -> Callable:
    add = parser.add_argument_group("measure").add_argument
    add(
        "--n",
        type=int,
        metavar="N",
        help="images in a CKA batch, a part of the batch size (default: all of it)",
    )
    add(
        "--estimator", choices=ESTIMATORS, default="unbiased", help="of HSIC (default: %(default)s)"
    )
    add("--gram", choices=GRAMS, default="linear", help="Gram function (default: %(default)s)")
    add("--bandwidth", type=float, help="of --gram rbf, in median distances")
    add(
        "--operand", choices=OPERANDS, help="type of the values multiplied (default: fp32 on a CPU)"
    )
    add("--backend", choices=BACKENDS, help="see `fastcka info`")
    return add


def _threads(text: str) -> int:
    check_whole_number("--threads", int(text), 1)
    return int(text)


def _add_list(commands) -> None:
    parser = commands.add_parser("list", help="names of models, or of the layers of a model")
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    models = what.add_parser("models", help="what timm has, for example 'vit_*'")
    models.add_argument("pattern", nargs="?", default="*", help="with wildcards, in quotes")
    models.set_defaults(run=lambda options: print(list_command.models(options.pattern)))
    layers = what.add_parser("layers", help="what `--layers` can name, in the order of execution")
    layers.add_argument("model", metavar="MODEL", help=MODEL)
    layers.add_argument("--layers", nargs="+", default=["**"], metavar="LAYER",
                        help="only these: names, globs, or blocks, leaves, raghu")  # fmt: skip
    layers.add_argument("--img-size", type=int, metavar="N", help="pixels of a side")
    layers.set_defaults(
        run=lambda options: print(
            list_command.layers(options.model, options.layers, options.img_size)
        )
    )
