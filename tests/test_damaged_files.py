"""Whatever is in a file: the numbers that were written, or one sentence."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import images, net
from safetensors.numpy import load, save

import fastcka
from fastcka import CKAResult, CKAResults, MinibatchCKA, array_file
from fastcka.checkpoint import Checkpoint

REFUSED = (
    "is damaged, or no file of fastcka's|was written by a newer fastcka|"
    "holds .*, not |cannot (load|resume)|has shape"
)


def result(path):
    more = {"also": ["rsa_cosine", "effective_rank"], "influence": [("x", "z"), ("y", "z")]}
    cka = MinibatchCKA(["x", "y"], ["z"], permutations=3, **more)
    for _ in range(2):
        xs = [torch.randn(12, 3), torch.randn(12, 5)]
        cka.update(xs, [torch.randn(12, 4)], images="abcdefghijkl")
    return cka.compute().save(path)


def results(path):
    cka = MinibatchCKA({"a": ["x"], "b": ["y"]})
    return cka.update({"a": [torch.randn(8, 3)], "b": [torch.randn(8, 5)]}).compute().save(path)


INFLUENCE = {"influence": [("0", "6")], "ids": lambda batch: range(10)}


def state(path):
    class Stop(Exception):
        pass

    def batches():
        yield from images(20).split(10)
        raise Stop

    with pytest.raises(Stop):
        fastcka.compare(net(), data=batches(), layers_a="leaves", checkpoint=path, **INFLUENCE)
    return path


def resume(path):
    return fastcka.compare(
        net(), data=images(20).split(10), layers_a="leaves", checkpoint=path, resume=True,
        **INFLUENCE,
    )  # fmt: skip


KINDS = {
    "result": (result, CKAResult.load),
    "results": (results, CKAResults.load),
    "state": (state, lambda path: Checkpoint(path, resume=True).load()),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The path and the bytes of a file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    paths = {kind: make(folder / kind) for kind, (make, _) in KINDS.items()}
    return {kind: (path, path.read_bytes()) for kind, path in paths.items()}


def arrays_of(loaded):
    if isinstance(loaded, CKAResult):
        return {k: v for k, v in loaded.as_record().items() if isinstance(v, np.ndarray)}
    if isinstance(loaded, CKAResults):
        return {(p, k): v for p, one in loaded.items() for k, v in arrays_of(one).items()}
    return {name: value.numpy() for name, value in loaded[1].items()}


def plain_of(loaded):
    if isinstance(loaded, CKAResult):
        return {k: v for k, v in loaded.as_record().items() if not isinstance(v, np.ndarray)}
    if isinstance(loaded, CKAResults):
        return {pair: plain_of(one) for pair, one in loaded.items()}
    return loaded[0]


def assert_refused_or_equal(path, content, read, whole):
    path.write_bytes(whole)
    expected, plain = arrays_of(read(path)), repr(plain_of(read(path)))
    path.write_bytes(content)
    refused = None
    try:
        again = read(path)
        found, again = arrays_of(again), repr(plain_of(again))
    except ValueError as error:
        refused = str(error)
    finally:
        path.write_bytes(whole)
    if refused is not None:
        assert re.search(REFUSED, refused)
        return
    assert found.keys() == expected.keys()
    assert again == plain
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].tobytes() == value.tobytes()


CHECKS = settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@CHECKS
@given(data=st.data())
def test_changed_bytes_are_refused_or_do_not_matter(files, kind, data):
    path, whole = files[kind]
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(whole) - 1)))
        how = data.draw(st.sampled_from(["set", "cut", "insert", "drop"]))
        at = min(at, max(0, len(content) - 1))
        if how == "set" and content:
            content[at] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del content[at:]
        elif how == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        else:
            del content[at : at + data.draw(st.integers(1, 9))]
    assert_refused_or_equal(path, bytes(content), KINDS[kind][1], whole)


@pytest.mark.parametrize("kind", KINDS)
@CHECKS
@given(content=st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)))
def test_any_other_bytes_are_refused(files, kind, content):
    path, whole = files[kind]
    path.write_bytes(content)
    try:
        with pytest.raises(ValueError, match=REFUSED):
            KINDS[kind][1](path)
    finally:
        path.write_bytes(whole)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def rewritten(whole, kind, change):
    """The file with other contents under a checksum that is right."""
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(json.loads(whole[8 : 8 + size])["__metadata__"][array_file.KEY])
    arrays = load(whole)
    change(header["results"], arrays)
    header["sha256"] = array_file._digest(arrays, header["results"])
    return save(arrays, metadata={array_file.KEY: json.dumps(header)})


@pytest.mark.parametrize("kind", ["result", "results"])
@CHECKS
@given(data=st.data())
def test_contents_of_another_form_under_a_right_checksum_are_refused(files, kind, data):
    path, whole = files[kind]

    def change(records, arrays):
        record = records[data.draw(st.integers(0, len(records) - 1))]
        what = data.draw(st.sampled_from(["drop", "add", "shape", "array"]))
        if what == "drop":
            required = ["layers_a", "layers_b", "n_examples", "n_batches"]
            del record[data.draw(st.sampled_from(required))]
        elif what == "add":
            record["unknown" + data.draw(st.text(max_size=3))] = data.draw(JSON)
        elif what == "shape":
            name = data.draw(st.sampled_from(sorted(arrays)))
            arrays[name] = np.zeros((7, *arrays[name].shape))
        else:
            arrays[data.draw(st.sampled_from(["9.cka", "x.cka", "cka", "0.none"]))] = np.zeros(2)

    path.write_bytes(rewritten(whole, kind, change))
    try:
        with pytest.raises(ValueError, match=REFUSED):
            KINDS[kind][1](path)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["images", "influence", "influence_of"])
@pytest.mark.parametrize("change", ["drop", "shorten"])
def test_influence_that_is_not_of_the_images_is_refused(files, name, change):
    path, whole = files["result"]

    def damage(records, arrays):
        where = arrays if name == "influence" else records[0]
        key = "0.influence" if name == "influence" else name
        if change == "drop":
            where.pop(key)
        else:
            where[key] = where[key][:-1]

    path.write_bytes(rewritten(whole, "result", damage))
    try:
        if (name, change) == ("images", "drop"):
            assert CKAResult.load(path).images is None
        else:
            with pytest.raises(ValueError, match=REFUSED):
                CKAResult.load(path)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("part", ["identity", "course", "account", "sums"])
def test_a_state_without_a_part_is_refused(files, part):
    path, whole = files["state"]
    path.write_bytes(rewritten(whole, "state", lambda records, _: records[0].pop(part)))
    try:
        with pytest.raises(ValueError, match=REFUSED):
            resume(path)
    finally:
        path.write_bytes(whole)


def test_a_header_that_never_ends_is_refused(tmp_path):
    path = tmp_path / "deep"
    deep = {array_file.KEY: "[" * 100_000}
    path.write_bytes(save({"a": np.zeros(1)}, metadata=deep))
    with pytest.raises(ValueError, match="is damaged"):
        CKAResult.load(path)
