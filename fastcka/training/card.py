"""The card of the trained networks: what they are, how they came about, and what they go by."""

from pathlib import Path

from fastcka.training.arms import ARMS
from fastcka.training.evaluation import COUNT
from fastcka.training.recipe import LABELS, Recipe, unlike_plain
from fastcka.training.weights_file import known_of, sha256

HEAD = """# Trained networks

Small networks of timm's own classes, trained on the images of `fastcka.data.Cues`, in half
precision. Every file bears its recipe and these numbers in its header. `fastcka train --all` makes
all of them, `fastcka train NAME` one. Free for any use, as fastcka itself; the images are drawn,
and show nobody. They are for the study of representations, and recognise nothing but drawn shapes
or textures.

"""


def card(folder: Path) -> str:
    """The text of the card of the networks in a folder, in Markdown."""
    found = {name: path for name in ARMS if (path := folder / f"{name}.safetensors").exists()}
    known = {name: known_of(path) for name, path in found.items()}
    missing = [name for name in ARMS if name not in found]
    plain = Recipe("")
    return "".join([
        HEAD,
        _recipe(plain),
        "\n## What they do\n\n",
        f"On {COUNT:,} new images. *Shuffled*: accuracy when the cue that was learned tells\n"
        "nothing of the label; chance is 12.5 %. *Follows*: share of the answers that name the\n"
        "shape, the texture, or the background of an image whose shape and texture disagree.\n\n",
        "| network | accuracy | shuffled | follows shape | texture | background |\n",
        "|---|---|---|---|---|---|\n",
        *(_row(name, values) for name, values in known.items()),
        "\n## How they differ\n\n",
        "| network | unlike the recipe above | trained on | images/s | SHA-256 |\n",
        "|---|---|---|---|---|\n",
        *(_made(name, values, found[name]) for name, values in known.items()),
        f"\nNot trained yet: {', '.join(f'`{name}`' for name in missing)}.\n" if missing else "",
    ])  # fmt: skip


def _recipe(plain: Recipe) -> str:
    return f"""## How they were trained

{plain.pool:,} different images of 64 pixels, of which {plain.images:,} are seen, in batches of
{plain.batch_size}, each in one of the eight positions of a square. The label is the shape; texture,
background, place, size and rotation are independent of it. Loss: cross-entropy, and the mask of
the object from the features of an early layer (third block, or second stage of the ResNet), by a
head that is not kept. Muon, learning rate {plain.muon}, for the matrices within the blocks of
transformers and mixers; AdamW, {plain.learning_rate}, for all else; {plain.warmup} steps of
warm-up, then a cosine to 0; weight decay {plain.weight_decay}; gradients clipped at norm 1.
"""


def _row(name: str, known: dict) -> str:
    follows = " | ".join(f"{known['follows'][cue]:.1%}" for cue in LABELS)
    return f"| `{name}` | {known['accuracy']:.1%} | {known['shuffled']:.1%} | {follows} |\n"


def _made(name: str, known: dict, path: Path) -> str:
    other = unlike_plain(known["recipe"], ARMS[name].start)
    place = f"{known['device']}, {known['threads']} threads, torch {known['torch']}"
    return (
        f"| `{name}` | {other} | {place} | {known['images_per_second']} | `{sha256(path)[:16]}` |\n"
    )
