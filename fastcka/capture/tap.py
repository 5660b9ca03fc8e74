"""What a user asks for: `Tap`, and the other ways to name layers turned into taps."""

import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

SIDES = ("output", "input")
TOKENS = ("all", "cls", "patches", "gap")
WILD = set("*?[")


@dataclass(frozen=True)
class Tap:
    """A place in a network, and what is taken of the activation there.

    Of a module that returns or takes several tensors, in tuples, dicts or dataclasses, it is the
    first floating one. The first axis must be the examples, the second of a sequence its tokens.

    Args:
        pattern: the name of a module as in `named_modules`, or a glob: `*` is any part between two
            dots, `**` any number of parts, `?` and `[ab]` as in a shell.
        side: "output" of the module, or its "input".
        tokens: "all"; "cls", the class token; "patches", all but the prefix tokens; "gap", the
            mean of the patches or positions; a number, that token of a sequence, prefix tokens
            counted; (row, column), that patch or position of a map.
        call: of a module that a forward pass calls several times, which call, from 1 on; None takes
            all of them for a glob, and the first for a name.
        select: a slice of channels; "head:3", one attention head, at the input of the attention's
            projection; or a function from activation to activation. Applied before `tokens`.

    Raises:
        TypeError, ValueError: an argument is none of these.

    >>> Tap("blocks.*.attn.proj", side="input", tokens="patches", select="head:0").pattern
    'blocks.*.attn.proj'
    """

    pattern: str
    side: str = "output"
    tokens: str | int | tuple[int, int] = "all"
    call: int | None = None
    select: slice | str | Callable[[torch.Tensor], torch.Tensor] | None = None

    def __post_init__(self):
        if not isinstance(self.pattern, str) or not self.pattern:
            raise TypeError(f"`pattern` must be a layer's name or a glob, not {self.pattern!r}")
        if self.side not in SIDES:
            raise ValueError(f"`side` must be 'output' or 'input', but is {self.side!r}")
        if not (self.tokens in TOKENS if isinstance(self.tokens, str) else _position(self.tokens)):
            raise ValueError(
                "`tokens` must be 'all', 'cls', 'patches', 'gap', the number of a token, or "
                f"(row, column), but is {self.tokens!r}"
            )
        if self.call is not None and not (_count(self.call) and self.call >= 1):
            raise ValueError(f"`call` must be 1, 2, 3, … or None, but is {self.call!r}")
        if not (
            self.select is None
            or (isinstance(self.select, slice) and (self.select.step or 1) > 0)
            or (isinstance(self.select, str) and self.head is not None)
            or (callable(self.select) and not isinstance(self.select, str))
        ):
            raise ValueError(
                "`select` must be a slice of channels, 'head:0', 'head:1', …, or a function, "
                f"but is {self.select!r}"
            )

    @property
    def is_glob(self) -> bool:
        return bool(WILD & set(self.pattern))

    @property
    def chooses(self) -> bool:
        """Whether it takes less than the whole activation."""
        return self.select is not None or self.tokens != "all"

    @property
    def head(self) -> int | None:
        """The attention head that `select` names."""
        word, _, number = self.select.partition(":") if isinstance(self.select, str) else ("",) * 3
        return int(number) if word == "head" and number.isdecimal() else None

    @property
    def layer(self) -> str:
        """The name of the layer that it is, or a glob of such names."""
        return self.layer_of(self.pattern, self.call or 1)

    def layer_of(self, module: str, call: int) -> str:
        """The name of the layer that it is of one module, at its first, second, … call."""
        return module + (f"#{call}" if call > 1 else "") + self.suffix

    @property
    def suffix(self) -> str:
        """What the name of a layer bears beside the module's own, so that rows differ."""
        text = " input" if self.side == "input" else ""
        if isinstance(self.select, slice):
            ends = [self.select.start, self.select.stop]
            ends += [] if self.select.step is None else [self.select.step]
            text += f"[{':'.join('' if end is None else str(end) for end in ends)}]"
        elif self.select is not None:
            named = isinstance(self.select, str)
            text += f"[{self.select if named else getattr(self.select, '__name__', 'select')}]"
        if self.tokens != "all":
            text += f"[{self.tokens}]".replace(" ", "")
        return text


def as_items(layers) -> list:
    """What a user gives for `layers`, as a list of strings, module types and Taps."""
    single = isinstance(layers, (str, Tap, type))
    if not single and not isinstance(layers, Iterable):
        raise TypeError(
            "`layers` must be names, globs, module types, Taps, a preset, or a list of these, "
            f"not {type(layers).__name__}"
        )
    items = [layers] if single else list(layers)
    for item in items:
        is_type = isinstance(item, type) and issubclass(item, torch.nn.Module)
        if not (is_type or isinstance(item, (str, Tap))):
            raise TypeError(
                "`layers` may hold names, globs, module types, Taps and presets, but holds "
                f"{item!r}; a module is given by its name"
            )
    if not items:
        raise ValueError("`layers` is empty: name at least one layer")
    return items


def _count(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _position(value) -> bool:
    pair = isinstance(value, tuple) and len(value) == 2 and all(_count(v) for v in value)
    return pair or _count(value)
