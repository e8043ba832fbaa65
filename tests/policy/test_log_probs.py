"""Log-probabilities of responses: values and every gradient against all logits in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fssa_bayes.policy.log_probs import response_log_prob, token_log_prob

R, T, H, V = 3, 7, 5, 23
CHUNKS = [1, 6, 20, 64, 100, 10**6]  # Not even a token of a row at a time, up to all at once.


def full(hidden: Tensor, layer: nn.Module, targets: Tensor, mask: Tensor, softcap=None) -> Tensor:
    """Scores by all logits at once, as everybody writes it."""
    logits = layer(hidden)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    token = logits.log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return token.masked_fill(~mask, 0.0).sum(-1)


def problem(bias: bool = True, dtype: torch.dtype = torch.float64) -> tuple:
    layer = nn.Linear(H, V, bias=bias).to(dtype)
    hidden = 2 * torch.randn(R, T, H, dtype=dtype)
    mask = torch.rand(R, T) < 0.6
    mask[1] = False
    mask[0, 0] = mask[2, -1] = True
    targets = torch.randint(V, (R, T))
    targets[0, 0], targets[2, -1] = 0, V - 1
    return hidden, layer, targets.masked_fill(~mask, -100), mask


class Wrapped(nn.Module):
    """Adds an update of rank one, as an adapter of the output layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.update = nn.Parameter(torch.randn(H, dtype=layer.weight.dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        direction = torch.linspace(-1, 1, V, dtype=hidden.dtype)
        return self.layer(hidden) + (hidden @ self.update)[..., None] * direction


@pytest.mark.parametrize("trained", ["hidden", "weight", "hidden and weight", "adapter"])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_value_and_gradients_are_those_of_all_logits(
    trained: str, softcap: float | None, chunk_size: int
) -> None:
    hidden, layer, targets, mask = problem(bias="weight" in trained)
    hidden.requires_grad_("hidden" in trained)
    if trained == "adapter":
        layer = Wrapped(layer)
    layer.requires_grad_(trained != "hidden")
    inputs = [t for t in (hidden, *layer.parameters()) if t.requires_grad]
    expected = full(hidden, layer, targets, mask, softcap)
    found = response_log_prob(hidden, layer, targets, mask, softcap=softcap, chunk_size=chunk_size)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found[1] == 0
    grad = torch.randn(R, dtype=torch.float64)
    for ours, true in zip(
        torch.autograd.grad(found, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        assert true.abs().max() > 1e-2
        torch.testing.assert_close(ours, true, rtol=1e-11, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck(frozen: bool, softcap: float | None) -> None:
    hidden, layer, targets, mask = problem()
    layer.requires_grad_(not frozen)

    def score(hidden: Tensor, *_: Tensor) -> Tensor:
        return token_log_prob(hidden, layer, targets, mask, softcap=softcap, chunk_size=10)

    inputs = (hidden.requires_grad_(), *(() if frozen else layer.parameters()))
    assert torch.autograd.gradcheck(score, inputs)


def test_tokens_sum_to_the_response_and_are_zero_elsewhere() -> None:
    hidden, layer, targets, mask = problem()
    tokens = token_log_prob(hidden, layer, targets, mask, chunk_size=9)
    assert torch.equal(tokens != 0, mask)
    found = response_log_prob(hidden, layer, targets, mask, chunk_size=9)
    assert torch.equal(tokens.sum(-1), found)


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_gradients_need_not_be_asked_for_to_get_the_same_value(chunk_size: int) -> None:
    """Bit for bit: a cached reference and a live policy go different ways through the chunks."""
    hidden, layer, targets, mask = problem(dtype=torch.float32)
    with torch.no_grad():
        cached = response_log_prob(hidden, layer, targets, mask, chunk_size=chunk_size)
    both = response_log_prob(
        hidden.clone().requires_grad_(), layer, targets, mask, chunk_size=chunk_size
    )
    layer.requires_grad_(False)
    frozen = response_log_prob(
        hidden.clone().requires_grad_(), layer, targets, mask, chunk_size=chunk_size
    )
    assert torch.equal(cached, both)
    assert torch.equal(cached, frozen)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_large_logits(scale: float, frozen: bool) -> None:
    """With logits of ±1e4 a token scores its distance from the likeliest, with its gradient."""
    layer = nn.Linear(1, 4, bias=False).requires_grad_(not frozen)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [0.5], [-1.0], [0.998]]))
    hidden = torch.full((1, 4, 1), scale, requires_grad=True)
    targets, mask = torch.arange(4)[None], torch.ones(1, 4, dtype=torch.bool)
    found = token_log_prob(hidden, layer, targets, mask, chunk_size=2)
    best = max(scale * w for w in layer.weight.flatten().tolist())
    expected = layer.weight.flatten().detach() * scale - best
    torch.testing.assert_close(found[0].detach(), expected, rtol=1e-4, atol=1e-7)
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    top = layer.weight.flatten()[expected.argmax()]
    slopes = (layer.weight.flatten() - top).detach()
    torch.testing.assert_close(gradient.flatten(), slopes, rtol=1e-4, atol=1e-7)


def test_close_large_logits_keep_their_digits() -> None:
    """Logits of 8192 and 8191.5, exact in float32, score as 0 and −½ do."""
    layer = nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0], [1 - 2**-14]])
    hidden, targets = torch.full((1, 2, 1), 8192.0), torch.tensor([[0, 1]])
    found = token_log_prob(hidden, layer, targets, torch.ones(1, 2, dtype=torch.bool))
    expected = torch.tensor([[0.0, -0.5]]).log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_what_all_logits_share_has_no_part() -> None:
    hidden, layer, targets, mask = problem()
    before = response_log_prob(hidden, layer, targets, mask, chunk_size=20)
    with torch.no_grad():
        layer.bias.sub_(1e4)
    after = response_log_prob(hidden, layer, targets, mask, chunk_size=20)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_sums_in_float32(dtype: torch.dtype, frozen: bool) -> None:
    """The factors are rounded, nothing else is: float64 from the same factors agrees."""
    hidden, layer, targets, mask = problem(dtype=dtype)
    layer.requires_grad_(not frozen)
    hidden = (8 * hidden).requires_grad_()
    found = response_log_prob(hidden, layer, targets, mask, chunk_size=30)
    assert found.dtype == torch.float32
    double, head = hidden.detach().double().requires_grad_(), nn.Linear(H, V).double()
    head.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    expected = full(double, head, targets, mask)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    (ours,) = torch.autograd.grad(found.sum(), hidden)
    (true,) = torch.autograd.grad(expected.sum(), double)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), true, rtol=1e-2, atol=1e-3)  # One rounding.


