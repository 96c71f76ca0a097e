"""`GhostBatchNorm` under ordinary torch use, against `torch.nn.BatchNorm2d` and torch's functions."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, export
from torch.func import functional_call, grad, hessian, jvp, replace_all_batch_norm_modules_, vmap
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint

from fastcifar import GhostBatchNorm

ACTIVATIONS = {"celu": F.celu, "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "none": lambda x: x}
every_form = pytest.mark.parametrize(("activation", "pool"), [(a, p) for a in ACTIVATIONS for p in (False, True)])
HALVES = torch.float16, torch.bfloat16
X = [4, 3, 4, 6]


def make(train=False, cls=GhostBatchNorm, **settings):
    """Return a norm with parameters and statistics that are not those of a fresh one, the same for any class."""
    torch.manual_seed(1)
    norm = cls(3, **settings).train(train)
    with torch.no_grad():
        norm.bias.normal_()
        norm.running_mean.normal_()
        for positive in (norm.weight, norm.running_var):
            positive.uniform_(0.5, 2)
    return norm


def plain(norm, x, residual=None):
    """Return what the norm, without ghost batches, computes, from torch's own functions; its statistics stay."""
    x = F.max_pool2d(x, 2) if norm.pool else x
    statistics = (None, None) if norm.training else (norm.running_mean, norm.running_var)
    out = F.batch_norm(x, *statistics, norm.weight, norm.bias, norm.training, 0, norm.eps)
    out = ACTIVATIONS[norm.activation](out)
    return out if residual is None else out + residual


def gradients(out, *inputs, **options):
    weights = torch.linspace(-1, 2, out.numel()).view_as(out).to(out.dtype)
    return torch.autograd.grad((out * weights).sum(), inputs, **options)


@every_form
def test_in_evaluation_mode_gradients_of_two_orders_are_torchs(activation, pool):
    norm = make(activation=activation, pool=pool).double()
    norm.running_mean.requires_grad_()  # gets none, as in torch
    x = torch.randn(X).double().requires_grad_()
    residual = torch.randn_like(F.max_pool2d(x, 2) if pool else x).requires_grad_()
    inputs = x, residual, norm.weight, norm.bias
    out = norm(x, residual)
    statistic, norm.running_mean = norm.running_mean, norm.running_mean.detach()
    found, wanted = (gradients(each, *inputs, create_graph=True) for each in (out, plain(norm, x, residual)))
    torch.testing.assert_close(found, wanted)
    sums = [sum(gradient.square().sum() for gradient in each) for each in (found, wanted)]
    second = [torch.autograd.grad(each, inputs, allow_unused=True, materialize_grads=True) for each in sums]
    torch.testing.assert_close(*second)
    assert statistic.grad is None and norm.weight.grad is None


def test_without_a_wish_for_gradients_the_fused_operator_runs():
    norm, x = make(activation="gelu"), torch.randn(X)
    with torch.no_grad():
        assert not norm(x).requires_grad
    assert norm(x).grad_fn is not None
    assert norm.requires_grad_(False)(x).grad_fn is None
    torch.testing.assert_close(norm(x), plain(norm, x))


@every_form
def test_in_training_a_second_derivative_is_an_error(activation, pool):
    norm, x = make(True, activation=activation, pool=pool).requires_grad_(False), torch.randn(X, requires_grad=True)
    with pytest.raises(RuntimeError, match="fastcifar::norm_act_pool has a first derivative alone"):
        torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"), [*((dtype, dtype) for dtype in (*HALVES, torch.float64)), *((torch.float32, d) for d in HALVES)]
)
def test_dtypes_are_those_of_torchs_batch_norm(ours, theirs, train):
    """Parameters and statistics in `ours`, images in `theirs`."""
    norms = [make(train, cls).to(ours) for cls in (GhostBatchNorm, nn.BatchNorm2d)]
    image, results = torch.randn(X).to(theirs), []
    for norm in norms:
        x = image.clone().requires_grad_()
        out = norm(x)
        weights = torch.linspace(-1, 2, out.numel()).view_as(out).to(theirs)
        results.append([out, *gradients(out, x, norm.weight, norm.bias), norm.running_mean, norm.running_var])
        assert weights.dtype == out.dtype == theirs
    tolerance = 3e-2 if torch.bfloat16 in (ours, theirs) else 4e-3
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)  # dtypes too


def test_wider_or_narrower_images_than_torch_takes_are_refused():
    for ours, theirs in ((torch.float16, torch.float32), (torch.float32, torch.float64), HALVES):
        for train in (False, True):
            with pytest.raises(ValueError, match=r"is torch\.\w+ \[3\]; allowed: torch"):
                make(train).to(ours)(torch.randn(X).to(theirs))


