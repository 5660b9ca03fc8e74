"""Every refusal, by its text: argument, what was expected, what came."""

import re
from functools import cache

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import TensorDataset

import fastcka
from fastcka import MinibatchCKA, Tap, compare, compare_many
from fastcka.capture.matching import find
from fastcka.capture.modules import named
from fastcka.capture.presets import raghu
from fastcka.kernels import finish, gram, gram_finish, hsic_pairs, native, rbf, using

x, y = torch.randn(8, 5), torch.randn(8, 3)
pictures = torch.randn(8, 3, 6, 6)
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())


def two_layers():
    return nn.TransformerEncoderLayer(4, 2, 8)


def on_meta():
    with torch.device("meta"):
        return nn.Sequential(nn.Conv2d(3, 4, 3))


@cache
def vit():
    with torch.device("meta"):
        return named(timm.create_model("vit_tiny_patch16_224", depth=3))


def two(**options):
    return MinibatchCKA(["a0", "a1"], ["b0"], **options)


def filled(**options):
    cka = MinibatchCKA(["a"], **options)
    cka.update([x])
    return cka


def with_index():
    cka = MinibatchCKA(["a"])
    cka.update([x], index=4)
    return cka


def put(stack):
    stack.put(0, x)
    return stack


def without(part, name):
    state = filled().state_dict()
    del state[part][name]
    return state


def cut_short():
    state = filled().state_dict()
    state["tensors"]["pair.0"] = state["tensors"]["pair.0"][:0]
    return state


def uneven():
    cka = two()
    stacks = {"a": cka.stack("a", 8), "b": cka.stack("b", 6)}
    return cka.add(stacks)


