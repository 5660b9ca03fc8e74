"""The modules of a network under the names that a user knows them by."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

# What torch.compile, FSDP and activation checkpointing put between a module and its parent.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def unwrap(model: nn.Module) -> nn.Module:
    """The network itself: hooks on it fire, which those of a compiled or replicated one may not."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        else:
            return model


def named(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its name, without wrappers; one module may stand under several names."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not set(WRAPPERS) & set(module._modules.keys()):
            found[".".join(part for part in name.split(".") if part not in WRAPPERS)] = module
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets its own flag back."""
    before = [(m, m.training) for m in model.modules() if hasattr(m, "training")]
    try:
        # The flags alone: `eval()` may be overloaded to change weights.
        for module, _ in before:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in before:
            module.training = training


def uncompiled():
    """A context in which what was compiled runs as it was written, so that hooks fire."""
    # Nothing was compiled in a process that has not imported this, and its import takes a second.
    known = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if known else nullcontext()
