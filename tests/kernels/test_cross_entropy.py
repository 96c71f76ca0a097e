import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar.kernels import (
    cross_entropy,
    cross_entropy_by_image,
    cross_entropy_by_image_reference,
    cross_entropy_reference,
    cross_entropy_step,
)


def run(function, logits, labels, smoothing, scale, upstream=1.0):
    """Return the loss, the count, and the gradient of `upstream * loss`."""
    logits = logits.detach().requires_grad_()
    loss, correct = function(logits, labels, smoothing, scale)
    (loss * upstream).backward()
    return loss, correct, logits.grad


def torchs_own(logits, labels, smoothing, scale):
    scaled = logits * scale
    loss = F.cross_entropy(scaled, labels, reduction="sum", label_smoothing=smoothing)
    return loss, (scaled.argmax(1) == labels).sum()


@pytest.mark.parametrize("function", [cross_entropy, cross_entropy_reference], ids=["operator", "specification"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("batch", "classes"), [(1, 10), (37, 10), (300, 10), (5, 100)])
def test_loss_count_and_gradient_are_torchs(path, device, assert_close, function, dtype, batch, classes):
    logits = (torch.randn(batch, classes, device=device) * 3).to(dtype)
    labels = torch.randint(classes, (batch,), device=device)
    loss, correct, gradient = run(function, logits, labels, 0.2, 0.125, upstream=3.0)
    expected = run(torchs_own, logits.double(), labels, 0.2, 0.125, upstream=3.0)
    assert loss.dtype == torch.float32 and correct.dtype == torch.int64 and gradient.dtype == dtype
    assert_close(loss, expected[0], torch.float32)
    assert correct == expected[1]
    assert_close(gradient, expected[2], dtype)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 40),
    classes=st.integers(1, 20),
    smoothing=st.floats(0, 1),
    scale=st.floats(0.01, 4),
    seed=st.integers(0, 99),
)
def test_any_sizes(path, device, assert_close, batch, classes, smoothing, scale, seed):
    torch.manual_seed(seed)
    logits, labels = torch.randn(batch, classes, device=device), torch.randint(classes, (batch,), device=device)
    loss, correct, gradient = run(cross_entropy, logits, labels, smoothing, scale)
    expected = run(torchs_own, logits.double(), labels, smoothing, scale)
    assert abs(loss - expected[0]) < 1e-5 * batch
    assert correct == expected[1]
    assert (gradient - expected[2]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "function", [cross_entropy_by_image, cross_entropy_by_image_reference], ids=["operator", "specification"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("batch", "classes", "smoothing"), [(1, 10, 0.0), (37, 10, 0.2), (5, 100, 0.1)])
def test_the_loss_of_each_image_is_torchs(path, device, assert_close, function, dtype, batch, classes, smoothing):
    logits = (torch.randn(batch, classes, device=device) * 3).to(dtype).requires_grad_()
    labels = torch.randint(classes, (batch,), device=device)
    loss, correct, losses = function(logits, labels, smoothing, 0.125)
    expected = F.cross_entropy(logits.double() * 0.125, labels, reduction="none", label_smoothing=smoothing)
    wide = torch.promote_types(dtype, torch.float32)
    assert losses.shape == (batch,) and losses.dtype == wide and not losses.requires_grad
    assert_close(losses, expected, wide)
    assert_close(loss, expected.sum(), wide)
    same = cross_entropy(logits, labels, smoothing, 0.125)
    assert_close(same[0], loss, wide)
    assert same[1] == correct


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("by_image", [True, False])
def test_a_step_notes_the_loss_and_gives_its_gradient(path, device, assert_close, dtype, by_image):
    batch, images = 7, 30
    labels, indices = torch.randint(10, (images,), device=device), torch.randperm(images, device=device)[: 3 * batch]
    position, correct = (torch.tensor([number], device=device) for number in (1, 5))
    losses = torch.full((3,), torch.nan, device=device)
    image_losses = torch.full((images,), torch.inf, device=device) if by_image else None
    right = 5
    for number in (1, 2):
        logits, chosen = (torch.randn(batch, 10, device=device) * 3).to(dtype), indices[number * batch :][:batch]
        gradient = cross_entropy_step(
            logits, labels, indices, position, losses, correct, image_losses, smoothing=0.2, scale=0.125
        )
        loss, count, expected = run(torchs_own, logits.double(), labels[chosen], 0.2, 0.125)
        right += count
        assert gradient.dtype == dtype and position.item() == number + 1 and correct.item() == right
        assert_close(gradient, expected, dtype)
        assert_close(losses[number], loss, torch.float32)
        if by_image:
            each = cross_entropy_by_image(logits, labels[chosen], 0.2, 0.125)[2]
            torch.testing.assert_close(image_losses[chosen], each.float())
    assert losses[0].isnan()
    if by_image:
        assert image_losses.isinf().sum() == images - 2 * batch


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("indices", torch.zeros(4)),
        ("position", torch.zeros(2, dtype=torch.int64)),
        ("losses", torch.zeros(3, dtype=torch.float64)),
        ("correct", torch.zeros(())),
        ("image_losses", torch.zeros(4)),
    ],
)
def test_what_does_not_fit_a_step_is_refused_by_name(name, wrong):
    whole = torch.zeros(4, dtype=torch.int64)
    given = {"indices": whole, "position": whole[:1], "losses": torch.zeros(2), "correct": whole[:1].clone()}
    given |= {"labels": torch.zeros(9, dtype=torch.int64), "image_losses": torch.zeros(9), name: wrong}
    with pytest.raises(ValueError, match=rf"^{name} is .*; allowed: contiguous "):
        cross_entropy_step(torch.zeros(2, 3), **given)


