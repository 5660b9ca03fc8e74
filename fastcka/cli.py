"""The command line. Does nothing that the Python interface cannot."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence

from fastcka import (
    compare_command,
    data_command,
    fingerprint_command,
    list_command,
    plan_command,
    study_command,
    train_command,
)
from fastcka.command import WrongOption
from fastcka.data.cues.factors import CUES, RULES
from fastcka.data.cues.triggers import KINDS, PLACES
from fastcka.fingerprints import STORED
from fastcka.info import describe, measure
from fastcka.kernels.dispatch import BACKENDS
from fastcka.kernels.operations import OPERANDS
from fastcka.measures import OF_LAYERS, OF_PAIRS
from fastcka.options import ESTIMATORS, GRAMS, check_seconds
from fastcka.permutation import PERMUTATIONS
from fastcka.streaming import WEIGHTINGS
from fastcka.training.recipe import LABELS

MODEL = "timm name, hf-hub:OWNER/NAME, local-dir:FOLDER, or NAME@FILE with weights from a file"


class _Parser(argparse.ArgumentParser):
    """Says why a model is missing: options of several values take it for one of theirs."""

    def error(self, message: str):
        greedy = [a for a in self._actions if a.option_strings and a.nargs in ("+", "?")]
        taken = tuple(f"argument {'/'.join(action.option_strings)}: invalid" for action in greedy)
        if greedy and (message.startswith(taken) or message.endswith("required: MODEL")):
            message += "; models come before the options"
        super().error(message)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = _Parser(
        prog="fastcka",
        description="How alike do networks represent the same images, layer by layer?",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_compare(commands)
    _add_fingerprint(commands)
    _add_plan(commands)
    _add_list(commands)
    _add_data_sets(commands)
    _add_train(commands)
    _add_study(commands)
    _add_info(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        status = options.run(options)
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
        return 2 if isinstance(error, WrongOption) else 1
    return status or 0


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
    add = _add_compared(parser)
    add(
        "--one-by-one",
        action="store_true",
        help="run each model alone, where they do not fit together; needs room on the disk",
    )
    add = parser.add_argument_group("output").add_argument
    add("--output", metavar="DIR", help="folder (default: fastcka-results/MODEL-MODEL)")
    add("--overwrite", action="store_true", help="replace an earlier result there")
    _add_state(add)
    add("--errors", action="store_true", help="standard errors in the figure")
    add("--title", help="of the figure")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")


def _add_plan(commands) -> None:
    parser = commands.add_parser(
        "plan",
        help="how much time, memory and disk a comparison will take, and what most of it",
        description="Runs the first batches as `fastcka compare` would, with the same options but "
        "--one-by-one, and says what all of it will take, and the size of a fingerprint of each "
        "model. Leaves nothing on disk.",
        epilog="example: fastcka plan vit_base_patch16_224 resnet50 --data DIR --batch-size 64",
    )
    parser.set_defaults(run=plan_command.run)
    _add_compared(parser)
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="for programs: bytes and seconds")


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


def _add_compared(parser) -> Callable:
    """The models, and all that their comparison depends on; more can be added of how they run."""
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help=f"{MODEL}; or FILE.fp (default: a small ViT and a small ResNet that come trained)",
    )
    add = _add_data(parser)
    add(
        "--passes",
        type=int,
        default=1,
        metavar="N",
        help="over the data, each in another order (default: %(default)s)",
    )
    add_of_models = add = _add_models(parser)
    add("--layers-a", nargs="+", metavar="LAYER", help="of the first model alone")
    add("--layers-b", nargs="+", metavar="LAYER", help="of the second model alone")
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
    add(
        "--influence",
        nargs=2,
        action="append",
        default=[],
        metavar=("LAYER_A", "LAYER_B"),
        help="what each image does to their CKA, in influence.csv; may be repeated; with more than "
        "two models, MODEL:LAYER",
    )
    return add_of_models


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
        help="folder of images, of .tar shards, of CIFAR or ImageNet; 'x-{000..099}.tar', "
        "hfds/OWNER/NAME or torch/NAME@DIR; without it, images are generated",
    )
    add("--split", metavar="NAME", help="of a data set that has several (default: test images)")
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
    add = _add_running(parser)
    add("--layers", nargs="+", default=["blocks"], metavar="LAYER",
        help="names, globs, or blocks, leaves, raghu (default: blocks)")  # fmt: skip
    return add


def _add_running(parser) -> Callable:
    add = parser.add_argument_group("models").add_argument
    add("--pretrained", action="store_true", help="weights from the hub or its cache")
    add("--img-size", type=int, metavar="N", help="pixels of a side, for all models")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    add("--threads", type=_whole(1), metavar="N", help="of each process")
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


def _whole(least: int) -> Callable[[str], int]:
    """A type of options, which argparse names."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d+", text, re.ASCII) or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {least} on, but is {text!r}"
            )
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        check_seconds("", float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number of seconds from 0 on, but is {text!r}"
        ) from None
    return float(text)


