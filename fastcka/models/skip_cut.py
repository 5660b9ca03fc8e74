"""A network whose skip connections are cut in one block after it was made: post hoc."""

from copy import deepcopy
from dataclasses import replace

from timm.models.vision_transformer import Block

from fastcka.models.loading import Network
from fastcka.models.small import BlockWithoutSkip


def cut_skips(network: Network, block: str) -> Network:
    """Cut both skip connections of a block, that around its attention and that around its MLP.

    Weights stay as they are: a network that was trained with these connections goes without, which
    is another test than to train one without them [Raghu et al. 2021, figure 8].

    Args:
        network: stays as it is.
        block: the name of the module.

    Returns:
        A copy, with the name of the block in its provenance.

    Raises:
        ValueError: the module is no block of timm's ViTs.

    >>> from fastcka import models
    >>> cut = cut_skips(models.load("fastcka_vit_mini"), "blocks.4")
    >>> type(cut.module.blocks[4]).__name__, cut.provenance["skips_cut"]
    ('BlockWithoutSkip', 'blocks.4')
    """
    module = deepcopy(network.module)
    found = module.get_submodule(block)
    if type(found) is not Block:  # a subclass may add in another way
        raise ValueError(
            f"the skip connections of {block} of {network.name} cannot be cut: it must be a Block "
            f"of timm's vision_transformer, but is a {type(found).__name__}"
        )
    found.__class__ = BlockWithoutSkip
    return replace(network, module=module, provenance={**network.provenance, "skips_cut": block})
