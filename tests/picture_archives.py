"""Small archives in the formats of the data sets, byte by byte as they are."""

import io
import pickle
import struct

import numpy as np
from PIL import Image


def pickled_by_python_2(value):
    """A pickle with the instructions that Python 2 wrote, in which all text is bytes."""
    return pickle.PROTO + b"\x02" + _instructions(value) + pickle.STOP


def _instructions(value):
    if isinstance(value, bytes):
        if len(value) < 256:
            return pickle.SHORT_BINSTRING + bytes([len(value)]) + value
        return pickle.BINSTRING + struct.pack("<i", len(value)) + value
    if value is None:
        return pickle.NONE
    if isinstance(value, int):
        return pickle.BININT + struct.pack("<i", value)
    if isinstance(value, np.ndarray):
        what = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        kind = value.dtype.str[1:].encode()
        dtype = b"cnumpy\ndtype\n" + _instructions((kind, 0, 1)) + pickle.REDUCE
        dtype += _instructions((3, b"|", None, None, None, -1, -1, 0)) + pickle.BUILD
        state = _instructions(1) + _instructions(value.shape) + dtype
        state = pickle.MARK + state + _instructions(0) + _instructions(value.tobytes())
        begin = what + _instructions((0,)) + _instructions(b"b") + pickle.TUPLE3 + pickle.REDUCE
        return begin + state + pickle.TUPLE + pickle.BUILD
    if isinstance(value, tuple):
        return pickle.MARK + b"".join(map(_instructions, value)) + pickle.TUPLE
    if isinstance(value, list):
        items = b"".join(map(_instructions, value))
        return pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS
    pairs = b"".join(_instructions(key) + _instructions(one) for key, one in value.items())
    return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS


def cifar_images(seed, count=8):
    """Images [n, 3072] and classes below 10."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 3072), np.uint8), random.integers(0, 10, count).tolist()


def cifar_python(folder, data_set=10):
    """cifar-10-batches-py or cifar-100-python: 8 test images, 8 in each batch of training."""
    folder.mkdir(parents=True)
    names = [b"class %d" % i for i in range(data_set)]
    if data_set == 10:
        files = {"test_batch": 0} | {f"data_batch_{k}": k for k in range(1, 6)}
        meta, label, key = "batches.meta", b"labels", b"label_names"
    else:
        files = {"test": 0, "train": 1}
        meta, label, key = "meta", b"fine_labels", b"fine_label_names"
    for file, seed in files.items():
        images, labels = cifar_images(seed)
        batch = {b"batch_label": b"one of 1", label: labels, b"data": images}
        batch[b"filenames"] = [b"image_s_%06d.png" % i for i in range(8)]
        if data_set == 100:
            batch[b"coarse_labels"] = [0] * 8
        (folder / file).write_bytes(pickled_by_python_2(batch))
    about = {b"num_cases_per_batch": 8, key: names, b"num_vis": 3072}
    (folder / meta).write_bytes(pickled_by_python_2(about))
    return folder


def cifar_binary(folder, data_set=10):
    """The same as cifar-10-batches-bin or cifar-100-binary."""
    folder.mkdir(parents=True)
    names = "".join(f"class_{i}\n" for i in range(data_set))
    if data_set == 10:
        files = {"test_batch.bin": 0} | {f"data_batch_{k}.bin": k for k in range(1, 6)}
        (folder / "batches.meta.txt").write_text(names + "\n")
    else:
        files = {"test.bin": 0, "train.bin": 1}
        (folder / "fine_label_names.txt").write_text(names)
    for file, seed in files.items():
        images, labels = cifar_images(seed)
        classes = np.array(labels, np.uint8)[:, None]
        if data_set == 100:
            classes = np.concatenate([np.zeros_like(classes), classes], 1)
        (folder / file).write_bytes(np.concatenate([classes, images], 1).tobytes())
    return folder


def mnist(folder, count=6):
    """MNIST/raw of torchvision: 28 x 28 pixels of the number of the image, classes in turn."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("t10k", "train"):
        pixels = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28)
        head = struct.pack(">iiii", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        classes = bytes(i % 3 for i in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, count) + classes)
    return folder


def jpeg(path, width, height, box=None):
    """A black picture, white in the box of left, top, right and bottom."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (width, height))
    if box is not None:
        image.paste((255, 255, 255), box)
    image.save(path, "JPEG", quality=95)


def png(value, size=4):
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value,) * 3).save(file, "PNG")
    return file.getvalue()


def voc(name, width, height, objects):
    """The XML of ImageNet's annotations; an object is a class and the four numbers of its box."""
    edges = ("xmin", "ymin", "xmax", "ymax")
    written = "".join(
        f"\t<object>\n\t\t<name>{wnid}</name>\n\t\t<pose>Unspecified</pose>\n\t\t<truncated>0"
        "</truncated>\n\t\t<difficult>0</difficult>\n\t\t<bndbox>\n"
        + "".join(f"\t\t\t<{e}>{v}</{e}>\n" for e, v in zip(edges, box, strict=True))
        + "\t\t</bndbox>\n\t</object>\n"
        for wnid, *box in objects
    )
    return (
        f"<annotation>\n\t<folder>val</folder>\n\t<filename>{name}</filename>\n\t<source>\n"
        "\t\t<database>ILSVRC_2012</database>\n\t</source>\n\t<size>\n"
        f"\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\t\t<depth>3</depth>\n"
        f"\t</size>\n\t<segmented>0</segmented>\n{written}</annotation>\n"
    )
