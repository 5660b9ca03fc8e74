"""From the name of a small network to its trained weights: `fastcka train`."""

import argparse
import difflib
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import torch

from fastcka import cache
from fastcka.command import WrongOption, correlation, in_options, own_warnings, tell
from fastcka.launch import cores, device, processes
from fastcka.output_folder import make as make_folder
from fastcka.training import ARMS, Recipe, train
from fastcka.training.card import card
from fastcka.training.pool import pool
from fastcka.training.scalars import beside
from fastcka.training.trainer import check_network, images_of
from fastcka.training.weights_file import known_of, sha256

# Options that make a recipe; those of an arm are fixed.
RECIPE = (
    *("data_fraction", "label_rule", "correlation", "no_skip", "init_from"),
    *("seed", "images", "pool"),
)
# Those that are called otherwise than what they give.
RENAMED = {"model": "NETWORK", "fraction": "--data-fraction", "label": "--label-rule"}
# Networks that are trained on a GPU at a time: each of them alone keeps little of it busy.
ON_GPU = 8


def run(options: argparse.Namespace) -> None:
    """`fastcka train`, with its options as parsed."""
    options.silent = False
    folder = Path(options.output) if options.output else cache.networks()
    _check_used(options)
    if options.all:
        _all(options, folder)
    else:
        _one(options, folder)


def _check_used(options: argparse.Namespace) -> None:
    given = [name for name in RECIPE if getattr(options, name) is not None]
    if options.all and options.network:
        raise WrongOption("--all trains every network of the study: give no name beside it")
    if not options.all and options.network is None:
        raise WrongOption("give the name of a network, or --all; `fastcka list arms` has them")
    if (options.all or options.network in ARMS) and given:
        raise WrongOption(
            f"--{given[0].replace('_', '-')} does nothing here: the recipe is that of the study"
        )
    if options.jobs and not options.all:
        raise WrongOption("--jobs does nothing without --all")
    if options.name is None:
        return
    if options.all or options.network in ARMS:
        raise WrongOption("--name does nothing here: networks of the study have names")
    if not re.fullmatch(r"\w[\w-]*", options.name, re.ASCII):
        raise WrongOption(
            f"--name must be letters, digits, _ and -, but is {options.name!r}: the weights are "
            f"then {options.network}.NAME"
        )


def _one(options: argparse.Namespace, folder: Path) -> None:
    with processes(options.threads) as share, own_warnings(options):
        options.silent = share.rank > 0
        where = _device(options.device)
        recipe, start = _recipe(options, folder)
        tag = options.network.partition(".")[2] or options.name or recipe.key
        path = folder / f"{recipe.model}.{tag}.safetensors"
        if path.stem in ARMS and path.stem != options.network:
            raise WrongOption(
                f"--name must not be that of a network of the study, but is {options.name!r}"
            )
        if path.exists():
            if known_of(path)["recipe"] == recipe.described():
                tell(options, f"{path} is there already, trained in the same way")
                return
            if options.name:
                raise WrongOption(
                    f"--name {options.name} is taken: {path} was trained in another way; give "
                    "another, or remove it"
                )
        with in_options(options):
            make_folder(folder)
        known = train(
            recipe,
            path,
            folder=cache.folder(),
            start=start,
            workers=options.workers,
            device=where,
            share=share,
            save_every=options.save_every,
            progress=not options.quiet,
        )
    if not options.silent and not options.quiet:
        _report(path, known)


def _report(path: Path, known: dict) -> None:
    """What has come of it, where it is, and what can be done with it."""
    name = path.stem
    if path.parent != cache.networks():
        name = f"{known['recipe']['model']}@{path}"
    print(f"{path.stem}: {known['accuracy']:.1%} of new images are recognised")
    print(f"weights   {path}")
    if beside(path).exists():
        print(f"loss      tensorboard --logdir {shlex.quote(str(beside(path)))}")
    print(f"use       fastcka compare {shlex.quote(name)}")


def _device(asked: str | None) -> str:
    try:
        kind = torch.device(asked or "cpu").type
    except RuntimeError:
        raise WrongOption(f"--device must be cpu, cuda or cuda:N, but is {asked!r}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise WrongOption(
            f"--device is {asked!r}, but torch finds no GPU: leave it out, or give cpu"
        )
    return device() if asked in (None, "cuda") else asked


def _recipe(options: argparse.Namespace, folder: Path) -> tuple[Recipe, Path | None]:
    if options.network in ARMS:
        arm = ARMS[options.network]
        recipe, start = arm.recipe, arm.start
    else:
        recipe, start = _own_recipe(options), options.init_from
    if start is None:
        return recipe, None
    with in_options(options):
        path = _weights(start, folder)
    return replace(recipe, start=sha256(path)), path


def _own_recipe(options: argparse.Namespace) -> Recipe:
    """What the options ask for."""
    from fastcka.models.small import without_skip

    network = options.network
    if "." in network:
        near = " or ".join(difflib.get_close_matches(network, ARMS, n=2))
        raise WrongOption(
            f"NETWORK must be one of the study where it has a tag, but is {network!r}: "
            f"{f'did you mean {near}?' if near else 'see `fastcka list arms`;'} "
            "--name gives a training of your own a tag"
        )
    with in_options(options, **RENAMED):
        check_network(network)
        if options.no_skip is not None:
            network = without_skip(network, options.no_skip)
        given = {
            "fraction": options.data_fraction,
            "label": options.label_rule,
            "seed": options.seed,
            "images": options.images,
            "pool": options.pool,
            "correlation": correlation(options.correlation or ()),
        }
        recipe = Recipe(
            network, **{name: value for name, value in given.items() if value is not None}
        )
        images_of(recipe)
    return recipe


def _weights(name: str, folder: Path) -> Path:
    """A file, or the weights of a network that was trained before."""
    from fastcka.models import small

    network, _, tag = name.partition(".")
    places = [Path(name), folder / f"{name}.safetensors"]
    if network in small.NETWORKS:
        places.append(small.trained(network).get(tag, Path(name)))
    for path in places:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"`init_from` must be a file of weights, or a trained network that `fastcka list networks` "
        f"has, but is {name!r}"
    )


def _all(options: argparse.Namespace, folder: Path) -> None:
    """Every arm in a process of its own, several at a time; those that start from others wait."""
    where = _device(options.device)
    on_gpu = where.startswith("cuda")
    jobs = options.jobs or (ON_GPU if on_gpu else cores())
    common = ["--output", str(folder), "--device", where, "--quiet"]
    common += ["--threads", str(options.threads or 1), "--save-every", str(options.save_every)]
    failed = []
    for arm in ARMS.values():  # once, before several would draw the same
        pool(images_of(arm.recipe), cache.folder(), cores())
    for later in (False, True):
        names = [name for name, arm in ARMS.items() if (arm.start is not None) == later]
        with ThreadPoolExecutor(jobs) as executor:
            running = {
                executor.submit(
                    subprocess.run, [sys.executable, "-m", "fastcka", "train", name, *common]
                ): name
                for name in names
            }
            try:
                for done in as_completed(running):
                    name = running[done]
                    if done.result().returncode:
                        failed.append(name)
                    elif not options.quiet:
                        accuracy = known_of(folder / f"{name}.safetensors")["accuracy"]
                        print(f"{name}: {accuracy:.1%}", flush=True)
            except BaseException:
                for waiting in running:
                    waiting.cancel()
                raise
    (folder / "README.md").write_text(card(folder))
    if failed:
        raise RuntimeError(f"not trained: {', '.join(failed)}; the same command goes on with them")
