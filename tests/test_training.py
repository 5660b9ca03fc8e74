"""Small networks are trained to the same bits, also when stopped, and are found by their names."""

import json
import math
import os
import shlex
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import timm
import torch

from fastcka import array_file, models
from fastcka.cache import alone
from fastcka.cli import main, parser
from fastcka.data import Cues
from fastcka.data.cues.fields import TEXTURES, wave
from fastcka.distributed import Share
from fastcka.models import small, study
from fastcka.training import ARMS, Recipe, train
from fastcka.training.card import card
from fastcka.training.evaluation import evaluate
from fastcka.training.pool import Pool, pool
from fastcka.training.scalars import keep, scalars
from fastcka.training.supervised import TURNED_TEXTURES, in_cells, turned
from fastcka.training.trainer import Training
from fastcka.training.weights_file import known_of, sha256, write_weights
from fastcka.warning import CKAWarning

FEW = {"pool": 96, "batch_size": 16, "images": 96, "warmup": 2}
NETWORKS = ["fastcka_vit_mini", "fastcka_vit_mini_gap", "fastcka_resnet_mini", "fastcka_mixer_mini"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def images(folder):
    return pool(Cues(96, seed=1), folder, 0)


@pytest.fixture(autouse=True)
def few_images_to_test_on(monkeypatch):
    monkeypatch.setattr("fastcka.training.evaluation.COUNT", 40)
    monkeypatch.setattr("fastcka.training.evaluation.BATCH", 25)


def weights(training):
    return {name: value.clone() for name, value in training.network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- the images


def test_the_pool_is_the_images_with_their_masks_and_cues(images, folder):
    cues = Cues(96, seed=1)
    for i in (0, 41, 95):
        scene = cues.scene(i)
        assert np.array_equal(images.images[i], scene.image)
        assert np.array_equal(np.unpackbits(images.masks[i], axis=1).astype(bool), scene.mask)
        expected = [scene.factors[cue] for cue in ("shape", "texture", "background", "trigger")]
        assert list(images.cues[i]) == expected


def test_the_pool_is_drawn_once_and_by_any_number_of_processes(images, folder, tmp_path):
    def forbidden(done):
        raise AssertionError("drawn again")

    assert np.array_equal(pool(Cues(96, seed=1), folder, 0, forbidden).cues, images.cues)
    drawn = []
    again = pool(Cues(96, seed=1), tmp_path, 2, drawn.append)
    assert sum(drawn) == 96
    assert all(np.array_equal(a, b) for a, b in zip(again, images, strict=True))
    other = pool(Cues(96, seed=1, correlation={"texture": 1.0}), folder, 0)
    assert not np.array_equal(other.images, images.images)
    assert not list(folder.glob(".*"))


def test_a_pool_that_was_not_drawn_whole_is_not_used(tmp_path, monkeypatch):
    def stopped(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool(Cues(20, seed=1), tmp_path, 0, stopped)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_has_drawn_is_removed_by_the_next(tmp_path):
    left = tmp_path / ".pool-0123456789abcdef.12345"
    left.mkdir()
    (left / "images.npy").write_bytes(b"half")
    (tmp_path / ".pools.lock").write_text("12345")
    made = pool(Cues(20, seed=1), tmp_path, 0)
    assert len(made.images) == 20
    (there,) = tmp_path.iterdir()
    assert there.name.startswith("pool-")


def test_who_draws_is_waited_for(tmp_path, monkeypatch):
    """The other has drawn the same meanwhile."""
    pytest.importorskip("fcntl")

    @contextmanager
    def after_another(lock, busy):
        busy("process 12345")
        with alone(lock, busy), monkeypatch.context() as before:
            before.setattr("fastcka.training.pool.alone", lambda *_: nullcontext())
            pool(Cues(20, seed=1), tmp_path, 0)
            yield

    def forbidden(done):
        raise AssertionError("drawn again")

    monkeypatch.setattr("fastcka.training.pool.alone", after_another)
    with pytest.warns(CKAWarning, match="waits for process 12345, which draws images"):
        assert len(pool(Cues(20, seed=1), tmp_path, 0, forbidden).images) == 20


# --- turning


def test_turning_moves_images_and_masks_alike_and_all_eight_ways_differ():
    images = torch.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    masks = images[..., 0].clone()
    seen = set()
    for turn in range(8):
        turns = torch.tensor([turn, 0])
        moved, moved_masks, _ = turned(images, masks, torch.tensor([0, 0]), turns, "shape")
        assert torch.equal(moved[..., 0], moved_masks)
        assert torch.equal(moved[1], images[1])
        assert sorted(moved[0].flatten().tolist()) == sorted(images[0].flatten().tolist())
        seen.add(tuple(moved[0].flatten().tolist()))
    assert len(seen) == 8


@pytest.mark.parametrize("turn", range(8))
def test_a_turned_texture_is_the_one_that_its_new_label_names(turn):
    names = list(TEXTURES)
    fields = torch.stack([torch.from_numpy(wave(64, TEXTURES[name], 0.0)) for name in names])
    images = fields[..., None].expand(-1, -1, -1, 3)
    turns = torch.full((8,), turn)
    moved, _, labels = turned(images, fields, torch.arange(8), turns, "texture")
    for picture, label in zip(moved[..., 0].numpy(), labels.tolist(), strict=True):
        centres = (np.arange(64) + 0.5) / 64
        power = [
            abs((picture * np.exp(-2j * np.pi * (u * centres + v * centres[:, None]))).sum())
            for u, v in TEXTURES.values()
        ]
        assert np.argmax(power) == label
    assert sorted(labels.tolist()) == list(range(8))
    assert all(sorted(table) == list(range(8)) for table in TURNED_TEXTURES)


def test_cells_of_a_mask_are_those_of_the_grid():
    masks = torch.zeros(1, 64, 64)
    masks[0, 8 * 3 + 2, 8 * 5 + 7] = 1  # row 3, column 5 of the grid
    cells = in_cells(masks)
    assert cells.shape == (1, 64, 64)
    assert cells[0].nonzero().tolist() == [[3 * 8 + 5, 2 * 8 + 7]]


# --- training


@pytest.mark.parametrize(
    "network",
    [n if "resnet" in n else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS],
)
def test_the_loss_falls(network, images):
    # All its steps on one small set: it must at least learn that by heart.
    recipe = Recipe(network, **{**FEW, "pool": 16, "images": 16 * 30})
    losses = [float(loss) for loss in Training(recipe, images).steps()]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:2])


def test_the_same_recipe_gives_the_same_bits_and_another_seed_others(images):
    recipe = Recipe("fastcka_resnet_mini", **FEW)
    runs = [Training(r, images) for r in (recipe, recipe, replace(recipe, seed=1))]
    for run in runs:
        list(run.steps())
    first, again, other = map(weights, runs)
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("network", ["fastcka_vit_mini", "fastcka_resnet_mini"])
def test_a_state_goes_on_to_the_same_bits(network, images, tmp_path):
    recipe = Recipe(network, **FEW, fraction=0.5)  # three batches a pass: stopped in the second
    whole = Training(recipe, images)
    losses = [float(loss) for loss in whole.steps()]
    stopped = Training(recipe, images)
    steps = stopped.steps()
    before = [float(next(steps)) for _ in range(4)]
    array_file.write(tmp_path / "state", "training", [stopped.state()])
    resumed = Training(recipe, images)
    resumed.load_state(array_file.read(tmp_path / "state", "training")[0])
    after = [float(loss) for loss in resumed.steps()]
    assert before + after == losses
    assert same(weights(whole), weights(resumed))


def test_a_training_that_is_stopped_leaves_a_state_and_goes_on(folder, tmp_path, monkeypatch):
    recipe = Recipe("fastcka_resnet_mini", **FEW)
    whole = tmp_path / "whole.safetensors"
    train(recipe, whole, folder=folder, progress=False)
    made = Training._train
    calls = []

    def interrupted(self, chosen):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return made(self, chosen)

    monkeypatch.setattr(Training, "_train", interrupted)
    path = tmp_path / "again.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, path, folder=folder, progress=False)
    assert not path.exists()
    (state,) = folder.glob("training-*.safetensors")
    train(recipe, path, folder=folder, progress=False)
    assert len(calls) == 3 + 1 + 3  # three were not made again
    assert not state.exists()
    loaded = [models.load(f"fastcka_resnet_mini@{file}").module for file in (whole, path)]
    assert same(*(network.state_dict() for network in loaded))


def test_a_training_that_is_stopped_while_it_is_tested_makes_no_step_again(
    folder, tmp_path, monkeypatch
):
    recipe = Recipe("fastcka_resnet_mini", **FEW, seed=7)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    path = tmp_path / "w.safetensors"
    with monkeypatch.context() as during:
        during.setattr("fastcka.training.trainer.evaluate", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, path, folder=folder, progress=False)
    monkeypatch.setattr(Training, "_train", None)
    train(recipe, path, folder=folder, progress=False)
    assert path.exists()


def test_two_processes_do_not_train_the_same(folder, tmp_path):
    pytest.importorskip("fcntl")
    recipe = Recipe("fastcka_resnet_mini", **FEW, seed=10)
    lock = folder / f".training-{recipe.key}.lock"
    with (
        alone(lock, print),
        pytest.raises(
            ValueError, match=f"this training runs already, in process {os.getpid()}: wait for it"
        ),
    ):
        train(recipe, tmp_path / "w.safetensors", folder=folder, progress=False)
    assert not list(tmp_path.iterdir())
    train(recipe, tmp_path / "w.safetensors", folder=folder, progress=False)
    assert not lock.exists()


def test_what_is_temporary_is_removed_and_the_loss_is_kept(folder, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    recipe = Recipe("fastcka_resnet_mini", **{**FEW, "images": 16 * 50}, seed=11)
    left = folder / f".training-{recipe.key}.safetensors.12345"
    left.write_bytes(b"half")  # by a process that was killed
    for _ in range(2):  # the second training takes the place of the first
        train(recipe, tmp_path / "resnet.mine.safetensors", folder=folder, progress=False)
        names = ["resnet.mine.safetensors", "resnet.mine.tensorboard"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        assert len(list((tmp_path / "resnet.mine.tensorboard").glob("events.*"))) == 1
    assert not [path for path in folder.glob("*") if recipe.key in path.name]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = EventAccumulator(str(tmp_path / "resnet.mine.tensorboard")).Reload()
    assert [event.step for event in written.Scalars("loss")] == [50]


def test_without_tensorboard_nothing_is_kept_of_the_loss(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with scalars(tmp_path / "course", 0) as told:
        told(0.5, 1)
    keep(tmp_path / "course", tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_training_that_goes_on_elsewhere_warns_of_other_bits(folder, images, tmp_path):
    recipe = Recipe("fastcka_resnet_mini", **FEW, seed=12)
    stopped = Training(recipe, images)
    next(stopped.steps())
    state = folder / f"training-{recipe.key}.safetensors"
    held = stopped.state()
    array_file.write(state, "training", [{**held, "began": {**stopped.place, "threads": 64}}])
    now = torch.get_num_threads()
    with pytest.warns(CKAWarning) as told:
        train(recipe, tmp_path / "a.safetensors", folder=folder, progress=False)
    assert str(told[0].message) == (
        f"the training goes on with threads {now} after 1 steps, and began with 64: the last bits "
        "of the weights will differ from those of a training without a break"
    )
    del held["began"]  # as states were written before
    array_file.write(state, "training", [held])
    train(recipe, tmp_path / "b.safetensors", folder=folder, progress=False)


def test_a_step_that_failed_half_way_is_not_saved(folder, tmp_path, monkeypatch):
    recipe = Recipe("fastcka_resnet_mini", **FEW, seed=8)

    def failing(self, chosen):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Training, "_train", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(recipe, tmp_path / "w.safetensors", folder=folder, progress=False)
    assert not (folder / f"training-{recipe.key}.safetensors").exists()


def test_a_damaged_state_is_refused_and_stays(folder, images, tmp_path):
    recipe = Recipe("fastcka_resnet_mini", **FEW, seed=9)
    state = folder / f"training-{recipe.key}.safetensors"
    held = Training(recipe, images).state()
    del held["step"]
    for content in (b"nothing", array_file.write(tmp_path / "x", "training", [held]).read_bytes()):
        state.write_bytes(content)
        with pytest.raises(ValueError, match=r"is damaged, or no file .*; remove it to begin anew"):
            train(recipe, tmp_path / "w.safetensors", folder=folder, progress=False)
        assert state.read_bytes() == content
    state.unlink()


def test_a_part_of_the_images_is_the_first_of_them(images):
    recipe = Recipe("fastcka_resnet_mini", **FEW, fraction=1 / 3)
    kept = Pool(*(array.copy() for array in images))
    kept.images[32:] = 0
    runs = [Training(recipe, pool) for pool in (images, kept)]
    assert [*map(float, runs[0].steps())] == [*map(float, runs[1].steps())]


def test_labels_are_those_of_the_rule(images):
    for column, label in enumerate(("shape", "texture", "background")):
        training = Training(Recipe("fastcka_resnet_mini", **FEW, label=label), images)
        assert training._batch([5, 7])[2].tolist() == images.cues[[5, 7], column].tolist()


def test_textures_that_tell_the_label_are_not_turned(images, monkeypatch):
    moved = []
    monkeypatch.setattr(
        "fastcka.training.trainer.turned", lambda *batch: (moved.append(None), batch[:3])[1]
    )
    for correlation in ({"texture": 0.5}, {"background": 0.5}):
        recipe = Recipe("fastcka_resnet_mini", **FEW, correlation=correlation)
        next(Training(recipe, images).steps())
    assert len(moved) == 1


def test_the_rate_of_learning_rises_and_falls(images):
    recipe = Recipe("fastcka_vit_mini", **{**FEW, "images": 160, "warmup": 4})
    training = Training(recipe, images)
    heights = []
    for _ in training.steps():
        heights.append([opt.param_groups[0]["lr"] for opt in training.optimizers])
    adamw, muon = np.array(heights).T
    expected = [
        min(1, (step + 1) / 4) * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)
    ]
    assert adamw / 2e-3 == pytest.approx(expected)
    assert muon / 0.01 == pytest.approx(expected)


def test_muon_takes_the_matrices_within_blocks_and_adamw_all_else(images):
    training = Training(Recipe("fastcka_vit_mini", **FEW), images)
    adamw, muon = training.optimizers
    names = {id(p): name for name, p in training._module.named_parameters()}
    by_muon = {names[id(p)] for p in muon.param_groups[0]["params"]}
    by_adamw = {names[id(p)] for p in adamw.param_groups[0]["params"]}
    assert by_muon | by_adamw == set(names.values())
    assert not by_muon & by_adamw
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert by_muon == {f"network.blocks.{i}.{part}.weight" for i in range(8) for part in parts}
    assert len(Training(Recipe("fastcka_resnet_mini", **FEW), images).optimizers) == 1


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
import torch
from fastcka.data import Cues
from fastcka.launch import processes
from fastcka.training import Recipe
from fastcka.training.pool import pool
from fastcka.training.trainer import Training

folder = Path(sys.argv[1])
recipe = Recipe("fastcka_vit_mini", pool=96, batch_size=16, images=16)
with processes(1) as share:
    training = Training(recipe, pool(Cues(96, seed=1), folder, 0), share=share)
    list(training.steps())
    values = [p.grad.flatten() for p in training.network.parameters()]
    np.save(folder / f"{share.rank}-of-{share.ranks}.npy", torch.cat(values).numpy())
"""


@pytest.mark.slow
def test_several_processes_find_the_gradients_of_one(images, folder, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
    for ranks in (1, 2):
        command = [*launch, f"--nproc-per-node={ranks}", str(tmp_path / "program.py"), str(folder)]
        subprocess.run(command, check=True, capture_output=True, timeout=240)
    alone, first, second = (
        np.load(folder / f"{name}.npy").astype(float) for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert np.array_equal(first, second)
    # Sums of 16 images, and of 65 tokens each, in another order.
    assert np.linalg.norm(first - alone) < 1e-5 * np.linalg.norm(alone)
    with pytest.raises(ValueError, match="a batch of 16 images cannot be shared by 3 processes"):
        Training(Recipe("fastcka_vit_mini", **FEW), images, share=Share(0, 3))


# --- files and names


def test_weights_are_kept_in_half_precision_with_what_is_known_of_them(folder, tmp_path):
    recipe = Recipe("fastcka_vit_mini", **FEW)
    path = tmp_path / "fastcka_vit_mini.few.safetensors"
    known = train(recipe, path, folder=folder, progress=False)
    assert known_of(path) == json.loads(json.dumps(known))
    assert known["recipe"]["images"] == 96
    assert 0 <= known["accuracy"] <= 1
    assert path.stat().st_size < 2.1 * sum(
        p.numel() for p in timm.create_model("fastcka_vit_mini").parameters()
    )
    child = tmp_path / "child.safetensors"
    start = replace(recipe, images=16, start=sha256(path), learning_rate=0.0, muon=0.0)
    train(start, child, folder=folder, start=path, progress=False)
    loaded = [models.load(f"fastcka_vit_mini@{file}").module for file in (path, child)]
    assert same(*(network.state_dict() for network in loaded))


def test_trained_networks_are_found_by_their_names(tmp_path):
    """In a process of its own, as names are registered once."""
    network = timm.create_model("fastcka_resnet_mini")
    folder = tmp_path / "networks"
    write_weights(folder / "fastcka_resnet_mini.mine.safetensors", network, {"recipe": {}})
    code = (
        "from fastcka import models; n = models.load('fastcka_resnet_mini.mine'); "
        "assert models.load('fastcka_resnet_mini').provenance['weights'] == 'untrained, seed 0'; "
        "print(n.provenance['weights'], float(n.module.conv1.weight.detach().sum()), "
        "models.known('fastcka_resnet_mini.m*'))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True, text=True, check=True,
        env={**os.environ, "FASTCKA_CACHE": str(tmp_path)},
    )  # fmt: skip
    expected = float(network.conv1.weight.detach().half().float().sum())
    assert done.stdout.split()[:2] == ["trained", "fastcka_resnet_mini.mine"]
    assert float(done.stdout.split()[2]) == pytest.approx(expected, rel=1e-6)
    assert "['fastcka_resnet_mini.mine']" in done.stdout


def test_networks_of_the_study_that_are_not_there_are_told_with_what_makes_them(monkeypatch):
    assert tuple(ARMS) == study.NAMES
    assert study.why_missing("resnet18.a1") is None
    monkeypatch.setattr(small, "trained", lambda name: {})
    for name in ARMS:
        assert study.why_missing(name) == (
            f"{name!r} is a network of the study that is not trained yet: train it with "
            f"`fastcka train {name}`"
        )


def test_a_network_of_the_study_that_is_not_there_is_no_unknown_model(monkeypatch, tmp_path):
    name = "fastcka_vit_mini.not_yet"  # all others may be shipped one day
    monkeypatch.setattr("fastcka.models.study.NAMES", (name,))
    monkeypatch.setenv("FASTCKA_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="is a network of the study that is not trained") as told:
        models.load(name, pretrained=True)
    options = parser().parse_args(shlex.split(str(told.value).split("`")[1])[1:])
    assert options.network == name
    # It is trained now, elsewhere.
    path = tmp_path / "networks" / f"{name}.safetensors"
    network = name.partition(".")[0]
    write_weights(path, timm.create_model(network), {"recipe": {}})
    expected = rf"was trained after .* start Python anew, or name it '{network}@{path}'"
    with pytest.raises(ValueError, match=expected) as told:
        models.load(name)
    models.load(str(told.value).split("'")[-2])


def test_a_block_without_skip_is_its_branches_alone():
    plain, without = (
        models.load(name, seed=3).module
        for name in ("fastcka_vit_mini", "fastcka_vit_mini_noskip2")
    )
    assert same(plain.state_dict(), without.state_dict())
    x = torch.randn(2, 65, 64)
    block = plain.blocks[2]
    assert torch.equal(without.blocks[2](x), block.mlp(block.norm2(block.attn(block.norm1(x)))))
    assert torch.equal(without.blocks[3](x), plain.blocks[3](x))


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_are_small_and_have_a_grid_of_tokens(network):
    module = timm.create_model(network)
    assert 0.3e6 < sum(p.numel() for p in module.parameters()) < 0.45e6
    assert module(torch.randn(2, 3, 64, 64)).shape == (2, 8)
    if "vit" in network:
        assert module.patch_embed.grid_size == (8, 8)
        assert len(module.blocks) == 8
        assert module.blocks[0].attn.num_heads == 4
        assert module.num_prefix_tokens == (0 if "gap" in network else 1)


def test_every_arm_can_be_built_and_starts_from_one_that_is_there():
    for name, arm in ARMS.items():
        assert name.partition(".")[0] == arm.recipe.model
        assert arm.recipe.model in timm.list_models()
        assert arm.start is None or ARMS[arm.start].start is None
    assert len({arm.recipe.key + str(arm.start) for arm in ARMS.values()}) == len(ARMS)


def test_the_shipped_weights_are_those_of_the_recipes():
    for path in sorted(small.WEIGHTS.glob("*.safetensors")):
        known = known_of(path)
        arm = ARMS[path.stem]
        start = arm.start and sha256(small.WEIGHTS / f"{arm.start}.safetensors")
        assert known["recipe"] == replace(arm.recipe, start=start).described()
    total = sum(path.stat().st_size for path in small.WEIGHTS.glob("*.safetensors"))
    assert total <= 20e6


# --- what they go by


class Gratings(torch.nn.Module):
    """Names the texture whose wave is strongest in the image."""

    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        centres = (torch.arange(64) + 0.5) / 64
        waves = [u * centres + v * centres[:, None] for u, v in TEXTURES.values()]
        self.waves = torch.exp(-2j * math.pi * torch.stack(waves))

    def forward(self, images):
        grey = images.mean(1)
        return torch.einsum("bij,kij->bk", grey.to(self.waves.dtype), self.waves).abs()


def test_an_evaluation_tells_which_cue_a_network_goes_by(monkeypatch, tmp_path):
    monkeypatch.setattr("fastcka.training.evaluation.COUNT", 800)
    by_texture = evaluate(Gratings(), "texture", folder=tmp_path)
    assert by_texture["accuracy"] > 0.9
    assert abs(by_texture["shuffled"] - 1 / 8) < 3 * math.sqrt(7 / 64 / 800)
    assert by_texture["follows"]["texture"] > 0.9
    assert by_texture["follows"]["shape"] < 0.05  # never the texture's own number
    assert abs(by_texture["follows"]["background"] - 1 / 8) < 3 * math.sqrt(7 / 64 / 800)
    as_shape = evaluate(Gratings(), "shape", folder=tmp_path)
    assert abs(as_shape["accuracy"] - 1 / 8) < 3 * math.sqrt(7 / 64 / 800)
    assert as_shape["follows"] == by_texture["follows"]


def test_images_to_test_on_are_drawn_once_for_all_networks(monkeypatch, tmp_path):
    class Bar(nullcontext):
        def __init__(self, **options):
            bars.append((options["desc"], done := []))
            super().__init__(self)
            self.update = done.append

    monkeypatch.setattr("tqdm.tqdm", Bar)
    every = {}
    for label in ("shape", "shape", "texture"):
        bars = []
        every[label] = evaluate(Gratings(), label, folder=tmp_path, hidden=False)
        drawing, testing = bars
        assert testing == ("testing", [25, 15] * 3)
        assert drawing[0] == "drawing images to test on"
        every[label, "drawn"] = sum(drawing[1])
    assert every["shape", "drawn"] == 0  # the second time
    assert every["texture", "drawn"] == 40  # where the texture tells nothing
    assert every["shape"]["follows"] == every["texture"]["follows"]


def test_the_card_tells_of_every_network_and_what_is_missing(tmp_path):
    name = "fastcka_resnet_mini.shape_data3"
    known = {
        "recipe": ARMS[name].recipe.described(), "accuracy": 0.5, "shuffled": 0.125,
        "follows": {"shape": 0.4, "texture": 0.1, "background": 0.2}, "images_per_second": 9,
        "threads": 1, "torch": "2", "device": "cpu",
    }  # fmt: skip
    write_weights(tmp_path / f"{name}.safetensors", timm.create_model("fastcka_resnet_mini"), known)
    text = card(tmp_path)
    assert f"| `{name}` | 50.0% | 12.5% | 40.0% | 10.0% | 20.0% |" in text
    assert f"| `{name}` | fraction 0.03 | cpu, 1 threads, torch 2 | 9 |" in text
    assert "Not trained yet: `fastcka_vit_mini.shape`, " in text


def test_the_card_that_is_shipped_is_that_of_the_shipped_weights():
    if any(small.WEIGHTS.glob("*.safetensors")):
        assert (small.WEIGHTS / "README.md").read_text() == card(small.WEIGHTS)


@pytest.mark.parametrize("network", ["fastcka_vit_mini", "fastcka_resnet_mini"])
def test_the_more_often_texture_agrees_with_shape_the_more_it_is_followed(network):
    tags = ("shape", "shape_texture50", "shape_texture100")
    paths = [small.WEIGHTS / f"{network}.{tag}.safetensors" for tag in tags]
    follows = [known_of(path)["follows"] for path in paths if path.exists()]
    shape, texture = ([one[cue] for one in follows] for cue in ("shape", "texture"))
    assert texture == sorted(texture)
    assert shape == sorted(shape, reverse=True)
    if len(follows) > 1:
        assert texture[0] < 0.05
        assert texture[-1] > 0.9


# --- the command


def test_the_command_trains_lists_and_does_not_train_twice(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.setenv("FASTCKA_CACHE", str(folder))
    arguments = ["train", "fastcka_resnet_mini", "--images", "128", "--pool", "96", "--quiet"]
    arguments += ["--label-rule", "texture", "--output", str(tmp_path)]
    assert main(arguments) == 0
    (path,) = tmp_path.glob("*.safetensors")
    recipe = Recipe("fastcka_resnet_mini", label="texture", images=128, pool=96)
    assert path.name == f"fastcka_resnet_mini.{recipe.key}.safetensors"
    assert main(arguments) == 0
    assert "is there already" in capsys.readouterr().err
    assert main(["list", "arms"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == list(ARMS)


def test_own_networks_have_names_and_are_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTCKA_CACHE", str(tmp_path))
    arguments = ["train", "fastcka_resnet_mini", "--images", "128", "--pool", "96"]
    arguments += ["--name", "mine", "--device", "cpu"]
    assert main(arguments) == 0
    path = tmp_path / "networks" / "fastcka_resnet_mini.mine.safetensors"
    accuracy = known_of(path)["accuracy"]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"fastcka_resnet_mini.mine: {accuracy:.1%} of new images are recognised"
    assert said[1] == f"weights   {path}"
    assert said[-1] == "use       fastcka compare fastcka_resnet_mini.mine"
    assert main(arguments) == 0
    assert "is there already, trained in the same way" in capsys.readouterr().err
    assert main([*arguments, "--seed", "1"]) == 2
    assert f"--name mine is taken: {path} was trained in another" in capsys.readouterr().err
    (tmp_path / "networks" / "fastcka_vit_mini.half.safetensors").write_bytes(b"half")
    assert main(["list", "networks"]) == 0
    rows = capsys.readouterr().out.splitlines()
    own = next(row for row in rows if "resnet_mini.mine" in row)
    assert own.split() == [
        *("fastcka_resnet_mini.mine", f"{accuracy:.1%}", "images", "128;", "pool", "96", str(path))
    ]
    assert next(row for row in rows if row.startswith("fastcka_vit_mini.shape ")).split()[2:] == [
        *("plain", "in", "the", "package")
    ]
    assert "not known: the file is damaged" in next(row for row in rows if "mini.half" in row)
    assert rows[-1].startswith("Each is a model by this name: fastcka compare fastcka_vit_mini.")


def test_networks_that_lie_elsewhere_are_used_by_their_files(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.setenv("FASTCKA_CACHE", str(folder))
    place = tmp_path / "of mine"
    arguments = ["train", "fastcka_resnet_mini", "--images", "128", "--pool", "96", "--seed", "3"]
    assert main([*arguments, "--name", "a", "--output", str(place), "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    weights = place / "fastcka_resnet_mini.a.safetensors"
    compare = shlex.split(said[-1].partition(" ")[2])
    assert compare == ["fastcka", "compare", f"fastcka_resnet_mini@{weights}"]
    assert models.load(compare[-1]).provenance["sha256"] == sha256(weights)
    if find_spec("tensorboard"):
        assert (
            said[-2]
            == f"loss      tensorboard --logdir '{place}/fastcka_resnet_mini.a.tensorboard'"
        )


def test_a_gpu_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["train", "fastcka_vit_mini", "--device", "cuda"]) == 2
    assert "--device is 'cuda', but torch finds no GPU" in capsys.readouterr().err


def test_all_arms_are_trained_each_by_its_own_command_and_failures_are_named(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FASTCKA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fastcka.train_command.pool", lambda images, folder, workers: None)
    network = timm.create_model("fastcka_resnet_mini")
    started = []

    def instead(command):
        name, output = command[command.index("train") + 1], command[command.index("--output") + 1]
        started.append(name)
        parser().parse_args(command[3:])  # it is one
        if name == "fastcka_resnet_mini.texture":
            return subprocess.CompletedProcess(command, 1)
        known = {
            "recipe": ARMS[name].recipe.described(), "accuracy": 0.5, "shuffled": 0.1,
            "follows": {"shape": 0.5, "texture": 0.1, "background": 0.1}, "images_per_second": 9,
            "threads": 1, "torch": "2", "device": "cpu",
        }  # fmt: skip
        write_weights(tmp_path / f"{name}.safetensors", network, known)
        assert output == str(tmp_path)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("fastcka.train_command.subprocess.run", instead)
    assert main(["train", "--all", "--output", str(tmp_path), "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert sorted(started) == sorted(ARMS)
    late = [name for name in ARMS if ARMS[name].start]
    assert sorted(started[-len(late) :]) == sorted(late)
    assert "fastcka_vit_mini.shape: 50.0%" in out.splitlines()
    assert "not trained: fastcka_resnet_mini.texture; the same command goes on" in err
    assert "Not trained yet: `fastcka_resnet_mini.texture`." in (tmp_path / "README.md").read_text()


VIT = "fastcka_vit_mini"


def command(*arguments):
    """What a command ends with, also where its options alone are wrong."""
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the name of a network, or --all; `fastcka list arms` has them"),
        (["fastcka_vit_mini", "--all"], "--all trains every network of the study: give no name"),
        (["fastcka_vit_mini.shape", "--seed", "1"], "--seed does nothing here: the recipe is that"),
        (["--all", "--no-skip", "1"], "--no-skip does nothing here"),
        (["resnet18"], "NETWORK must be one of fastcka's small networks, such as"),
        (
            ["fastcka_vit_mini.texure"],
            "NETWORK must be one of the study where it has a tag, but is 'fastcka_vit_mini.texure'"
            ": did you mean fastcka_vit_mini.texture or ",
        ),
        (["x.q"], "see `fastcka list arms`; --name gives a training of your own"),
        ([VIT, "--no-skip", "8"], "--no-skip must be a block of fastcka_vit_mini, 0 to 7, but is"),
        (["fastcka_mixer_mini", "--no-skip", "1"], "but is block 1 of fastcka_mixer_mini"),
        ([VIT, "--data-fraction", "7"], "--data-fraction must be a number from 0 to 1, but is 7"),
        (
            [VIT, "--data-fraction", "0"],
            "--data-fraction must leave a batch of 64 images of the 50,000, 0.0013 of them or more",
        ),
        ([VIT, "--pool", "10"], "--pool must be a batch of 64 images at least, but is 10"),
        ([VIT, "--images", "0"], "--images must be a whole number from 1 on, but is 0"),
        ([VIT, "--seed", "-1"], "--seed must be a whole number from 0 on, but is -1"),
        ([VIT, "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        ([VIT, "--threads", "0"], "argument --threads: must be a whole number from 1 on, but is"),
        ([VIT, "--workers", "-1"], "argument --workers: must be a whole number from 0 on, but is"),
        ([VIT, "--save-every", "-1"], "--save-every: must be a number of seconds from 0 on, but"),
        ([VIT, "--save-every", "soon"], "--save-every: must be a number of seconds from 0 on, but"),
        ([VIT, "--device", "gpu"], "--device must be cpu, cuda or cuda:N, but is 'gpu'"),
        ([VIT, "--jobs", "2"], "--jobs does nothing without --all"),
        (
            [VIT, "--init-from", "no.pth"],
            "--init-from must be a file of weights, or a trained network that `fastcka list "
            "networks` has, but is 'no.pth'",
        ),
        ([VIT, "--correlation", "shape", "1"], "--correlation names 'shape', which"),
        ([VIT, "--correlation", "hue", "1"], "--correlation must be one of 'shape', 'texture', "),
        ([VIT, "--correlation", "trigger", "1"], "--correlation must be one of 'shape', "),
        (
            [VIT, "--correlation", "texture", "abc"],
            "--correlation texture must be a number from 0 to 1, but is 'abc'",
        ),
        (
            [VIT, "--correlation", "texture", "2"],
            "--correlation texture must be a number from 0 to 1, but is 2.0",
        ),
        ([VIT, "--output", __file__], "cannot make the folder"),
        ([VIT, "--name", "a.b"], "--name must be letters, digits, _ and -, but is 'a.b'"),
        ([VIT, "--name", "shape"], "--name must not be that of a network of the study, but is"),
        (["fastcka_vit_mini.shape", "--name", "a"], "--name does nothing here: networks of the"),
    ],
)
def test_what_cannot_be_trained_is_refused(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCKA_CACHE", str(tmp_path))
    device = () if "--device" in arguments else ("--device", "cpu")
    assert command("train", *arguments, *device) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert not list(tmp_path.iterdir())
