"""The networks of the study by name, also those whose weights are not there."""

from fastcka.models import small

# `fastcka.training.ARMS` has the recipe of each.
NAMES = (
    "fastcka_vit_mini.shape",
    "fastcka_resnet_mini.shape",
    "fastcka_vit_mini_gap.shape",
    "fastcka_mixer_mini.shape",
    "fastcka_vit_mini.shape_data3",
    "fastcka_vit_mini.shape_data30",
    "fastcka_vit_mini.shape_data10",
    "fastcka_vit_mini_noskip4.shape",
    "fastcka_vit_mini_noskip1.shape",
    "fastcka_vit_mini_noskip6.shape",
    "fastcka_vit_mini.shape_seed1",
    "fastcka_vit_mini.texture",
    "fastcka_vit_mini.texture_from_shape",
    "fastcka_vit_mini.shape_texture100",
    "fastcka_vit_mini.shape_texture50",
    "fastcka_resnet_mini.shape_data3",
    "fastcka_resnet_mini.shape_data30",
    "fastcka_resnet_mini.shape_data10",
    "fastcka_resnet_mini.shape_seed1",
    "fastcka_resnet_mini.texture",
    "fastcka_resnet_mini.texture_from_shape",
    "fastcka_resnet_mini.shape_texture100",
    "fastcka_resnet_mini.shape_texture50",
)


def why_missing(name: str) -> str | None:
    """What to say of a trained network that cannot be loaded by its name; None of any other."""
    network, _, tag = name.partition(".")
    if network in small.NETWORKS and (path := small.trained(network).get(tag)):
        return (
            f"{name!r} was trained after this process had begun: start Python anew, or name it "
            f"{f'{network}@{path}'!r}"
        )
    if name in NAMES:
        return (
            f"{name!r} is a network of the study that is not trained yet: train it with "
            f"`fastcka train {name}`"
        )
    return None
