"""The passes of receptive fields, which need gradients: a few images through each network."""

from collections.abc import Sequence

import torch

from fastcka.analysis.receptive_field import ReceptiveFields, receptive_fields
from fastcka.experiments.runner.needs import Field
from fastcka.experiments.runner.sample import Sample
from fastcka.experiments.runner.subjects import Subject

AT_ONCE = 64  # images that run together, each once for a cotangent


def run(
    needs: Sequence[Field], subject: Subject, sample: Sample, *, device: str | None
) -> dict[Field, ReceptiveFields]:
    """The fields of all layers that are asked for of one network, from the same backward passes."""
    batches = sample.batches([subject], sample.fields)
    images = torch.cat([batch["views"][subject.name] for batch in batches])
    module = subject.network.module
    home = next(module.parameters()).device
    try:
        module.to(device or home)
        return {
            need: receptive_fields(
                module,
                images,
                list(need.layers),
                seed=sample.seed,
                patch=need.patch,
                batch=AT_ONCE,
            )
            for need in needs
        }
    finally:
        module.to(home)
