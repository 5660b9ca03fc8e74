"""What a skilled user would write in torch: no subtraction of a mean row, float32 throughout."""

import torch


def compare(model_a, model_b, batches, names_a, names_b):
    """CKA of all pairs of layers: one `x @ x.T` a layer in its hook, one product for all pairs."""
    sums = None
    for x in batches:
        a = centred(hooked(model_a, x, names_a, gram))
        b = centred(hooked(model_b, x, names_b, gram))
        terms = pairs(a, b)
        sums = terms if sums is None else [s + t for s, t in zip(sums, terms, strict=True)]
    return ratio(*sums).double().numpy()


def hooked(model, x, names, reduce):
    """What `reduce` makes of the output of each layer, in one forward pass."""
    taken = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, i, y: taken.append(reduce(y)))
        for name in names
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return taken


def gram(output):
    rows = output.flatten(1).float()
    return rows @ rows.T


def centred(taken):
    """U-centred [L, n * n]."""
    k = torch.stack(taken)
    n = k.shape[1]
    k.diagonal(dim1=1, dim2=2).zero_()
    rows = k.sum(2, keepdim=True) / (n - 2)
    k = k - rows - rows.mT + rows.sum(1, keepdim=True) / (n - 1)
    k.diagonal(dim1=1, dim2=2).zero_()
    return k.flatten(1)


def pairs(a, b):
    """<a_i, b_j> of all pairs, and of each with itself."""
    return a @ b.T, (a * a).sum(1), (b * b).sum(1)


def ratio(ab, aa, bb):
    return ab / (aa[:, None] * bb).sqrt()


def use_compiler():
    """From here on `gram`, `centred` and `pairs` are what torch.compile makes of them."""
    global gram, centred, pairs
    # Each rank and layout of an activation takes a version; beyond the limit torch would silently
    # run what it was given.
    torch._dynamo.config.recompile_limit = 64
    gram, centred, pairs = (torch.compile(f, dynamic=True) for f in (gram, centred, pairs))
