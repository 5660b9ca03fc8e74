"""A network of a study whose skip connections are cut in one block, beside the intact one."""

from fastcka.experiments.runner.subjects import SKIP_CUT, Subject, Variant
from fastcka.models.skip_cut import cut_skips


def skip_cut(one: Subject, block: int) -> Subject:
    """The variant of a network that lacks both skip connections of a block, cut post hoc.

    Raises:
        ValueError: there is no such block, or its skip connections cannot be cut.

    >>> from fastcka import models
    >>> skip_cut(Subject("vit", models.load("fastcka_vit_mini")), 4).name
    'vit (skips of block 4 cut post hoc)'
    """
    if block not in range(len(one.blocks)):
        raise ValueError(
            f"the skip connections of block {block} of {one.name} cannot be cut: its blocks are 0 "
            f"to {len(one.blocks) - 1}"
        )
    network = cut_skips(one.network, one.blocks[block])
    name = f"{one.name} (skips of block {block} cut post hoc)"
    return Subject(name, network, Variant(SKIP_CUT, one.name, block))