def test_of_equal_logits_the_first_is_the_answer(path, device):
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, 1.0, 1.0]], device=device)
    assert cross_entropy(logits, torch.tensor([1, 0, 2], device=device))[1] == 2


def test_strided_logits(path, device):
    wide, labels = torch.randn(6, 8, device=device), torch.randint(4, (3,), device=device)
    assert torch.equal(cross_entropy(wide[::2, ::2], labels)[0], cross_entropy(wide[::2, ::2].clone(), labels)[0])


def test_huge_logits_stay_finite(path, device):
    logits = torch.tensor([[3e4, -3e4, 0.0]], device=device)
    loss, correct, gradient = run(cross_entropy, logits, torch.tensor([1], device=device), 0.0, 1.0)
    assert loss == 6e4 and correct == 0 and gradient.tolist() == [[1.0, -1.0, 0.0]]


@pytest.mark.parametrize("function", [cross_entropy, cross_entropy_reference], ids=["operator", "specification"])
@pytest.mark.parametrize("smoothing", [0.0, 0.25])
@pytest.mark.parametrize("label", [0, 2], ids=["kept", "masked"])
def test_a_masked_class_is_torchs(path, device, function, smoothing, label):
    logits, labels = torch.tensor([[1.0, 2.0, -torch.inf]] * 2, device=device), torch.tensor([label, 1], device=device)
    mine, expected = (run(loss, logits, labels, smoothing, 0.5) for loss in (function, torchs_own))
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, other)
    by_image = cross_entropy_by_image(logits, labels, smoothing, 0.5)[2]
    each = F.cross_entropy(logits * 0.5, labels, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(by_image, each)


def test_a_masked_class_in_a_step_is_torchs(path, device):
    logits, labels = torch.tensor([[1.0, 2.0, -torch.inf]], device=device), torch.tensor([0], device=device)
    position, correct = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
    losses, image_losses = (torch.zeros(1, device=device) for _ in range(2))
    gradient = cross_entropy_step(logits, labels, position.clone(), position, losses, correct, image_losses)
    loss, _, expected = run(torchs_own, logits, labels, 0.0, 1.0)
    for mine, torchs in ((losses[0], loss), (image_losses[0], loss), (gradient, expected)):
        torch.testing.assert_close(mine, torchs)


@pytest.mark.parametrize("function", [cross_entropy, cross_entropy_reference], ids=["operator", "specification"])
def test_no_images_have_a_loss_of_0(path, device, function):
    logits, labels = torch.zeros(0, 3, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    loss, correct, gradient = run(function, logits, labels, 0.1, 1.0)
    assert loss == 0 and correct == 0 and gradient.shape == (0, 3)


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, float("nan")])
def test_smoothing_outside_0_to_1_is_refused(smoothing):
    number = torch.zeros(1, dtype=torch.int64)
    for call in (
        lambda: cross_entropy(torch.zeros(1, 3), number, smoothing),
        lambda: cross_entropy_step(
            *(torch.zeros(1, 3), number, number, number, torch.zeros(1), number), smoothing=smoothing
        ),
    ):
        with pytest.raises(ValueError, match=rf"^smoothing is {smoothing}; allowed: 0 to 1$"):
            call()


