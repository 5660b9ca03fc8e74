"""One variant of a whole comparison in a process of its own: its memory is its own, and it can be
stopped.
"""

import multiprocessing
import os
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import plain
import timm
import torch
from memory import Peak
from peers import PEERS
from reference import gram64, packed
from runner import failed

import fastcka
from fastcka import MinibatchCKA
from fastcka.capture import Capture
from fastcka.gram_stack import GramStack


class Networks(NamedTuple):
    """Two networks by their names in timm, a batch of n images, and the layers to compare."""

    a: str
    b: str
    side: int
    n: int
    layers: str

    def build(self):
        torch.manual_seed(0)
        # Last norms that are not zero: no layer is constant.
        models = [timm.create_model(self.a), timm.create_model(self.b, zero_init_last=False)]
        return *(model.eval() for model in models), torch.randn(self.n, 3, self.side, self.side)


class Gone(Exception):
    """The process is no more; the message says why."""


class Worker:
    """Runs one variant when asked."""

    def __init__(self, variant, networks):
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        arguments = (theirs, variant, networks, torch.get_num_threads())
        self._process = spawn.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()  # the end of the process is then the end of the connection

    def ask(self, seconds):
        """The next answer: {"cka", "note"} at first, then {"us", "cka_us", "above"} of a call."""
        with suppress(OSError):  # it has ended: what it sent last says why
            self._connection.send("next")
        if not self._connection.poll(seconds):
            self.stop(patience=0)
            raise Gone(f"stopped after {seconds:g} s")
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise Gone(f"its process ended with {code}; -9 is for lack of memory") from None
        if isinstance(answer, str):
            raise Gone(answer)
        return answer

    def stop(self, patience=10):
        self._connection.close()  # on which an idle process ends
        self._process.join(patience)
        self._process.kill()
        self._process.join()


def _serve(connection, variant, networks, threads):
    with suppress(OSError):  # where memory runs out, this process is to end and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 progress bars, to the end
    torch.set_num_threads(threads)
    _answer(connection, _answers(variant, networks))


def _answer(connection, answers):
    """Compute an answer when asked, and nothing unasked: the others have their turn."""
    try:
        while True:
            connection.recv()
            connection.send(next(answers))
    except EOFError:
        return  # nobody asks any more
    except Exception as failure:
        connection.send(failed(failure))


def _answers(variant, networks):
    a, b, x = networks.build()
    names_a, names_b = (executed(model, networks.layers, x[:4]) for model in (a, b))
    forward = VARIANTS["forward"](a, b, x, names_a, names_b)
    with Peak() as bare:
        forward()
    call = VARIANTS[variant](a, b, x, names_a, names_b)
    result = call()  # the first call loads modules and compiles; it is not timed
    cka = None if variant == "forward" else np.asarray(result)
    yield {"cka": cka, "note": note_of(variant)}
    while True:
        with Peak() as memory, stopwatch(PARTS.get(variant, ())) as spent:
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
        base = memory.before if variant == "forward" else bare.peak
        yield {
            "us": seconds * 1e6,
            "cka_us": spent[0] * 1e6 if variant in PARTS else None,
            "above": None if base is None else memory.peak - base,
        }


def _forward(a, b, x, names_a, names_b):
    def call():
        with torch.no_grad():
            a(x), b(x)

    return call


def _fastcka(a, b, x, names_a, names_b):
    layers = {"layers_a": names_a, "layers_b": names_b}
    return lambda: fastcka.compare(a, b, [x], **layers, progress=False).cka


def _plain(a, b, x, names_a, names_b):
    return partial(plain.compare, a, b, [x], names_a, names_b)


def _compiled(*arguments):
    plain.use_compiler()
    return _plain(*arguments)


def _float64(a, b, x, names_a, names_b):
    """What is right: the same activations, multiplied in float64."""

    def reduce(output):
        return packed(gram64(output.flatten(1)))

    def call():
        stacks = (
            plain.hooked(net, x, names, reduce) for net, names in ((a, names_a), (b, names_b))
        )
        return plain.ratio(*plain.pairs(*map(torch.stack, stacks)))

    return call


VARIANTS = {
    "forward": _forward,
    "fastcka": _fastcka,
    "plain": _plain,
    "compiled": _compiled,
    "float64": _float64,
    **PEERS,
}
# Where the CKA part of a variant is spent: (owner, name) of functions that do not call each other.
_OF_PLAIN = ((plain, "gram"), (plain, "centred"), (plain, "pairs"), (plain, "ratio"))
PARTS = {
    "fastcka": (
        *((GramStack, "put"), (GramStack, "joined")),
        *((MinibatchCKA, "add"), (MinibatchCKA, "compute")),
    ),
    "plain": _OF_PLAIN,
    "compiled": _OF_PLAIN,
}


def note_of(variant):
    if variant == "compiled":
        return "torch.compile of gram, centred and pairs in plain.py; the networks are not compiled"
    return f"version {version(variant)}" if variant in PEERS else None


@contextmanager
def stopwatch(functions):
    """The seconds spent in functions."""
    spent = [0.0]

    def timed(call):
        def run(*args, **kwargs):
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - start

        return run

    with ExitStack() as stack:
        for owner, name in functions:
            stack.enter_context(patch.object(owner, name, timed(getattr(owner, name))))
        yield spent


def executed(model, layers, x):
    """The names of the layers, in the order in which they run."""
    hooks = Capture(model, layers)
    with torch.no_grad():
        hooks.run(lambda net: net(x), len(x), lambda name, y: None)
    return list(hooks.layers)