@pytest.mark.parametrize("train", [False, True])
def test_checkpointing_computes_as_torchs_batch_norm_does(train):
    image, results = torch.randn(X), []
    for cls in (GhostBatchNorm, nn.BatchNorm2d):
        norm, x = make(train, cls), image.clone().requires_grad_()
        out = checkpoint(norm, x, use_reentrant=False)
        results.append([*gradients(out, x, norm.weight), norm.running_mean, norm.running_var])  # moved twice
    torch.testing.assert_close(*results)
    norm, x = make(True, activation="celu", pool=True), image.requires_grad_()
    wanted = gradients(norm(x), x, norm.weight)
    assert all(map(torch.equal, gradients(checkpoint(norm, x, use_reentrant=False), x, norm.weight), wanted))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_it_is_torchs_operations_on_any_batch(strict):
    norm = make(activation="silu", pool=True)
    program = export(norm, (torch.randn(X),), dynamic_shapes=({0: Dim("batch")},), strict=strict)
    called = {node.target.namespace for node in program.graph.nodes if node.op == "call_function"}
    assert called == {"aten"}
    for images in (1, 2, 7):
        x = torch.randn(images, *X[1:])
        torch.testing.assert_close(program.module()(x), norm(x))


def test_exported_in_training_it_moves_its_statistics():
    norm = make(True, ghost_batch=2, activation="celu")
    program = export(norm, (torch.randn(X),), dynamic_shapes=({0: 2 * Dim("groups")},)).module()
    x = torch.randn(6, *X[1:])
    torch.testing.assert_close(program(x), norm(x))
    torch.testing.assert_close(dict(program.named_buffers()), dict(norm.named_buffers()))


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_traced_it_takes_any_batch_without_a_warning():
    norm = make(activation="gelu", pool=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(norm, torch.randn(X))
    assert "fastcifar::" not in str(traced.inlined_graph)
    x = torch.randn(7, *X[1:])
    torch.testing.assert_close(traced(x), norm(x))


@pytest.mark.parametrize(
    ("shape", "settings"),
    [((1, 3, 1, 1), {}), ((1, 3, 3, 2), {"pool": True}), ((4, 3, 1, 1), {"ghost_batch": 1})],
)
def test_one_value_per_channel_cannot_be_normalized(shape, settings):
    norm, x = make(True, **settings), torch.randn(shape)
    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(ValueError, match=r"one value per channel.* to normalize; allowed: 2 or more"):
        norm(x)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert norm.eval()(x).isfinite().all()


@pytest.mark.parametrize("ghost_batch", [0, 2])
@pytest.mark.parametrize("train", [False, True])
def test_an_empty_batch_gives_what_torchs_batch_norm_gives(train, ghost_batch):
    norm, theirs = make(train, pool=True, activation="celu", ghost_batch=ghost_batch), make(train, nn.BatchNorm2d)
    x = torch.zeros(0, *X[1:]).requires_grad_()
    out = norm(x)
    assert out.shape == (0, 3, 2, 3) and theirs(x).shape == x.shape
    found = torch.autograd.grad(out.sum(), [x, norm.weight, norm.bias])
    assert [g.tolist() for g in found] == [[], [0, 0, 0], [0, 0, 0]]
    for name, value in norm.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])
    with torch.no_grad():
        assert norm(x).shape == out.shape


def test_update_bn_averages_over_all_batches():
    batches = [torch.randn(X) + number for number in range(3)]
    results = []
    for cls in (GhostBatchNorm, nn.BatchNorm2d):
        model = nn.Sequential(make(False, cls)).eval()
        for _ in range(2):  # each starts afresh
            update_bn(batches, model)
        assert model[0].momentum == 0.1 and not model[0].training
        results.append([model[0].running_mean, model[0].running_var])
    torch.testing.assert_close(*results)
    assert set(model[0].state_dict()) - {"num_batches_tracked"} == set(make().state_dict())


def test_a_momentum_of_none_counts_on_after_a_copy():
    norms = [make(True, cls, momentum=None) for cls in (GhostBatchNorm, nn.BatchNorm2d)]
    for number in range(3):
        x = torch.randn(X) + number
        norms = [copy.deepcopy(norm) for norm in norms]
        for norm in norms:
            norm(x)
    torch.testing.assert_close(norms[0].running_mean, norms[1].running_mean)


def test_files_with_and_without_the_number_of_batches_are_read():
    norm, theirs = nn.Sequential(GhostBatchNorm(3)), nn.Sequential(make(cls=nn.BatchNorm2d))
    assert list(norm.state_dict()) == ["0.weight", "0.bias", "0.running_mean", "0.running_var"]
    given = theirs.state_dict()
    norm.load_state_dict(given)
    assert "0.num_batches_tracked" in given
    assert all(torch.equal(value, given[name]) for name, value in norm.state_dict().items())
    norm[0].load_state_dict(dict(norm[0].state_dict()))  # without the versions that torch keeps beside them
    counting = GhostBatchNorm(3, momentum=None)
    counting.load_state_dict({**norm[0].state_dict(), "num_batches_tracked": torch.tensor(5)})
    assert counting.num_batches_tracked == 5


