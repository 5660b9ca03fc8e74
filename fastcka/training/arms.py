"""The networks that the study is made on, and in what they differ."""

from dataclasses import dataclass

from fastcka.training.recipe import Recipe


@dataclass(frozen=True)
class Arm:
    """A recipe, and the arm whose weights it starts from, if any."""

    recipe: Recipe
    start: str | None = None


def _arms() -> dict[str, Arm]:
    vit, gap = "fastcka_vit_mini", "fastcka_vit_mini_gap"
    resnet, mixer = "fastcka_resnet_mini", "fastcka_mixer_mini"
    arms = {f"{name}.shape": Arm(Recipe(name)) for name in (vit, resnet, gap, mixer)}
    for name in (vit, resnet):
        for percent in (3, 30, 10):
            arms[f"{name}.shape_data{percent}"] = Arm(Recipe(name, fraction=percent / 100))
        if name == vit:
            for block in (4, 1, 6):
                network = f"{vit}_noskip{block}"
                arms[f"{network}.shape"] = Arm(Recipe(network))
        arms[f"{name}.shape_seed1"] = Arm(Recipe(name, seed=1))
        arms[f"{name}.texture"] = Arm(Recipe(name, label="texture"))
        arms[f"{name}.texture_from_shape"] = Arm(
            Recipe(name, label="texture", images=32_000), start=f"{name}.shape"
        )
        for percent in (100, 50):
            correlation = {"texture": percent / 100}
            arms[f"{name}.shape_texture{percent}"] = Arm(Recipe(name, correlation=correlation))
    return arms


# In the order in which they are worth having.
ARMS = _arms()