def _add_info(commands) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, instruction sets, and which backend runs where and why",
        description="What is installed, which backend runs each operation on each device, and why "
        "the others do not.",
    )
    parser.set_defaults(run=_run_info)
    parser.add_argument(
        "--measure",
        action="store_true",
        help="time every backend on the devices here first, so that the fastest that is right runs "
        "from now on; nothing else should run meanwhile",
    )


def _run_info(options) -> None:
    if options.measure:
        measure()
    print(describe())


def _add_study(commands) -> None:
    parser = commands.add_parser(
        "study",
        help="all experiments of Raghu et al. 2021 on any models and images",
        description="The experiments of 'Do Vision Transformers See Like Convolutional Neural "
        "Networks?' [Raghu et al. 2021], with what the paper claims checked. Without --models, on "
        "the small trained networks of the package. The same command goes on where it stopped.",
        epilog="example: fastcka study --models vit_base_patch16_224 resnet50 --pretrained --data "
        "imagenet --experiments E1 E3",
    )
    parser.set_defaults(run=study_command.run)
    add = parser.add_argument
    add("--experiments", nargs="+", default=["all"], metavar="E",
        help="numbers, as E1 E3; `fastcka list experiments` has them (default: all)")  # fmt: skip
    add("--models", nargs="+", default=[], metavar="MODEL", help=MODEL)
    add("--variant", nargs="+", action="append", default=[], metavar="WORD",
        help="KIND MODEL OF [VALUE], how one of the models differs from another: less-data (and "
        "how many per cent of it), no-skip (trained so, and in which block), fine-tuned, or "
        "other-seed; or skip-cut OF BLOCK, a ViT whose skip connections there are cut post hoc; "
        "can be given again")  # fmt: skip
    _add_data(parser)
    add = parser.add_argument_group("images").add_argument
    add("--n", type=_whole(4), metavar="N",
        help="images in a CKA batch (default: the batch size)")  # fmt: skip
    add("--fields", type=_whole(1), default=32, metavar="N",
        help="images for receptive fields (default: %(default)s)")  # fmt: skip
    add("--shots", type=_whole(1), default=10, metavar="N",
        help="images a class to fit a probe to, as many to choose its lambda; three times, and the "
        "others of --data are what it is tested on (default: %(default)s)")  # fmt: skip
    add("--probe-data", metavar="DIR",
        help="labelled images that probes are fitted to (default: some of --data)")  # fmt: skip
    add("--probe-split", metavar="NAME", help="of --probe-data")
    _add_running(parser)
    add = parser.add_argument_group("output").add_argument
    add("--output", metavar="DIR",
        help="folder (default: fastcka-results/study); its page has what earlier commands found "
        "there too, on the same networks and images with the same settings")  # fmt: skip
    add("--quiet", action="store_true", help="print nothing but warnings and errors")


def _add_list(commands) -> None:
    parser = commands.add_parser("list", help="names of models, or of the layers of a model")
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    models = what.add_parser("models", help="what timm has, for example 'vit_*'")
    models.add_argument("pattern", nargs="?", default="*", help="with wildcards, in quotes")
    models.set_defaults(run=lambda options: print(list_command.models(options.pattern)))
    arms = what.add_parser("arms", help="the trained networks of the study, and their accuracy")
    arms.set_defaults(run=lambda _: print(list_command.arms()))
    trained = what.add_parser("networks", help="trained networks: of the package, and your own")
    trained.set_defaults(run=lambda _: print(list_command.networks()))
    study = what.add_parser("experiments", help="of `fastcka study`: number, question, cost")
    study.set_defaults(run=lambda _: print(list_command.experiments()))
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


