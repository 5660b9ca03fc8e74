"""Names become networks: which weights they hold, and what is said where there are none."""

import hashlib
import json
import pickle

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from fastcka import models

SMALL = "test_resnet"  # 0.5 million parameters, 3 channels, 160 pixels
HUB_ID = "timm/test_resnet.r160_in1k"


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """An empty cache, and a hub that cannot be reached; lists how it was asked."""
    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append((url, timeout))
            raise ConnectionError("the cable is cut.")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    return asked


@pytest.fixture
def trained():
    """A state unlike every untrained one, with a head of 7 classes."""
    return models.load(SMALL, seed=5, num_classes=7).module.state_dict()


def same(module, state):
    mine = module.state_dict()
    return mine.keys() == state.keys() and all(torch.equal(mine[k], state[k]) for k in state)


def cache(tmp_path, files):
    folder = tmp_path / "cache" / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    for name, content in files.items():
        (snapshot / name).write_bytes(content)


def config(classes=7):
    cfg = timm.models.get_pretrained_cfg(SMALL).to_dict()
    cfg |= {"num_classes": classes, "mean": [0.1, 0.2, 0.3]}
    return json.dumps({"architecture": SMALL, "num_classes": classes, "pretrained_cfg": cfg})


def test_untrained_weights_follow_from_the_seed_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, again, other = (models.load(SMALL, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(again.module, one.module.state_dict())
    assert not same(other.module, one.module.state_dict())
    assert one.provenance["weights"] == "untrained, seed 0"


def test_a_network_is_ready_to_be_measured():
    network = models.load("vit_tiny_patch16_224", img_size=32, num_classes=4)
    assert not any(module.training for module in network.module.modules())
    assert {p.dtype for p in network.module.parameters()} == {torch.float32}
    from PIL import Image

    x = network.transform()(Image.new("RGB", (50, 40)))
    assert x.shape == (3, 32, 32)
    assert network.module(x[None]).shape == (1, 4)
    assert json.loads(json.dumps(network.provenance)) == {
        "name": "vit_tiny_patch16_224",
        "architecture": "vit_tiny_patch16_224",
        "class": "VisionTransformer",
        "parameters": sum(p.numel() for p in network.module.parameters()),
        "options": {"num_classes": "4", "img_size": "32"},
        "weights": "untrained, seed 0",
        "sha256": None,
        "input_size": [3, 32, 32],
    }


def test_a_network_that_takes_any_size_is_given_images_of_the_size_asked_for():
    network = models.load("resnet10t", img_size=64)
    assert network.provenance["input_size"] == [3, 64, 64]
    from PIL import Image

    assert network.transform()(Image.new("RGB", (99, 80))).shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("file", "wrap"),
    [
        ("w.safetensors", None),
        ("w.pth", lambda s: s),
        ("w.pt", lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3}),
        ("w.bin", lambda s: {"state_dict": {}, "state_dict_ema": s}),
    ],
)
def test_a_checkpoint_is_loaded_bit_for_bit_with_its_head(tmp_path, trained, file, wrap):
    path = tmp_path / file
    if wrap:
        torch.save(wrap(trained), path)
    else:
        safetensors.torch.save_file(trained, path)
    network = models.load(f"{SMALL}@{path}")
    assert same(network.module, trained)
    assert network.name == f"{SMALL}@{file}"
    assert network.provenance["weights"] == file
    assert network.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_head_is_found_where_the_model_has_two_or_the_checkpoint_none(tmp_path):
    path = tmp_path / "w.safetensors"
    two = models.load("deit_tiny_distilled_patch16_224", num_classes=5, depth=1, img_size=32)
    safetensors.torch.save_file(two.module.state_dict(), path)
    options = {"depth": 1, "img_size": 32}
    again = models.load(f"deit_tiny_distilled_patch16_224@{path}", **options)
    assert same(again.module, two.module.state_dict())

    headless = models.load(SMALL, num_classes=0).module.state_dict()
    safetensors.torch.save_file(headless, path)
    assert same(models.load(f"{SMALL}@{path}").module, headless)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_brings_its_weights_and_its_preprocessing(tmp_path, trained, file):
    (tmp_path / "config.json").write_text(config())
    if file.endswith(".bin"):
        torch.save(trained, tmp_path / file)
    else:
        safetensors.torch.save_file(trained, tmp_path / file)
    network = models.load(f"local-dir:{tmp_path}")
    assert same(network.module, trained)
    assert list(network.data_config["mean"]) == [0.1, 0.2, 0.3]
    assert network.provenance["architecture"] == SMALL
    assert network.name == f"local-dir:{tmp_path.name}"

    other = {key: value + 1 for key, value in trained.items()}
    torch.save(other, tmp_path / "other.pth")
    assert same(models.load(f"local-dir:{tmp_path}@{tmp_path / 'other.pth'}").module, other)