REFUSALS = [
    # arrays
    (lambda: fastcka.cka(x, y[:7]), ValueError, "`y` has 7 examples but `x` has 8"),
    (lambda: fastcka.cka(x[:3], y[:3]), ValueError, "needs at least 4 examples, but there are 3"),
    (lambda: fastcka.cka(x[:1], y[:1], estimator="biased"), ValueError, "needs at least 2"),
    (lambda: fastcka.cka([[1.0]], y), TypeError, "`x` must be a NumPy array or a torch tensor"),
    (lambda: fastcka.cka(x, y.int()), TypeError, "`y` must be float16, bfloat16, float32 or"),
    (lambda: fastcka.cka(x, np.ones((8, 2), int)), TypeError, "`y` must be float16, float32 or"),
    (lambda: fastcka.cka(x, np.ones((8, 2), complex)), TypeError, "but is complex128"),
    (lambda: fastcka.cka(x[:, 0], y), ValueError, r"`x` must have one row an example, \[n, ...\]"),
    (lambda: fastcka.cka(x[:, :0], y), ValueError, r"`x` is empty: its shape is \[8, 0\]"),
    (lambda: fastcka.cka(x.to_sparse(), y), TypeError, "`x` must be a dense tensor"),
    (lambda: fastcka.cka(x, y.to("meta")), RuntimeError, "`x` is on cpu and `y` on meta"),
    (lambda: fastcka.cka(x.to("meta"), y.to("meta")), RuntimeError, "on the meta device: they have no"),
    (lambda: fastcka.cka(x, np.ma.masked_array(y.numpy())), TypeError, "`y` is a masked array"),
    (lambda: fastcka.cka(x, y, estimator="best"), ValueError, "`estimator` must be one of 'unbia"),
    (lambda: fastcka.cka(x, y, gram="cubic"), ValueError, "`gram` must be one of 'linear', 'rbf'"),
    (lambda: fastcka.hsic(x, y, bandwidth=1.0), ValueError, "`bandwidth` belongs to gram='rbf'"),
    (lambda: fastcka.hsic(x, y, gram="rbf", bandwidth="1"), ValueError, "must be a positive number, but is '1'"),
    (lambda: fastcka.hsic(x, y, gram="rbf", bandwidth=0.0), ValueError, "must be a positive number"),
    # accumulators
    (lambda: MinibatchCKA("conv"), TypeError, "must be a list of names, but are 'conv'"),
    (lambda: MinibatchCKA(5), TypeError, "must be a list of names, but are 5"),
    (lambda: MinibatchCKA(["a"]).update(3), TypeError, "must be a list of tensors, but are int"),
    (lambda: MinibatchCKA([]), ValueError, "model 'a' has no layers"),
    (lambda: MinibatchCKA({}), ValueError, "`layers_a` names no model"),
    (lambda: MinibatchCKA(["a", "a"]), ValueError, "model 'a' names 'a' twice"),
    (lambda: MinibatchCKA({"m": ["a"]}, ["b"]), ValueError, "`layers_b` must be None"),
    (lambda: MinibatchCKA(["a"], weighting="fair"), ValueError, "`weighting` must be one of 'pairs'"),
    (lambda: MinibatchCKA(["a"], operand="fp8"), ValueError, "`operand` must be 'fp32', 'fp16' or"),
    (lambda: MinibatchCKA(["a"], backend="cuda"), ValueError, "`backend` must be one of native"),
    (lambda: two().update([x, x]), ValueError, "`ys` is missing"),
    (lambda: MinibatchCKA(["a"]).update([x], [y]), ValueError, "there is no second model"),
    (lambda: two().update([x], [y]), ValueError, "model 'a' has 2 layers, but 1 were given"),
    (lambda: two().update(x, [y]), TypeError, "as a list with one tensor a layer, not as one"),
    (lambda: two().update([x, x[:7]], [y]), ValueError, "'a1' has 7 examples, but the batch has 8"),
    (lambda: two().update([x, x], [y[:2]]), ValueError, "'b0' has 2 examples, but the batch has 8"),
    (lambda: two().update([x, x.numpy()], [y]), TypeError, "'a1' must be a torch.Tensor, but is ndarray; use torch"),
    (lambda: two().update([x, x.long()], [y]), TypeError, "layer 'a1': .* but is torch.int64"),
    (lambda: two().update([x, torch.tensor(1.0)], [y]), ValueError, r"\[n, ...\], but has shape \[\]"),
    (lambda: two().update([x, x[:, 0]], [y]), ValueError, "layer 'a1' must have one row an example"),
    (lambda: MinibatchCKA([torch.nn.ReLU()]), TypeError, "named by strings, not by ReLU: fastcka is"),
    (lambda: two().update([x, x.to("meta")], [y]), RuntimeError, "layer 'a1'"),
    (lambda: two().update({"a0": x, "c": x}, [y]), ValueError, r"missing \['a1'\], unknown \['c'\]"),
    (lambda: MinibatchCKA({"m": ["a"]}).update([x]), ValueError, "give one mapping with .* of m"),
    (lambda: MinibatchCKA(["a"]).update([x], index=-1), ValueError, "from 0 on, but is -1"),
    (lambda: MinibatchCKA(["a"]).update([x], index=1.5), ValueError, "from 0 on, but is 1.5"),
    (lambda: MinibatchCKA(["a"]).update([x], index=2**63), ValueError, "from 0 on, but is 9223"),
    (lambda: MinibatchCKA(["a"], operand=["fp16"]), ValueError, "`operand` must be 'fp32', 'fp16' or"),
    (lambda: filled().add({"a": MinibatchCKA(["b"]).stack("a", 8)}), ValueError, "no activations were"),
    (lambda: filled().add({"a": put(MinibatchCKA(["a"], gram="rbf").stack("a", 8))}), ValueError,
     "the stack of 'a' was made for other layers or options"),
    (lambda: filled().update([x], index=3), ValueError, "either every batch has an `index` or none"),
    (lambda: filled(operand="fp16").update([x.double()]), TypeError, "multiplied in float64, not"),
    (uneven, ValueError, "different numbers of examples: {'a': 8, 'b': 6}"),
    (lambda: two().add({"a": two().stack("a", 8), "b": two().stack("b", 8)}), ValueError,
     "no activations were given for 'a0', 'a1'"),
    (lambda: two().add({"a": two().stack("a", 8)}), ValueError, "one stack of each of a, b"),
    (lambda: MinibatchCKA(["a"]).compute(), ValueError, "no batch of 4 or more examples was given$"),
    (lambda: MinibatchCKA(["a"]).update([x[:3]]).compute(), ValueError, "1 batch of fewer than 4 examples was left out"),
    (lambda: filled().merge(3), TypeError, "`other` must be a MinibatchCKA, but is int"),
    (lambda: filled().merge(filled(weighting="equal")), ValueError,
     "cannot merge: `weighting` is 'pairs' here, but 'equal' there"),
    (lambda: (lambda cka: cka.merge(cka))(filled()), ValueError, "cannot merge an accumulator with"),
    (lambda: filled().merge(two()), ValueError, "cannot merge: `layers` is"),
    (lambda: filled().merge(with_index()), ValueError, "numbered by arrival with batches with an"),
    (lambda: filled().load_state_dict({}), ValueError, "this is no state of MinibatchCKA: it needs `config`"),
    (lambda: filled().load_state_dict(filled(gram="rbf").state_dict()), ValueError,
     "cannot load: `gram` is 'linear' here, but 'rbf' there"),
    (lambda: filled().load_state_dict(without("counts", "n_batches")), ValueError,
     "cannot load the counts: `n_batches` is missing"),
    (lambda: filled().load_state_dict(without("tensors", "sums.0")), ValueError,
     "cannot load the tensors: `sums.0` is missing"),
    (lambda: filled().load_state_dict(cut_short()), ValueError,
     r"cannot load the tensors: `pair.0` is \(1, 1, 1\) here, but \(0, 1, 1\) there"),
    (lambda: filled().compute().ci("0.9"), ValueError, "but is '0.9'"),
    (lambda: filled(permutations=-1), ValueError, "`permutations` must be a whole number from 0 on, but is -1"),
    (lambda: compare(net, data=[pictures], layers_a="leaves", calibrate=1.5), TypeError, "`calibrate` must be True, False or a number of permutations, but is 1.5"),
    (lambda: compare(net, data=[pictures], layers_a="leaves", calibrate=-3), ValueError, "`permutations` must be a whole number from 0 on, but is -3"),
    (lambda: filled(also=["rsa"]), ValueError, "`also` must name rsa_cosine, .*, effective_rank, but names 'rsa'"),
    (lambda: two(influence="a0"), TypeError, r"`influence` must be a list of pairs \(layer_a, layer_b\), but is 'a0'"),
    (lambda: two(influence=3), TypeError, r"`influence` must be a list of pairs \(layer_a, layer_b\), but is 3"),
    (lambda: two(influence={"a0": "b0"}), TypeError, "`influence` must be a list of pairs .*, but is {'a0': 'b0'}"),
    (lambda: two(influence=("a0", "b0")), TypeError, r"a list of pairs \(layer_a, layer_b\), but holds 'a0'"),
    (lambda: two(influence=[("a0", "b0", "a1")]), TypeError, "but holds .'a0', 'b0', 'a1'"),
    (lambda: two(influence=[("a0", 3)]), TypeError, "but holds .'a0', 3"),
    (lambda: two(influence=[("a0", "a1")]), ValueError, "`influence` names layer 'a1', which is none of those compared of model 'b'; near are 'b0'"),
    (lambda: two(influence=[("a", "b0")]), ValueError, "`influence` names layer 'a', .* of model 'a'; near are 'a[01]', 'a[01]'"),
    (lambda: MinibatchCKA({"m": ["a"]}, influence=[("a", "a")]), TypeError, r"pairs \(\(model, layer\), \(model, layer\)\), but holds \('a', 'a'\)"),
    (lambda: MinibatchCKA({"m": ["a"]}, influence=[(("m", "a"), ("n", "a"))]), ValueError, "`influence` names model 'n', but the models are m"),
    (lambda: two().update([x, x], [y], images=["one"]), ValueError, "`images` names 1 images, but the batch holds 8"),
    (lambda: compare(net, data=[pictures], layers_a="leaves", influence=[("0", "1")], ids=lambda batch: [1, 2]), ValueError,
     "`ids` names 2 images, but the batch holds 8"),
    (lambda: compare(net, data=[pictures], layers_a="leaves", influence=[("0", "relu")]), ValueError,
     "`influence` names layer 'relu', which is none of those compared of model 'a'; near are '0', '1', '2'"),
    (lambda: compare(net, data=[pictures], layers_a="leaves", influence=[("0", "1")], passes=2), ValueError,
     "`influence` needs one pass, but `passes` is 2: an image that comes again"),
    (lambda: filled(also="cknna"), TypeError, "`also` must be a list of names, but is 'cknna'"),
    (lambda: filled().compute().p_values(), ValueError, "nothing to say about chance: measure with calibrate=True"),
    (lambda: filled().compute().p_value_of(np.max), ValueError, "measure with calibrate=True"),
    (lambda: filled().compute().calibrated(), ValueError, "measure with calibrate=True"),
    (lambda: filled(permutations=3).compute().calibrated(0), ValueError, "`level` must lie between 0 and 1, but is 0"),
    (lambda: filled().compute().ci(1.5), ValueError, "`level` must lie between 0 and 1, but is 1.5"),
    # kernels
    (lambda: gram(x.numpy()), TypeError, "`x` must be a torch.Tensor, but is ndarray"),
    (lambda: gram(x, operand="fp8"), ValueError, "`operand` must be 'fp32', 'fp16' or 'bf16', but is"),
    (lambda: gram(x, operand=torch.int8), ValueError, "but is torch.int8"),
    (lambda: gram(x, backend="fast"), ValueError, "the argument `backend` must be one of native"),
    (lambda: using("fast").__enter__(), ValueError, "`backend` must be one of native, triton, torch"),
    (lambda: gram(x.double(), operand=torch.float16), TypeError, "convert them to float32 first"),
    (lambda: finish(gram(x[:3])), ValueError, "unbiased HSIC needs at least 4 examples"),
    (lambda: gram_finish(x), TypeError, "`layers` must be a list of tensors, one a layer, but is a tensor"),
    (lambda: gram_finish([]), ValueError, "`layers` is empty; give the activations of one layer or more"),
    (lambda: gram_finish([x, x[:7]]), ValueError, r"`layers` must hold the same examples, but have \[7, 8\] of them"),
    (lambda: gram_finish([x, x.int()]), TypeError, r"`layers\[1\]` must be float16, bfloat16, float32 or float64, but is torch.int32"),
    (lambda: gram_finish([x, x.double()], operand="bf16"), TypeError, "float64 activations are multiplied in float64, not in torch.bfloat16"),
    (lambda: gram_finish([x[:3]]), ValueError, "unbiased HSIC needs at least 4 examples"),
    (lambda: gram_finish([x, x.to("meta")]), RuntimeError, "`layers` must be on one device, but are on cpu and meta"),
    (lambda: two().update([x, x.int()], [y]), TypeError, "layer 'a1': `x` must be float16"),
    (lambda: hsic_pairs(torch.ones(2, 6).double(), torch.ones(2, 6, device="meta").double()), RuntimeError,
     "`a` is on cpu and `b` on meta"),
    (lambda: hsic_pairs(torch.ones(2, 6)), TypeError, "`a` must be a tensor of float64, but is torch.float32"),
    (lambda: finish(gram(x)._replace(k=x)), TypeError, "`batch.k` must be a tensor of float64, but is torch.float32"),
    (lambda: rbf(gram(x), -1.0), ValueError, "`bandwidth` must be a positive number, but is -1.0"),
    # layers
    (lambda: find("blocks.12", vit(), "a"), ValueError, "model 'a' has no layer 'blocks.12'; did you mean 'blocks.2', 'blocks.1', "),
    (lambda: find("zzz", vit(), "a"), ValueError, "no layer 'zzz'; it has 'patch_embed', .* and .* more"),
    (lambda: find("heads.*", vit(), "a"), ValueError, "model 'a' has no layer 'heads.*'"),
    (lambda: find(nn.LSTM, vit(), "a"), ValueError, "model 'a' has no module of type LSTM"),
    (lambda: find([], vit(), "a"), ValueError, "`layers` is empty"),
    (lambda: find(3, vit(), "a"), TypeError, "`layers` must be names, globs, .*, not int"),
    (lambda: find([nn.ReLU()], vit(), "a"), TypeError, "a module is given by its name"),
    (lambda: find([int], vit(), "a"), TypeError, "`layers` may hold names"),
    (lambda: raghu(named(nn.Sequential(two_layers(), two_layers()))), ValueError, "'raghu' knows blocks of `attn` and `mlp`"),
    (lambda: raghu({"": nn.Identity(), "fc": nn.Linear(2, 2)}), ValueError, "'raghu' needs a network of"),
    (lambda: find("leaves", {"": nn.Identity()}, "b"), ValueError, "'leaves' finds no layers in model 'b'"),
    (lambda: Tap(""), TypeError, "`pattern` must be a layer's name or a glob"),
    (lambda: Tap("a", side="both"), ValueError, "`side` must be 'output' or 'input', but is 'both'"),
    (lambda: Tap("a", tokens="class"), ValueError, "`tokens` must be 'all', 'cls', .* but is 'class'"),
    (lambda: Tap("a", tokens=(1, 2, 3)), ValueError, r"`tokens` must be .* but is \(1, 2, 3\)"),
    (lambda: Tap("a", tokens=1.5), ValueError, "`tokens` must be .* but is 1.5"),
    (lambda: Tap("a", call=0), ValueError, "`call` must be 1, 2, 3, … or None, but is 0"),
    (lambda: Tap("a", select="head"), ValueError, "`select` must be a slice .* but is 'head'"),
    (lambda: Tap("a", select=slice(None, None, -1)), ValueError, "`select` must be a slice of channels"),
    (lambda: Tap("a", select=3), ValueError, "`select` must be a slice of channels, .* but is 3"),
    # comparisons
    (lambda: compare(net, [pictures]), TypeError, r"`model_b` must be a torch.nn.Module, but is list; the data are given by name: compare\(model, data=...\)"),
    (lambda: compare("resnet18", data=[pictures]), TypeError, "`model_a` must be a .*, but is str; timm.create_model makes"),
    (lambda: compare(None, net, [pictures]), TypeError, "`model_a` must be a torch.nn.Module, but is NoneType$"),
    (lambda: compare(net), TypeError, "`data` is missing: give an iterable of batches"),
    (lambda: compare(net, data=pictures), TypeError, r"`data` is one tensor, .*; give for example data.split\(64\)"),
    (lambda: compare(net, data=TensorDataset(pictures)), TypeError, "`data` is a data set of single images; wrap it in"),
    (lambda: compare(net, data=3), TypeError, "`data` must be an iterable of batches, but is int"),
    (lambda: compare(net, net, [pictures], data_b=pictures), TypeError, "`data_b` is one tensor"),
    (lambda: compare(net, data=[pictures], layers_b="leaves"), ValueError, "there is no `model_b` for `layers_b`"),
    (lambda: compare(net, data=[]), ValueError, "`data` gave no batches$"),
    (lambda: compare(net, data=iter([pictures]), passes=2), ValueError, "`passes` is 2, but an iterator can be read once; give a list"),
    (lambda: compare(net, data=[pictures[:3]]), ValueError, "no batch of 4 or more examples was given; 1 batch of fewer"),
    (lambda: compare(net, data=[pictures], n=3), ValueError, "`n` must be a whole number from 4 on, but is 3"),
    (lambda: compare(net, data=[pictures], n=5), ValueError, "`n` is 5, but the batches of `data` hold 8 images"),
    (lambda: compare(net, data=[pictures], passes=0), ValueError, "`passes` must be a whole number from 1 on, but is 0"),
    (lambda: compare(net, data=[pictures], autocast="fp8"), ValueError, "`autocast` must be 'fp16', 'bf16' or None, but is 'fp8'"),
    (lambda: compare(net, data=[pictures], estimator="best"), ValueError, "`estimator` must be one of"),
    (lambda: compare(net, data=[["cat.png"]]), TypeError, "the batch holds no tensor for model 'a', but list; give batches as"),
    (lambda: compare(net, data=[pictures.byte()]), TypeError, r"model 'a' has float32 weights, but is given uint8 \[8, 3, 6, 6\]; convert the images to float32"),
    (lambda: compare(net, data=[pictures.double()]), TypeError, "has float32 weights, but is given float64"),
    (lambda: compare(net, net, [(pictures, pictures[:5])], input_b=lambda b: b[1]), ValueError, "different numbers of examples: {'a': 8, 'b': 5}"),
    (lambda: compare(net, data=[pictures], layers_a="layer1"), ValueError, "model 'a' has no layer 'layer1'; it has '0', '1', '2'"),
    (lambda: compare(on_meta(), data=[pictures]), RuntimeError, "model 'a' has no values: it is on the meta device"),
    (lambda: compare(net, data=[pictures.to("meta")]), RuntimeError, "the batch for model 'a' is on meta, without values"),
    (lambda: compare_many([net], [pictures]), TypeError, "`models` must be a mapping from name to model"),
    (lambda: compare_many({"a": net}, [pictures], inputs=abs), TypeError, "`inputs` must map models to functions"),
    (lambda: compare_many({"a": 3}, [pictures]), TypeError, r"`models\['a'\]` must be a torch.nn.Module, but is int"),
    (lambda: compare_many({"a": net}, [pictures], layers={"b": "leaves"}), ValueError, r"`layers` names \['b'\], which `models` does"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "text"), REFUSALS, ids=[row[2] for row in REFUSALS])
