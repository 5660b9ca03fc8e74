"""Other packages that take two models and a loader: the same layers, one pass over one batch.

Each function prepares a comparison and returns it as a call without arguments; layers are named in
the order in which they run. A peer that is not installed raises ImportError.
"""

from functools import partial

from torch.utils.data import DataLoader, TensorDataset


def torch_cka(a, b, x, names_a, names_b):
    from torch_cka import CKA

    cka = CKA(a, b, "a", "b", model1_layers=names_a, model2_layers=names_b)
    loader = one_batch(x)

    def call():
        cka.compare(loader, loader)
        # Or the activations would stay until the next call, beside those of other variants.
        cka.model1_features, cka.model2_features = {}, {}
        return cka.export()["CKA"]

    return call


def pytorch_cka(a, b, x, names_a, names_b):
    from cka import compute_cka

    options = {"layers": names_a, "model2_layers": names_b, "device": "cpu", "progress": False}
    comparison = partial(compute_cka, a, b, one_batch(x), **options)
    return lambda: comparison()[0]


def ckatorch(a, b, x, names_a, names_b):
    from ckatorch import CKA

    # By default it reads the data ten times.
    return partial(CKA(a, b, names_a, names_b, "a", "b"), one_batch(x), epochs=1)


def cka_pytorch(a, b, x, names_a, names_b):
    from cka_pytorch import CKACalculator

    loader = one_batch(x, x.new_zeros(len(x)))  # it takes pairs alone

    def call():
        # A second run of one calculator would add to the sums of the first.
        calculator = CKACalculator(a, b, names_a, names_b, verbose=False)
        cka = calculator.calculate_cka_matrix(loader, num_epochs=1)  # ten by default
        calculator.reset()
        return cka

    return call


def one_batch(*tensors):
    return DataLoader(TensorDataset(*tensors), batch_size=len(tensors[0]))


# By their names on PyPI.
PEERS = {
    "torch_cka": torch_cka,
    "pytorch-cka": pytorch_cka,
    "ckatorch": ckatorch,
    "cka-pytorch": cka_pytorch,
}