def test_a_folder_without_its_files_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"needs a .*config.json as timm writes it: .*No such file"
    ):
        models.load(f"local-dir:{tmp_path}")
    (tmp_path / "config.json").write_text('{"architecture": "resnet5O"}')
    with pytest.raises(ValueError, match="unknown model 'resnet5O': did you mean 'resnet50'"):
        models.load(f"local-dir:{tmp_path}")
    (tmp_path / "config.json").write_text(config())
    with pytest.raises(FileNotFoundError, match=r"holds no weights: expected model.safetensors or"):
        models.load(f"local-dir:{tmp_path}")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_files_that_are_no_checkpoint_of_the_model_are_refused(tmp_path, trained):
    def refusal(content, options=None):
        path = tmp_path / "w.pth"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(ValueError, match=str(path)) as caught:
            models.load(f"{SMALL}@{path}", **(options or {}))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    malicious = Malicious(tmp_path / "executed")
    strange = {f"net.{key}": value for key, value in trained.items()}
    text = refusal(strange)
    assert f"do not fit {SMALL}" in text
    assert text.count('"net.') == 3
    assert 'Missing key(s) in state_dict: "conv1.0.weight", ' in text
    assert "size mismatch for fc.weight" in refusal(trained, {"num_classes": 8})
    assert "do not fit" in refusal({k: v for k, v in trained.items() if k != "bn1.weight"})
    assert "is no checkpoint that timm can read" in refusal(b"text")
    assert "is no checkpoint that timm can read" in refusal([1, 2])
    assert "it holds more than weights, which is not loaded" in refusal(
        pickle.dumps(malicious, protocol=2)
    )
    assert "it holds more than weights, which is not loaded" in refusal(
        {"state_dict": trained, "x": malicious}
    )
    assert not (tmp_path / "executed").exists()
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint '/nowhere/w\.pth'"):
        models.load(f"{SMALL}@/nowhere/w.pth")


