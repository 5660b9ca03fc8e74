"""The operations within compiled networks: one graph, and the same numbers."""

import pytest
import torch
from tolerance import REORDERED, assert_close
from torch import nn

from fastcka.kernels import Finished, finish, gram, gram_finish, hsic_pairs, packed_length

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's compiler


def operators():
    x, y = torch.randn(8, 30), torch.randn(8, 5, 3)
    k, stats = gram(x)
    a = torch.randn(3, 20, dtype=torch.float64)
    lower = k.tril()
    yield "gram", (x, None, None)
    yield "gram", (y, "fp16", "torch")
    yield "finish", (lower, stats, "unbiased", None)
    yield "finish", (lower, stats, "biased", "torch")
    yield "gram_finish", ([x, y], "unbiased", None, None)
    yield "hsic_pairs", (a, None, None)
    yield "hsic_pairs", (a, a[:2].clone(), "torch")


@pytest.mark.parametrize("number", range(7))
def test_operators_keep_the_rules_of_torch(number):
    name, arguments = list(operators())[number]
    # What lies above the diagonal of a Gram matrix is not defined, so values are compared below.
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.fastcka, name).default, arguments, test_utils=tests)


def test_operators_stay_out_of_graphs_whose_memory_is_used_again():
    for name in ("gram", "finish", "gram_finish", "hsic_pairs"):
        assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.fastcka, name).default.tags


class Tapped(nn.Module):
    """A network whose hooks reduce what its layers return."""

    def __init__(self, backend=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 6))
        self.seen = [None, None]
        self.backend = backend
        for place, layer in enumerate((self.body[0], self.body[2])):
            layer.register_forward_hook(self._hook(place))

    def _hook(self, place):
        def hook(module, args, output):
            self.seen[place] = output

        return hook

    def forward(self, x):
        self.body(x)
        done = gram_finish(self.seen, backend=self.backend)
        k = gram(self.seen[0], operand="fp32").k.tril()
        return hsic_pairs(done.packed), done.summary, k


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@torch.no_grad()
def test_a_compiled_network_with_hooks_is_one_graph_with_the_same_numbers(compiler):
    torch._dynamo.reset()
    net, x = Tapped().eval(), torch.randn(16, 12)
    expected = net(x)
    found = torch.compile(net, fullgraph=True, backend=compiler)(x)
    for one, other in zip(found, expected, strict=True):
        assert_close(one / other.abs().max(), other / other.abs().max(), REORDERED)


@torch.no_grad()
def test_a_compiled_function_writes_where_it_is_asked_to():
    torch._dynamo.reset()
    x = torch.randn(9, 40)
    into = Finished(*(torch.zeros(size).double() for size in (packed_length(9, "biased"), 9, 9, 5)))

    def function(x):
        return finish(gram(x), estimator="biased", into=into).packed.sum()

    torch.compile(function, fullgraph=True, backend="eager")(x)
    for one, other in zip(into, finish(gram(x), estimator="biased"), strict=True):
        assert torch.equal(one, other)


def test_a_wrong_argument_is_the_same_sentence_when_compiled():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: gram(x).stats, backend="eager")
    with pytest.raises(Exception, match="must be float16, bfloat16, float32 or float64"):
        compiled(torch.arange(8).reshape(4, 2))