def _add_data_sets(commands) -> None:
    parser = commands.add_parser("data", help="generated images as files")
    sets = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    cues = sets.add_parser(
        "cues",
        help="images whose cues are known: shape, texture, background, a trigger patch",
        description="Writes textured shapes on coloured fields as PNG, a folder a class of their "
        "label, and factors.csv with all that is known of each.",
        epilog="example: fastcka data cues --export cues --count 1000 --label-rule texture",
    )
    cues.set_defaults(run=data_command.run)
    add = cues.add_argument
    add("--export", metavar="DIR", help="folder; holds no other images")
    add("--sheet", metavar="FILE", help="a picture of the first images of every class")
    add("--count", type=int, default=1000, metavar="N", help="images (default: %(default)s)")
    add("--size", type=int, default=64, metavar="N", help="pixels of a side (default: %(default)s)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    add("--label-rule", choices=RULES, default="shape", help="what the label is (default: shape)")
    add("--mixture", type=float, default=0.5, metavar="SHARE",
        help="how often the label of a mixture is the shape (default: %(default)s)")  # fmt: skip
    add("--correlation", nargs=2, action="append", default=[], metavar=("CUE", "RHO"),
        help="makes a cue follow the label so often")  # fmt: skip
    add("--shuffled", nargs="+", default=[], choices=CUES, metavar="CUE",
        help="cues that tell nothing of the label")  # fmt: skip
    add("--conflict", action="store_true", help="textures unlike the shape alone")
    add("--objects", type=int, default=1, metavar="N", help="up to so many (default: %(default)s)")
    add("--trigger", choices=KINDS, help="a patch laid over the image")
    add("--trigger-place", choices=PLACES, default="fixed", help="(default: %(default)s)")
    add("--trigger-share", type=float, default=1, metavar="SHARE",
        help="of the images that bear it (default: %(default)s)")  # fmt: skip


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train the small networks on images with known cues",
        description="Trains a small network on generated images, and writes its weights where "
        "`fastcka compare` and `fastcka list networks` find them. Stopped at any time, the same "
        "command goes on. `fastcka list arms` has the networks of the study, which have a recipe; "
        "`fastcka list models 'fastcka_*'` has those that take one.",
        epilog="examples: fastcka train fastcka_vit_mini.shape_data3, "
        "fastcka train fastcka_resnet_mini --name sky --label-rule background",
    )
    parser.set_defaults(run=train_command.run)
    add = parser.add_argument
    add("network", nargs="?", metavar="NETWORK", help="one of the study, or one to train")
    add("--all", action="store_true", help="every network of the study that is not there yet")
    add = parser.add_argument_group("recipe").add_argument
    add("--pool", type=int, metavar="N", help="different images there are (default: 50,000)")
    add("--data-fraction", type=float, metavar="F", help="of these that are used (default: 1)")
    add("--label-rule", choices=LABELS, help="the cue that is learned (default: shape)")
    add("--no-skip", type=int, metavar="BLOCK", help="a ViT without skip connections there")
    add("--init-from", metavar="CKPT", help="weights to start from: a file or a network's name")
    add("--correlation", nargs=2, action="append", metavar=("CUE", "RHO"),
        help="makes a cue follow the label so often")  # fmt: skip
    add("--seed", type=int, help="of weights and order (default: 0)")
    add("--images", type=int, metavar="N", help="to be seen in all (default: 160,000)")
    add = parser.add_argument_group("running").add_argument
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    add("--threads", type=_whole(1), metavar="N", help="of each process; --all takes one")
    add("--workers", type=_whole(0), default=0, metavar="N",
        help="processes that draw the images (default: this one)")  # fmt: skip
    add(
        "--jobs",
        type=_whole(1),
        metavar="N",
        help="of --all at a time (default: cores, 8 on a GPU)",
    )
    add("--save-every", type=_seconds, default=60, metavar="SECONDS",
        help="how often the state is saved (default: %(default)s)")  # fmt: skip
    add("--name", help="of the weights: NETWORK.NAME (default: NETWORK and the recipe's hash)")
    add("--output", metavar="DIR", help="for the weights (default: where networks are found)")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")