def test_what_would_drop_its_activation_is_refused():
    for module in (make(), nn.Sequential(nn.Conv2d(3, 3, 1), make(activation="relu"))):
        with pytest.raises(RuntimeError, match=r"GhostBatchNorm\(3.*can't become a SyncBatchNorm"):
            nn.SyncBatchNorm.convert_sync_batchnorm(module)
        assert not hasattr(module, "qconfig")  # which quantization sets


@pytest.mark.parametrize("frozen", [False, True])
def test_a_pickle_from_before_it_was_a_batch_norm_of_torchs_is_read(frozen):
    norm, x = make(freeze_scale=frozen, activation="relu"), torch.randn(X)
    kept = copy.deepcopy(norm.__dict__)
    for name in ("freeze_scale", "num_features", "affine", "track_running_stats"):
        del kept[name]
    del kept["_buffers"]["num_batches_tracked"]
    kept["_non_persistent_buffers_set"].clear()
    old = GhostBatchNorm.__new__(GhostBatchNorm)
    old.__setstate__(kept)
    assert torch.equal(old(x), norm(x)) and repr(old) == repr(norm)
    assert old.state_dict().keys() == norm.state_dict().keys() and old.freeze_scale == frozen


@pytest.mark.parametrize("train", [False, True])
def test_a_scale_that_trained_counts_when_it_is_frozen(train):
    norm, x = make(train), torch.randn(X)
    wanted = copy.deepcopy(norm)(x)
    for module in nn.Sequential(norm).modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    torch.testing.assert_close(norm(x), wanted)  # torch's kernels where a gradient is wanted, else others


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("ghost_batch", [0, 2])
def test_the_transforms_of_torch_func(ghost_batch, train):
    norm, x = make(train, activation="silu", pool=True, ghost_batch=ghost_batch), torch.randn(X)
    x.requires_grad_()
    wanted = gradients(norm(x), x, norm.weight, norm.bias)
    if train:  # as of torch's batch norm, whose statistics no transform can move
        replace_all_batch_norm_modules_(norm)
    parameters = {name: parameter.detach() for name, parameter in norm.named_parameters()}

    def loss(parameters, x):
        out = functional_call(norm, parameters, (x,))
        return (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum()

    found, of_x = grad(loss, (0, 1))(parameters, x.detach())
    torch.testing.assert_close([of_x, found["weight"], found["bias"]], list(wanted))
    if not ghost_batch:
        compiled = torch.compile(grad(loss), backend="aot_eager")(parameters, x.detach())
        torch.testing.assert_close(compiled, found)
    second = hessian(lambda weight: loss({**parameters, "weight": weight}, x.detach()))(parameters["weight"])
    _, forward = jvp(lambda weight: loss({**parameters, "weight": weight}, x.detach()), *((torch.ones(3),),) * 2)
    assert second.shape == (3, 3) and forward.shape == ()
    if not train:
        by_image = vmap(grad(loss), (None, 0))(parameters, x.detach()[:, None])["bias"]
        one = grad(loss)(parameters, x.detach()[2:3])["bias"]
        torch.testing.assert_close(by_image[2], one)


def test_statistics_that_a_transform_would_move_are_refused_as_torch_does():
    for norm in (make(True), make(True, nn.BatchNorm2d)):
        with pytest.raises(RuntimeError, match="would mutate a captured Tensor"):
            grad(lambda x, norm=norm: norm(x).sum())(torch.randn(X))


@pytest.mark.parametrize("train", [False, True])
def test_statistics_may_be_switched_off_as_torchs_may(train):
    x = torch.randn(X)
    for change in ({"track_running_stats": False}, {"running_mean": None, "running_var": None}):
        results = []
        for cls in (GhostBatchNorm, nn.BatchNorm2d):
            norm = make(train, cls)
            for name, value in change.items():
                setattr(norm, name, value)
            results.append([norm(x), *(buffer for buffer in norm.buffers() if buffer.ndim)])
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("train", [False, True])
def test_autocast_leaves_it_in_its_inputs_dtype(train):
    norm, x = make(train, activation="gelu", pool=True), torch.randn(X).bfloat16().requires_grad_()
    twin = copy.deepcopy(norm)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    found, wanted = (gradients(each, x, module.bias) for each, module in ((out, norm), (twin(x), twin)))
    assert out.dtype == torch.bfloat16 and all(map(torch.equal, found, wanted))
    assert torch.equal(norm.running_var, twin.running_var)