def test_a_nan_logit_makes_the_loss_nan(path, device):
    logits = torch.zeros(4, 3, device=device)
    logits[2, 1] = float("nan")
    assert cross_entropy(logits, torch.zeros(4, dtype=torch.int64, device=device))[0].isnan()


def test_a_scaled_loss_saves_small_float16_gradients(path, device, assert_close):
    logits = torch.tensor([[0.0, -13.0, -14.0, 1.0]], dtype=torch.float16, device=device)
    labels = torch.tensor([3], device=device)
    gradient = run(cross_entropy, logits, labels, 0.0, 0.125, upstream=1024.0)[2]
    assert_close(gradient, run(torchs_own, logits.double(), labels, 0.0, 0.125, upstream=1024.0)[2], torch.float16)


@pytest.mark.parametrize("function", [cross_entropy, cross_entropy_reference], ids=["operator", "specification"])
def test_gradients_in_float64_are_difference_quotients(monkeypatch, function):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    logits, labels = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 3, 3])
    assert torch.autograd.gradcheck(lambda logits: function(logits, labels, 0.2, 0.5)[0], logits)
    assert torch.autograd.gradgradcheck(lambda logits: function(logits, labels, 0.2, 0.5)[0], logits)


@pytest.mark.parametrize(
    ("logits", "labels", "error"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), ValueError),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), ValueError),
        (torch.zeros(3, 2), torch.zeros(3), TypeError),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), TypeError),
    ],
)
def test_what_does_not_fit_is_refused(logits, labels, error):
    with pytest.raises(error, match=r"logits .*; allowed: "):
        cross_entropy(logits, labels)


def test_are_well_formed_operators(monkeypatch):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    logits = torch.randn(5, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.fastcifar.cross_entropy.default, (logits, torch.tensor([0, 1, 2, 3, 3]), 0.1, 0.5))
    arguments = (torch.tensor(2.0), torch.randn(5, 4), torch.bfloat16)
    torch.library.opcheck(torch.ops.fastcifar.cross_entropy_backward.default, arguments)
    labels, number = torch.randint(4, (9,)), torch.zeros(1, dtype=torch.int64)
    step = (logits.detach(), labels, torch.arange(9), number, torch.zeros(2), number.clone(), torch.zeros(9), 0.1, 0.5)
    torch.library.opcheck(torch.ops.fastcifar.cross_entropy_step.default, step)


def test_compiles_into_one_graph(path, device):
    logits, labels = torch.randn(5, 4, device=device), torch.tensor([0, 1, 2, 3, 3], device=device)
    compiled = torch.compile(lambda *tensors: cross_entropy(*tensors), fullgraph=True, backend="aot_eager")
    results = [run(function, logits, labels, 0.1, 0.5) for function in (compiled, cross_entropy)]
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
def test_a_captured_graph_replays_with_new_logits(path):
    logits = torch.randn(37, 10, device="cuda", requires_grad=True)
    labels, fresh = torch.randint(10, (37,), device="cuda"), torch.randn(37, 10, device="cuda")
    torch.autograd.grad(cross_entropy(logits, labels, 0.2)[0], logits)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, correct = cross_entropy(logits, labels, 0.2)
        (gradient,) = torch.autograd.grad(loss, logits)
    logits.data.copy_(fresh)
    graph.replay()
    expected = run(cross_entropy, fresh, labels, 0.2, 1.0)
    assert all(torch.equal(*pair) for pair in zip((loss, correct, gradient), expected, strict=True))