def test_refusals_say_what_came_and_what_was_expected(call, kind, text):
    with pytest.raises(kind, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_unknown_pair_of_models_is_an_error_that_names_the_known():
    cka = MinibatchCKA({"m": ["a"], "n": ["b"]})
    results = cka.update({"m": [x], "n": [y]}).compute()
    with pytest.raises(KeyError, match=re.escape("take ('m', 'n') and transpose it")):
        results["n", "m"]
    with pytest.raises(KeyError, match="ask for a pair of m, n"):
        results["m"]
    assert repr(results) == "CKAResults(m ~ m, m ~ n, n ~ n)"
    assert repr(results["m", "n"]).startswith("CKAResult(1 x 1 layers, 8 examples in 1 batches")


def test_a_refused_batch_leaves_the_sums_as_they_were():
    cka, same = filled(), filled()
    for bad in (without("tensors", "sums.0"), without("counts", "numbered"), cut_short()):
        with pytest.raises(ValueError, match="cannot load"):
            cka.load_state_dict(bad)
    with pytest.raises(TypeError):
        cka.update([x.int()])
    with pytest.raises(ValueError, match="cannot merge"):
        cka.merge(filled(weighting="equal"))
    assert cka.n_batches == same.n_batches
    assert cka.compute().hsic_aa == same.compute().hsic_aa
    fresh = MinibatchCKA(["a"])
    with pytest.raises(ValueError, match="no activations"):
        fresh.add({"a": fresh.stack("a", 8)}, index=3)
    fresh.update([x])  # numbered by arrival: the refused index left no trace


# What the binding refuses, whoever calls it: memory would be read or written wrongly.
k = torch.empty(8, 8, dtype=torch.float64)
stats = torch.empty(3, dtype=torch.float64)
work = torch.empty(1 << 20, dtype=torch.uint8)
packed, rows, sums = (torch.empty(m, dtype=torch.float64) for m in (28, 8, 8))
summary = torch.empty(5, dtype=torch.float64)
a, out = torch.randn(3, 6, dtype=torch.float64), torch.empty(3, 3, dtype=torch.float64)


shared = torch.empty(8, 8, dtype=torch.float64)


def native_gram(x=x, k=k, stats=stats, work=work, operand="float32", threads=1):
    native.module.gram(x, k, stats, work, operand, threads)


def native_finish(k=k, stats=stats, packed=packed, rows=rows, sums=sums, summary=summary):
    native.module.finish(k, stats, packed, rows, sums, summary, False)


def native_gram_finish(layers=(x,), operands=("float32",), packed=packed, work=work, threads=1):
    out = (packed[None], rows[None], sums[None], summary[None])
    native.module.gram_finish(layers, operands, *out, work, False, threads)


def native_hsic(a=a, b=a, out=out, threads=1):
    native.module.hsic_pairs(a, b, out, threads)


def fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.empty(8, 5)


NATIVE_REFUSALS = [
    (
        lambda: native_gram(x=x.numpy()),
        TypeError,
        "`x` must be a torch.Tensor, but is a numpy.ndarray",
    ),
    (
        lambda: native_gram(x=x.int()),
        TypeError,
        "`x` must be float16, bfloat16, float32 or float64",
    ),
    (lambda: native_gram(x=x[0]), ValueError, "`x` must have 2 dimensions, but has 1"),
    (lambda: native_gram(x=x.T), ValueError, r"`x` must be dense along its last dimension"),
    (
        lambda: native_gram(
            x=torch.frombuffer(bytearray(161), dtype=torch.float32, offset=1).view(8, 5)
        ),
        ValueError,
        "`x` does not begin at a multiple of its item size",
    ),
    (lambda: native_gram(x=x[:, :0]), ValueError, "`x` has no rows or no features"),
    (lambda: native_gram(x=x.to("meta")), RuntimeError, "`x` holds no plain memory"),
    (lambda: native_gram(x=x.to_sparse()), RuntimeError, "`x` holds no plain memory"),
    (lambda: native_gram(x=fake()), RuntimeError, "`x` (has no data|holds no plain memory)"),
    (lambda: native_gram(k=k[:7]), ValueError, r"`k` must have shape \[8, 8\], but has \[7, 8\]"),
    (lambda: native_gram(k=k.float()), TypeError, "`k` must be float64"),
    (
        lambda: native_gram(k=k[:1].expand(8, 8)),
        ValueError,
        "`k` is written to, but its rows overlap",
    ),
    (lambda: native_gram(x=k[:, :5]), ValueError, "`k` is written to, but shares memory with `x`"),
    (lambda: native_gram(stats=k.view(-1)[:3]), ValueError, "shares memory with `stats`"),
    (lambda: native_gram(work=work[:100]), ValueError, "`workspace` must hold .* bytes"),
    (lambda: native_gram(threads=0), ValueError, "`threads` must be at least 1, but is 0"),
    (
        lambda: native_gram(operand="int8"),
        ValueError,
        "`operand` must be float16, bfloat16 or float",
    ),
    (
        lambda: native_finish(k=k[:3, :3]),
        ValueError,
        "there must be at least 4 rows, but there are 3",
    ),
    (
        lambda: native_finish(k=k[:, :7]),
        ValueError,
        r"`k` must have shape \[8, 8\], but has \[8, 7\]",
    ),
    (lambda: native_finish(packed=packed[:27]), ValueError, r"`packed` must have shape \[28\]"),
    (lambda: native_finish(packed=k.view(-1)[:28]), ValueError, "shares memory with `k`"),
    (lambda: native_finish(sums=rows), ValueError, "shares memory with `row_sums`"),
    (lambda: native_gram_finish(layers=(), operands=()), ValueError, "there are no layers"),
    (lambda: native_gram_finish(operands=()), ValueError, "`operands` must name one for each"),
    (
        lambda: native_gram_finish(layers=(x, x[:7]), operands=["float32"] * 2),
        ValueError,
        "`x` must",
    ),
    (lambda: native_gram_finish(packed=packed[:27]), ValueError, r"must have shape \[1, 28\]"),
    (lambda: native_gram_finish(packed=packed.float()), TypeError, "`packed` must be float64"),
    (lambda: native_gram_finish(layers=(packed.view(4, 7),)), ValueError, "`packed` must have"),
    (
        lambda: native_gram_finish(layers=(shared,), packed=shared.view(-1)[:28]),
        ValueError,
        "shares memory with `x`",
    ),
    (lambda: native_gram_finish(work=work[:100]), ValueError, "`workspace` must hold .* bytes"),
    (lambda: native_gram_finish(threads=0), ValueError, "`threads` must be at least 1, but is 0"),
    (
        lambda: native_hsic(out=a[:, :3]),
        ValueError,
        "`out` is written to, but shares memory with `a`",
    ),
    (
        lambda: native_hsic(b=a[:, :5]),
        ValueError,
        r"`b` must have shape \[3, 6\], but has \[3, 5\]",
    ),
    (lambda: native_hsic(a=a.float()), TypeError, "`a` must be float64"),
]


@pytest.mark.parametrize(
    ("call", "kind", "text"), NATIVE_REFUSALS, ids=[row[2] for row in NATIVE_REFUSALS]
)
def test_the_binding_refuses_what_it_could_not_read(call, kind, text):
    with pytest.raises(kind, match=text) as caught:
        call()
    assert len(str(caught.value)) < 200