@pytest.mark.parametrize(
    "name", [SMALL, f"{SMALL}.r160_in1k", f"hf-hub:{HUB_ID}", f"hf-hub:{HUB_ID}@main"]
)
def test_cached_weights_need_no_network(tmp_path, trained, hub, name):
    state = models.load(SMALL, seed=9).module.state_dict()
    cache(
        tmp_path,
        {"model.safetensors": safetensors.torch.save(state), "config.json": config(1000).encode()},
    )
    network = models.load(name, pretrained=True)
    assert same(network.module, state)
    assert network.provenance["weights"].removesuffix("@main") == f"pretrained {HUB_ID}"
    assert network.provenance["sha256"]
    fewer = models.load(name, pretrained=True, num_classes=3).module
    assert fewer.num_classes == 3
    assert torch.equal(fewer.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    assert hub == []


def test_a_model_of_the_hub_can_be_left_untrained(tmp_path, hub):
    cache(tmp_path, {"config.json": config().encode()})
    network = models.load(f"hf-hub:{HUB_ID}")
    assert network.module.num_classes == 7
    assert network.provenance["weights"] == "untrained, seed 0"
    assert hub == []


@pytest.mark.parametrize("name", [SMALL, f"hf-hub:{HUB_ID}"])
def test_without_a_network_missing_weights_are_one_sentence_after_one_short_question(hub, name):
    with pytest.raises(RuntimeError) as caught:
        models.load(name, pretrained=True)
    assert str(caught.value) == (
        f"the weights of {name} are not on this machine and cannot be downloaded: the cable is "
        f"cut; give a local file as `{name}@FILE` or leave out `pretrained`"
    )
    assert hub == [(constants.ENDPOINT, 3)]


def test_missing_weights_are_downloaded(tmp_path, trained, monkeypatch):
    state = models.load(SMALL, seed=9).module.state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    asked = []

    def download(repository, file, *, revision, local_files_only):
        asked.append((repository, file, local_files_only))
        if local_files_only or file == "model.safetensors":
            raise LocalEntryNotFoundError("not here")
        return str(tmp_path / file)

    class Session:
        def head(self, url, timeout):
            asked.append("reached")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    assert same(models.load(SMALL, pretrained=True).module, state)
    files = ("model.safetensors", "pytorch_model.bin")
    assert asked == [
        *((HUB_ID, file, True) for file in files),
        "reached",
        *((HUB_ID, file, False) for file in files),
    ]


REFUSALS = [
    (
        lambda: models.load("resnet5O"),
        ValueError,
        "unknown model 'resnet5O': did you mean 'resnet50'",
    ),
    (
        lambda: models.load("resnet50.a1"),
        ValueError,
        "unknown model 'resnet50.a1': did you mean 'resnet50', 'resnet50.",
    ),
    (lambda: models.load("?"), ValueError, r"unknown model '\?'; see timm.list_models"),
    (
        lambda: models.load("resnet50@"),
        ValueError,
        "must be MODEL or MODEL@CHECKPOINT, but is 'resnet50@'",
    ),
    (lambda: models.load(None), ValueError, "must be MODEL or MODEL@CHECKPOINT, but is None"),
    (
        lambda: models.load(SMALL, seed=-1),
        ValueError,
        "`seed` must be a whole number from 0 on, but is -1",
    ),
    (
        lambda: models.load(SMALL, patches=32),
        TypeError,
        "test_resnet does not take these options: .*'patches'",
    ),
    (
        lambda: models.load(SMALL, img_size=0),
        ValueError,
        "`img_size` must be a whole number from 1 on, but is 0",
    ),
    (
        lambda: models.load("legacy_seresnet18", pretrained=True),
        ValueError,
        "not on the hub: download https://.* and give it as `legacy_seresnet18@FILE`",
    ),
    (
        lambda: models.load("coatnet_0_224", pretrained=True),
        ValueError,
        "no pretrained weights of 'coatnet_0_224'$",
    ),
    (
        lambda: models.load("resnext101_32x4d.untrained", pretrained=True),
        ValueError,
        "no pretrained weights of 'resnext101_32x4d.untrained'; there are some of resnext101",
    ),
    (
        lambda: models.known("resnet5O*"),
        ValueError,
        r"no model matches 'resnet5O\*': did you mean 'resnet50'",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), REFUSALS, ids=[row[2] for row in REFUSALS])
def test_refusals_say_what_came_and_what_was_expected(call, kind, text):
    with pytest.raises(kind, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_known_names_follow_the_pattern():
    assert "vit_tiny_patch16_224" in models.known("vit_tiny*")
    assert all(name.startswith("vit_tiny") for name in models.known("vit_tiny*"))
    assert "resnet50.a1_in1k" in models.known("resnet50.*")
    assert len(models.known()) > 1000


def test_labels_are_short_and_differ():
    names = ["a", "b@/x/w.pth", "a", "b@/y/w.pth", "a (2)", "local-dir:/x/run", "hf-hub:me/m@v1"]
    assert models.labels(names) == [
        *("a", "b@w.pth", "a (2)", "b@w.pth (2)", "a (2) (2)", "local-dir:run", "hf-hub:me/m@v1")
    ]
