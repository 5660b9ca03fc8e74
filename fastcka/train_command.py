"""From the name of a small network to its trained weights: `fastcka train`."""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from fastcka import cache
from fastcka.command import tell
from fastcka.launch import cores, device, processes
from fastcka.training import ARMS, Recipe, train
from fastcka.training.card import card
from fastcka.training.pool import pool
from fastcka.training.trainer import images_of
from fastcka.training.weights_file import known_of, sha256

# Options that make a recipe; those of an arm are fixed.
RECIPE = (
    *("data_fraction", "label_rule", "correlation", "no_skip", "init_from"),
    *("seed", "images", "pool"),
)
# Networks that are trained on a GPU at a time: each of them alone keeps little of it busy.
ON_GPU = 8


def run(options: argparse.Namespace) -> None:
    """`fastcka train`, with its options as parsed."""
    options.silent = False
    folder = Path(options.output) if options.output else cache.networks()
    given = [name for name in RECIPE if getattr(options, name) is not None]
    if (options.all or options.name in ARMS) and given:
        raise ValueError(
            f"--{given[0].replace('_', '-')} does nothing here: the recipe is that of the study"
        )
    if options.all:
        if options.name:
            raise ValueError("--all trains every network of the study: give no name beside it")
        _all(options, folder)
    elif options.name is None:
        raise ValueError("give the name of a network, or --all; `fastcka list arms` has them")
    else:
        _one(options, folder)


def arms() -> str:
    """The networks of the study, a line each: accuracy, recipe, and where the weights are."""
    from fastcka.models import small

    rows = []
    for name, arm in ARMS.items():
        network, _, tag = name.partition(".")
        path = small.trained(network).get(tag)
        accuracy = f"{known_of(path)['accuracy']:6.1%}" if path else "     –"
        where = "" if path is None else "shipped" if path.parent == small.WEIGHTS else str(path)
        rows.append(f"{name:<39} {accuracy}  {arm.recipe.label:<8} {where or 'not trained yet'}")
    return "\n".join(rows)


def _one(options: argparse.Namespace, folder: Path) -> None:
    with processes(options.threads) as share:
        options.silent = share.rank > 0
        recipe, start = _recipe(options, folder)
        tag = options.name.partition(".")[2] or recipe.key
        path = folder / f"{recipe.model}.{tag}.safetensors"
        if path.exists() and known_of(path)["recipe"] == recipe.described():
            tell(options, f"{path} is there already, trained in the same way")
            return
        known = train(
            recipe,
            path,
            folder=cache.folder(),
            start=start,
            workers=options.workers,
            device=device() if options.device in (None, "cuda") else options.device,
            share=share,
            save_every=options.save_every,
            progress=not options.quiet,
        )
    if not options.silent and not options.quiet:
        print(f"{path.stem}: {known['accuracy']:.1%} of new images are recognised; {path}")


def _recipe(options: argparse.Namespace, folder: Path) -> tuple[Recipe, Path | None]:
    if options.name in ARMS:
        arm = ARMS[options.name]
        recipe, start = arm.recipe, arm.start
    else:
        network = options.name
        if options.no_skip is not None:
            network = f"{network}_noskip{options.no_skip}"
        given = {
            "fraction": options.data_fraction,
            "label": options.label_rule,
            "seed": options.seed,
            "images": options.images,
            "pool": options.pool,
            "correlation": {cue: float(rho) for cue, rho in options.correlation or ()},
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        recipe, start = Recipe(network, **chosen), options.init_from
    if start is None:
        return recipe, None
    path = _weights(start, folder)
    return replace(recipe, start=sha256(path)), path


def _weights(name: str, folder: Path) -> Path:
    """A file, or the weights of a network that was trained before."""
    from fastcka.models import small

    network, _, tag = name.partition(".")
    places = [Path(name), folder / f"{name}.safetensors", small.trained(network).get(tag)]
    for path in places:
        if path is not None and path.is_file():
            return path
    raise FileNotFoundError(
        f"there are no weights {name!r} to start from: give a file, or train them first"
    )


def _all(options: argparse.Namespace, folder: Path) -> None:
    """Every arm in a process of its own, several at a time; those that start from others wait."""
    where = device() if options.device is None else options.device
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