def test_autocast_rounds_the_factors_alone() -> None:
    hidden, layer, targets, mask = problem(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = response_log_prob(hidden, layer, targets, mask)
    rounded = nn.Linear(H, V)
    rounded.weight.data = layer.weight.data.bfloat16().float()
    rounded.bias.data = layer.bias.data
    expected = full(hidden.bfloat16().float(), rounded, targets, mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [4, 1000])
def test_nan_poisons_its_row_alone(chunk_size: int) -> None:
    hidden, layer, targets, mask = problem()
    clean = response_log_prob(hidden, layer, targets, mask, chunk_size=chunk_size)
    hidden[0, 0, 2] = torch.nan
    hidden[2][~mask[2]] = torch.nan
    found = response_log_prob(hidden, layer, targets, mask, chunk_size=chunk_size)
    assert found[0].isnan()
    assert torch.equal(found[1:], clean[1:])


def test_excluded_tokens_have_no_part() -> None:
    """A bias of −∞ excludes tokens, as in vocabularies padded to a round size."""
    hidden, layer, targets, mask = problem()
    wide = nn.Linear(H, V + 9).double().requires_grad_(False)
    wide.weight[9:], wide.bias[9:] = layer.weight.detach(), layer.bias.detach()
    wide.bias[:9] = -torch.inf
    hidden.requires_grad_()
    found = response_log_prob(hidden, wide, targets + 9, mask, chunk_size=12)
    expected = full(hidden, layer, targets, mask)
    torch.testing.assert_close(found, expected)
    (ours,), (true,) = (torch.autograd.grad(x.sum(), hidden) for x in (found, expected))
    torch.testing.assert_close(ours, true)


@pytest.mark.parametrize("wrap", [Wrapped, lambda layer: layer])
def test_no_tokens_at_all(wrap) -> None:
    hidden, layer, targets, mask = problem()
    hidden.requires_grad_()
    found = response_log_prob(hidden, wrap(layer), targets, torch.zeros_like(mask))
    assert torch.equal(found, torch.zeros(R, dtype=torch.float64))
    assert torch.equal(torch.autograd.grad(found.sum(), hidden)[0], torch.zeros_like(hidden))


def test_never_holds_positions_by_vocabulary() -> None:
    """No tensor made on the way, forward or backward, is larger than a chunk."""
    layer = nn.Linear(8, 5000, bias=False).requires_grad_(False)
    hidden = torch.randn(4, 50, 8, requires_grad=True)
    targets, mask = torch.randint(5000, (4, 50)), torch.ones(4, 50, dtype=torch.bool)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in [result] if isinstance(t, Tensor))
            return result

    with Watch():
        response_log_prob(hidden, layer, targets, mask, chunk_size=2000).sum().backward()
    assert 1900 < max(sizes) <= 2000


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(R, T)}, ValueError, r"hidden must have shape \(R, T, H\)"),
        ({"hidden": torch.zeros(R, T, H).long()}, TypeError, "hidden must be floating"),
        ({"hidden": torch.zeros(R, T, H + 1)}, ValueError, "output layer's width 5, got 6"),
        ({"targets": torch.zeros(R, T)}, TypeError, "targets must be torch.int64"),
        (
            {"targets": torch.zeros(R, 1).long()},
            ValueError,
            r"targets must have the shape \(3, 7\)",
        ),
        ({"targets": torch.full((R, T), V)}, ValueError, "vocabulary of 23 tokens, got 23"),
        ({"targets": torch.full((R, T), -1)}, ValueError, "vocabulary of 23 tokens, got -1"),
        ({"mask": torch.ones(R, T)}, TypeError, "mask must be torch.bool"),
        ({"softcap": 0.0}, ValueError, "softcap must be positive"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    hidden, layer, targets, mask = problem(dtype=torch.float32)
    arguments = {"hidden": hidden, "output_layer": layer, "targets": targets, "mask": mask}
    with pytest.raises(error, match=message):
        response_log_prob(**(arguments | change))
