"""From what a user asks for to modules of one network."""

from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from fastcka.capture.presets import PRESETS
from fastcka.capture.tap import Tap, as_items


@dataclass(frozen=True, eq=False)
class Wanted:
    """A tap at one module."""

    name: str
    tap: Tap
    explicit: bool  # asked for by this very name: one row, whatever else the module does

    @property
    def layer(self) -> str:
        """The name of the layer, of several calls the first."""
        return self.tap.layer_of(self.name, self.tap.call or 1)


def find(layers, modules: dict[str, nn.Module], model: str) -> list[Wanted]:
    """Every (module, tap) that `layers` means, each once, in the order asked for.

    Raises:
        TypeError, ValueError: `layers` holds something else, or what no module matches.
    """
    found: dict[tuple, Wanted] = {}
    for item in as_items(layers):
        for wanted in _find_one(item, modules, model):
            same = (wanted.name, wanted.tap.suffix, wanted.tap.call)
            if same in found and found[same].tap.select != wanted.tap.select:
                name = wanted.name + wanted.tap.suffix
                raise ValueError(
                    f"two taps would both be called {name!r}; give their `select` functions "
                    "different names"
                )
            if same not in found or not wanted.explicit:  # a glob takes in what a name does
                found[same] = wanted
    return list(found.values())


def _find_one(item, modules: dict[str, nn.Module], model: str) -> list[Wanted]:
    if isinstance(item, type):
        names = [name for name in _once(modules) if name and isinstance(modules[name], item)]
        if not names:
            raise ValueError(f"model {model!r} has no module of type {item.__name__}")
        return [Wanted(name, Tap(name), False) for name in names]
    if isinstance(item, str) and item in PRESETS:
        taps = PRESETS[item]({name: modules[name] for name in _once(modules)})
        if not taps:
            raise ValueError(f"preset {item!r} finds no layers in model {model!r}: it has no parts")
        return [Wanted(tap.pattern, tap, False) for tap in taps]
    tap = item if isinstance(item, Tap) else _from_text(item, modules)
    if tap.pattern in modules:
        return [Wanted(tap.pattern, tap, True)]
    if tap.is_glob:
        names = [name for name in _once(modules) if name and matches(name, tap.pattern)]
        if names:
            return [Wanted(name, tap, False) for name in names]
    raise ValueError(_unknown(tap.pattern, modules, model))


def matches(name: str, pattern: str) -> bool:
    """Whether a glob takes in a name: `*` within a part between dots, `**` any number of parts.

    >>> matches("blocks.3.attn", "blocks.*.attn"), matches("blocks.3.attn.qkv", "blocks.*")
    (True, False)
    """
    return _match(name.split("."), pattern.split("."))


def _match(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_match(parts[skip:], patterns[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _match(parts[1:], patterns[1:])


def _from_text(text: str, modules: dict[str, nn.Module]) -> Tap:
    """A name, a glob, or a name with the number of a call: `relu#2`."""
    name, mark, call = text.rpartition("#")
    if mark and text not in modules and call.isdecimal() and int(call) >= 1:
        return Tap(name, call=int(call))
    return Tap(text)


def _once(modules: dict[str, nn.Module]) -> list[str]:
    """The first name of every module."""
    seen, names = set(), []
    for name, module in modules.items():
        if id(module) not in seen:
            seen.add(id(module))
            names.append(name)
    return names


def _unknown(pattern: str, modules: dict[str, nn.Module], model: str) -> str:
    names = [name for name in modules if name]
    near = get_close_matches(pattern, [*PRESETS, *names], n=4, cutoff=0.6)
    hint = f"did you mean {few(near)}?" if near else f"it has {few(names)}"
    return f"model {model!r} has no layer {pattern!r}; {hint}"


def few(names: list[str], shown: int = 4) -> str:
    """The first of some names, and how many there are beyond."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(repr(name) for name in names[:shown]) + more
