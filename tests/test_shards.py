"""Images in tar files are the images of a folder; nothing is unpacked, and damage is told."""

import gzip
import io
import os
import random
import tarfile

import numpy as np
import pytest
import torch
from networks import net
from test_checkpoint import Broken, Stop, assert_same_bits
from test_images import Pixels, batches, flat, folder, indices, paint  # noqa: F401
from torchvision.transforms.functional import to_tensor

import fastcka
from fastcka.data import ImageBatches, write_images
from fastcka.data.shards import Shards, expand


def pack(path, members):
    """A tar file of (name, content) or of TarInfo and content."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def contents(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [(path.relative_to(root).as_posix(), path.read_bytes()) for path in files]


@pytest.fixture
def sharded(folder, tmp_path):  # noqa: F811
    """The same images in three shards, in another order, among other things."""
    images = contents(folder)
    random.Random(0).shuffle(images)
    (tmp_path / "shards").mkdir()
    for k in range(3):
        members = [(f"./{name}", content) for name, content in images[k::3]]
        pack(tmp_path / "shards" / f"x-{k + 9:02d}.tar", [("index.json", b"{}"), *members])
    (tmp_path / "shards" / "notes.txt").write_text("no shard")
    return tmp_path / "shards"


def ways(sharded):
    return [sharded, f"{sharded}/x-{{09..11}}.tar", f"{sharded}/x-{{11,09,10}}.tar"]


def assert_same_batches(found, expected):
    for one, other in zip(found, expected, strict=True):
        for name in ("label", "index", "file"):
            assert torch.equal(one[name], other[name]), name
        assert torch.equal(one["views"]["x"], other["views"]["x"])


@pytest.mark.parametrize("way", range(3))
@pytest.mark.parametrize("options", [{}, {"max_images": 7, "seed": 3}, {"workers": 2}])
def test_the_batches_are_those_of_a_folder(folder, sharded, way, options):  # noqa: F811
    expected, found = batches(folder, **options), batches(ways(sharded)[way], **options)
    for epoch in (0, 1):
        expected.set_epoch(epoch)
        found.set_epoch(epoch)
        assert_same_batches(found, expected)
    one, other = found.provenance(), expected.provenance()
    assert one.pop("shards") == 3
    assert one.pop("root") != other.pop("root")
    assert one == other


def test_one_shard_alone_is_data_too(folder, tmp_path):  # noqa: F811
    path = pack(tmp_path / "all{0..1}.tar", contents(folder))  # a name with braces is a name
    assert_same_batches(batches(path), batches(folder))


def test_braces():
    assert list(expand("a-{8..10}.tar")) == ["a-8.tar", "a-9.tar", "a-10.tar"]
    assert list(expand("{000..001}/{a,b}")) == ["000/a", "000/b", "001/a", "001/b"]
    assert list(expand("plain")) == ["plain"]


def test_cka_and_fingerprints_are_those_of_a_folder(tmp_path):
    images = write_images(tmp_path / "images", 44, size=16)
    packed = contents(images)
    for k in range(2):
        pack(tmp_path / f"s-{k}.tar", packed[k::2])
    options = {"input_a": lambda batch: batch["views"]["x"], "layers_a": "leaves"}
    results, prints = [], []
    for place, root in enumerate((images, f"{tmp_path}/s-{{0..1}}.tar")):
        data = ImageBatches(root, {"x": to_tensor}, batch_size=10)
        results.append(fastcka.compare(net(size=16), data=data, progress=False, **options))
        view, path = options["input_a"], tmp_path / f"{place}.fp"
        prints.append(fastcka.fingerprint(net(size=16), data, path, layers="leaves", input=view))
    assert_same_bits(*results)
    assert prints[0]._plain["batches"] == prints[1]._plain["batches"]


def test_a_comparison_of_a_folder_goes_on_with_its_shards(tmp_path):
    images = write_images(tmp_path / "images", 44, size=16)
    pack(tmp_path / "all.tar", contents(images))
    options = {
        "input_a": lambda batch: batch["views"]["x"], "layers_a": "leaves", "progress": False,
        "checkpoint": tmp_path / "state", "resume": True,
    }  # fmt: skip

    def data(root, transform):
        return ImageBatches(root, {"x": transform}, batch_size=10)

    with pytest.raises(Stop):
        fastcka.compare(net(size=16), data=data(images, Broken(27)), **options)
    rest = Broken()
    found = fastcka.compare(net(size=16), data=data(tmp_path / "all.tar", rest), **options)
    assert rest.seen == 24
    del options["checkpoint"], options["resume"]
    assert_same_bits(found, fastcka.compare(net(size=16), data=data(images, to_tensor), **options))


def test_two_processes_share_shards(sharded):
    whole, seen = batches(sharded), []
    for rank in range(2):
        seen += [number for number, _ in whole.numbered(lambda i, rank=rank: i % 2 == rank)]
    assert sorted(seen) == list(range(len(whole)))


# Classes


def png(value):
    file = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (4, 4), (value,) * 3).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("said", "labels", "classes"),
    [
        ([b"7", b"2\n", b"7"], [7, 2, 7], [*"01234567"]),
        ([b"123456", b"2", b"7"], [123456, 2, 7], []),  # ids of something
        ([b"cat", b"dog", b"10"], [1, 2, 0], ["10", "cat", "dog"]),
        ([b"7", None, b"7"], [0, 1, 0], ["7", "a"]),  # one is without: its folder is its class
        ([None] * 3, [0, 0, 1], ["a", "b"]),
    ],
)
def test_classes_are_what_a_sample_says_or_its_folder(tmp_path, said, labels, classes):
    names = ("a/one", "a/two", "b/one")
    members = [(f"{name}.seg.png", png(i)) for i, name in enumerate(names)]
    members += [(f"{n}.cls", text) for n, text in zip(names, said, strict=True) if text is not None]
    path = pack(tmp_path / "x.tar", sorted(members))
    found = Shards(str(path), [str(path)])
    assert [label for *_, label in found.files] == labels
    assert found.classes == classes


def test_folders_that_are_called_by_numbers_are_classes_as_in_a_folder(tmp_path):
    for name in ("10", "2"):
        paint(tmp_path / "images" / name / "1.png", 0)
    path = pack(tmp_path / "x.tar", contents(tmp_path / "images"))
    assert_same_batches(batches(path), batches(tmp_path / "images"))


# What is in the way


def test_what_is_no_image_is_left_out_and_names_are_but_names(tmp_path, monkeypatch):
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = [
        ("a.txt", b"text"), ("../../out.png", png(1)), ("/abs.PNG", png(2)), (link, b""),
        ("long/" * 40 + "ä.jpeg", png(3)), ("twice.png", png(4)),
        ("twice.png", png(5)),
    ]  # fmt: skip
    directory = tarfile.TarInfo("folder.png")
    directory.type = tarfile.DIRTYPE
    work = tmp_path / "work" / "within"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    path = pack(work / "x.tar", [*members, (directory, b"")])
    names = [name for _, name, _ in Shards(str(path), [str(path)]).files]
    assert names == ["../../out.png", "abs.PNG", "long/" * 40 + "ä.jpeg", "twice.png"]
    values = {
        int(i): int(value)
        for batch in batches(path)
        for i, value in zip(batch["index"], batch["views"]["x"][:, 0, 0, 0], strict=True)
    }
    assert values == {0: 1, 1: 2, 2: 3, 3: 5}  # as unpacking would leave it
    assert sorted(os.listdir(tmp_path)) == ["work"]
    assert os.listdir(work) == ["x.tar"]


def test_images_of_one_name_in_two_shards_are_two(tmp_path):
    for k in range(2):
        pack(tmp_path / f"{k}.tar", [("1.png", png(k + 1)), (f"other{k}.png", png(9))])
    images = batches(tmp_path)
    names = [name for _, name, _ in images._dataset.files]
    assert names == ["0.tar/1.png", "1.tar/1.png", "other0.png", "other1.png"]
    assert len(flat(indices(images))) == 4


def test_a_folder_with_images_and_tar_files_is_a_folder_of_images(folder):  # noqa: F811
    expected = batches(folder)
    pack(folder / "left.tar", [("z.png", png(0))])
    assert_same_batches(batches(folder), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_member_is_named_with_its_shard(sharded, tmp_path, workers):
    pack(sharded / "x-12.tar", [("b/broken.png", b"no image")])
    with pytest.raises(
        ValueError, match=r"cannot read the image 'b/broken.png' in '.*x-12.tar': .*; repair or"
    ):
        list(batches(sharded, workers=workers))
    images = batches(sharded, workers=workers, on_broken="skip")
    assert len(flat(indices(images))) == 20
    assert images.broken == ["b/broken.png"]


def test_a_shard_that_shrinks_while_it_is_read_breaks_its_images(sharded):
    images = batches(sharded, on_broken="skip")
    path = sharded / "x-10.tar"
    os.truncate(path, path.stat().st_size // 2)
    seen = len(flat(indices(images)))
    assert seen + len(images.broken) == 20
    assert 0 < len(images.broken) <= 7


def test_a_member_that_lacks_its_last_byte_is_broken_though_it_could_be_decoded(tmp_path):
    content = png(1) + b"behind"
    path = pack(tmp_path / "x.tar", [("1.png", content)])
    images = batches(path)
    os.truncate(path, 512 + len(content) - 1)
    with pytest.raises(
        ValueError, match=f"the shard ends after {len(content) - 1} of {len(content)}"
    ):
        list(images)


def cut(whole):
    return whole[: len(whole) // 2 + 100]


def cut_between_members(whole):
    return whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512)


def flipped_header(whole):
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        at = tar.getmembers()[3].offset
    return whole[: at + 20] + b"\xff" + whole[at + 21 :]


DAMAGE = {
    "empty": lambda whole: b"",
    "text": lambda whole: b"no tar file" * 100,
    "cut": cut,
    "cut between": cut_between_members,
    "header": flipped_header,
    "compressed": gzip.compress,
    "one byte": lambda whole: whole[:1],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_told_in_one_sentence(sharded, damage):
    path = sharded / "x-10.tar"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"the shard '.*x-10.tar' is damaged, compressed or no tar file: "
    ) as caught:
        batches(sharded)
    assert "\n" not in str(caught.value)


def test_headers_of_any_kind_are_read_or_refused(tmp_path):
    whole = pack(tmp_path / "x.tar", [(f"{i}.png", png(i)) for i in range(4)]).read_bytes()
    cut_at, told = np.random.default_rng(0), []
    for _ in range(300):
        content = bytearray(whole)
        for at in cut_at.integers(0, len(whole), 3):
            content[at] ^= 1 << int(cut_at.integers(8))
        (tmp_path / "x.tar").write_bytes(content)
        try:
            list(batches(tmp_path / "x.tar", on_broken="skip"))
        except ValueError as error:
            told.append(str(error))
    assert 100 < len(told) < 300
    assert all(str(tmp_path) in text for text in told)


def test_what_is_missing_is_said_with_what_to_put_there(sharded, tmp_path):
    what = r"give a folder of .jpg, .jpeg or .png files, or of .tar shards, or shards as 'x-\{000"
    with pytest.raises(FileNotFoundError, match=rf"folder '.*nowhere' does not exist: {what}"):
        batches(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"the shard '.*x-12.tar' does not exist"):
        batches(f"{sharded}/x-{{09..14}}.tar")
    with pytest.raises(FileNotFoundError, match=r"the shard 'https://host/x-0.tar' does not exist"):
        batches("https://host/x-{0..9}.tar")
    with pytest.raises(FileNotFoundError, match=rf"'.*one.tar' does not exist: {what}"):
        batches(tmp_path / "one.tar")
    pack(tmp_path / "empty.tar", [("a.txt", b"text")])
    with pytest.raises(ValueError, match=rf"empty.tar' holds no .jpg, .jpeg or .png files: {what}"):
        batches(tmp_path / "empty.tar")


def test_the_command_takes_shards(tmp_path, monkeypatch):
    from fastcka.cli import main

    images = write_images(tmp_path / "images", 40, size=40)
    packed = contents(images)
    for k in range(2):
        pack(tmp_path / f"s-{k}.tar", packed[k::2])
    for place, data in enumerate((str(images), f"{tmp_path}/s-{{0..1}}.tar")):
        usual = ["compare", "test_resnet", "--data", data, "--output", str(tmp_path / str(place))]
        assert main([*usual, "--img-size", "32", "--batch-size", "16", "--quiet"]) == 0
    assert_same_bits(
        *(fastcka.CKAResult.load(tmp_path / k / "result.safetensors") for k in ("0", "1"))
    )
