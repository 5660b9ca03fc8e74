"""The file that holds a model's weights: given, in a folder, in the hub's cache, or downloaded."""

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

from fastcka.models.names import FOLDER, HUB, check_known, split

# What timm writes and reads, in its order of preference.
STORED = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Source:
    """What timm needs to build a model."""

    model: str
    weights: Path | None = None
    origin: str = ""
    classes: int | None = None  # of the head in the file; None leaves the head to timm
    fixed_size: bool = False  # of images: to be told when the model is built


def find(name: str, pretrained: bool) -> Source:
    """Where the architecture and the weights of a model come from; nothing is built."""
    model, checkpoint = split(name)
    place = model.removeprefix(HUB).removeprefix(FOLDER)
    if model.startswith(HUB):
        model = FOLDER + str(_from_hub(name, place, ["config.json"]).parent)
        config = _folder_config(name, model)
    elif model.startswith(FOLDER):
        config = _folder_config(name, model)
        checkpoint = checkpoint or _stored(name, Path(place))
    else:
        check_known(model)
        config = _registered(model)
    fixed = bool(config.get("fixed_input_size"))
    if checkpoint:
        weights = Path(checkpoint)
        return Source(model, weights, weights.name, _classes(weights, config), fixed)
    # Comes with the package, or was trained here; its tag says that the weights are meant.
    if config.get("file") and (pretrained or "." in model):
        weights = Path(config["file"])
        return Source(model, weights, f"trained {weights.stem}", fixed_size=fixed)
    if pretrained:
        repository = place if name.startswith(HUB) else _repository(model, config)
        weights = _from_hub(name, repository, STORED)
        return Source(model, weights, f"pretrained {repository}", fixed_size=fixed)
    return Source(model, fixed_size=fixed)


def one_line(error: Exception) -> str:
    return textwrap.shorten(str(error), 300, placeholder=" ...").rstrip(".") or type(error).__name__


def _registered(model: str) -> dict:
    from timm.models import get_pretrained_cfg

    found = get_pretrained_cfg(model)
    return found.to_dict() if found else {}


def _folder_config(name: str, model: str) -> dict:
    file = Path(model.removeprefix(FOLDER), "config.json")
    try:
        config = json.loads(file.read_text())
        check_known(config["architecture"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name!r} needs a {file} as timm writes it: {one_line(error)}") from None
    return config.get("pretrained_cfg", config)


def _stored(name: str, folder: Path) -> Path:
    for file in STORED:
        if (folder / file).is_file():
            return folder / file
    raise FileNotFoundError(f"{name!r} holds no weights: expected {' or '.join(STORED)}")


def _classes(weights: Path, config: dict) -> int:
    """The size of the head in a checkpoint: 0 without one."""
    from timm.models import load_state_dict

    if not weights.is_file():
        raise FileNotFoundError(f"there is no checkpoint {str(weights)!r}")
    try:
        state = load_state_dict(str(weights))
    # Unpicklers and parsers raise anything.
    except Exception as error:
        reason = one_line(error).partition(" No automatic")[0]
        if "weights_only" in reason:
            reason = "it holds more than weights, which is not loaded: save model.state_dict()"
        raise ValueError(
            f"{str(weights)!r} is no checkpoint that timm can read: {reason}"
        ) from None
    heads = config.get("classifier") or ()
    for head in (heads,) if isinstance(heads, str) else heads:
        if f"{head}.weight" in state:
            return len(state[f"{head}.weight"])
    return 0


def _repository(model: str, config: dict) -> str:
    import timm

    if config.get("hf_hub_id"):
        return config["hf_hub_id"]
    if config.get("url"):
        raise ValueError(
            f"the weights of {model!r} are not on the hub: download {config['url']} "
            f"and give it as `{model}@FILE`"
        )
    tags = timm.list_pretrained(model.partition(".")[0])
    known = f"; there are some of {', '.join(tags)}" if tags else ""
    raise ValueError(f"there are no pretrained weights of {model!r}{known}")


def _from_hub(name: str, repository: str, files: list[str] | tuple[str, ...]) -> Path:
    """The first of the files that the repository has; from the cache without any network."""
    from huggingface_hub import constants, get_session, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = repository.partition("@")
    try:
        for cached in (True, False):
            if not cached:
                # Asked once: out of reach, the hub's own client would try again for 45 s.
                get_session().head(constants.ENDPOINT, timeout=3)
            for file in files:
                try:
                    return Path(
                        hf_hub_download(
                            repository, file, revision=revision or None, local_files_only=cached
                        )
                    )
                except EntryNotFoundError as error:
                    reason = one_line(error)
    # Of the hub, of its HTTP client, whose name changes with the version, or of the proxy.
    except Exception as error:
        reason = one_line(error)
    raise RuntimeError(
        f"the weights of {name} are not on this machine and cannot be downloaded: {reason}; "
        f"give a local file as `{name}@FILE` or leave out `pretrained`"
    ) from None
