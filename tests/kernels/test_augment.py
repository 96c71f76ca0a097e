import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar.kernels import augment, plain_batch

MEAN, STD = (125.3, 122.9, 113.8), (62.9, 62.0, 66.7)


def one_by_one(images, indices, offsets, flips, cutouts, jitter, size, crop=None):
    """Make the same batch by other means: torch's reflection padding, slices and interpolation, an image at a time, in
    float64, rescaled after normalization and jitter."""
    crop = crop or size
    batch = []
    for number, index in enumerate(indices.tolist()):
        border = images.shape[1] - 1
        image = F.pad(images[index].permute(2, 0, 1).double()[None], (border,) * 4, mode="reflect")[0]
        top, left = (offsets[number] + border).tolist()
        image = image[:, top : top + crop, left : left + crop]
        if flips is not None and flips[number]:
            image = image.flip(2)
        image = (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        if jitter is not None:
            brightness, contrast = jitter[number]
            image = image * contrast + brightness
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=False)[0]
        if cutouts is not None:
            top, left, height, width = cutouts[number].tolist()
            image[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = 0
        batch.append(image)
    return torch.stack(batch)


def choices(batch, images=5, side=8, reach=3):
    return (
        torch.randint(0, 256, (images, side, side, 3), dtype=torch.uint8),
        torch.randint(images, (batch,)),
        torch.randint(-reach, reach + 1, (batch, 2), dtype=torch.int32),
        torch.rand(batch) < 0.5,
        torch.randint(-3, side, (batch, 4), dtype=torch.int32).abs_() - torch.tensor([3, 3, 0, 0], dtype=torch.int32),
        torch.rand(batch, 2),
    )


def on(device, tensors):
    return [tensor if tensor is None else tensor.to(device) for tensor in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("given_choices", ["none", "flips", "all"])
def test_batch_is_what_padding_slicing_and_flipping_give(path, device, assert_close, dtype, given_choices):
    arguments = list(choices(4))
    arguments[3:] = {"none": [None] * 3, "flips": [arguments[3], None, None], "all": arguments[3:]}[given_choices]
    out = augment(*on(device, arguments), MEAN, STD, dtype)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    assert_close(out, one_by_one(*arguments, size=8), dtype)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 3),
    side=st.integers(2, 9),
    size=st.integers(1, 9),
    crop=st.none() | st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_any_sizes(path, device, assert_close, batch, side, size, crop, seed):
    torch.manual_seed(seed)
    size, crop = (min(size, side), None) if crop is None else (size, min(crop, side))
    arguments = choices(batch, side=side, reach=side - (crop or size))
    out = augment(*on(device, arguments), MEAN, STD, size=size, crop=crop)
    assert_close(out, one_by_one(*arguments, size=size, crop=crop), torch.float32)


@pytest.mark.parametrize(("side", "size"), [(32, 24), (32, 28), (8, 6), (6, 8)])
def test_a_rescaled_ramp_has_the_values_at_the_centers_of_its_pixels(path, device, side, size):
    places = torch.arange(side, dtype=torch.uint8)
    down, right = 5 * places[:, None].expand(side, side), 3 * places.expand(side, side)
    images = torch.stack([down, right, torch.full_like(down, 200)], dim=2)[None].contiguous().to(device)
    index, zero = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(1, 2, dtype=torch.int32, device=device)
    out = augment(images, index, zero, size=size, crop=side)[0].double().cpu()
    centers = ((torch.arange(size, dtype=torch.float64) + 0.5) * side / size - 0.5).clamp(0, side - 1)
    torch.testing.assert_close(out[0], 5 * centers[:, None].expand(size, size), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(out[1], 3 * centers.expand(size, size), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(out[2], torch.full_like(out[2], 200))  # the shares of four pixels sum to 1
    flipped = augment(images, index, zero, torch.ones(1, dtype=torch.bool, device=device), size=size, crop=side)
    torch.testing.assert_close(flipped[0, 1].flip(1).double().cpu(), out[1], rtol=1e-6, atol=1e-4)


def test_a_crop_of_the_sides_own_size_is_not_rescaled(path, device):
    arguments = on(device, choices(4))
    assert torch.equal(augment(*arguments, MEAN, STD, size=6, crop=6), augment(*arguments, MEAN, STD, size=6))


@pytest.mark.parametrize("sizes", [{}, {"size": 6, "crop": 8}], ids=["whole", "rescaled"])
@pytest.mark.parametrize("given_choices", ["none", "all"])
def test_a_batch_of_several_is_the_one_of_its_position(path, device, given_choices, sizes):
    arguments = list(choices(12))
    arguments[3:] = [None] * 3 if given_choices == "none" else arguments[3:]
    for number in range(3):
        rows = slice(4 * number, 4 * number + 4)
        alone = [arguments[0], *(None if choice is None else choice[rows] for choice in arguments[1:])]
        position = torch.tensor([number], device=device)
        out = augment(*on(device, arguments), MEAN, STD, position=position, batch=4, **sizes)
        assert torch.equal(out, augment(*on(device, alone), MEAN, STD, **sizes))


def test_a_position_and_the_batch_belong_together():
    images, indices, offsets, *_ = choices(4)
    for wrong in ({"batch": 2}, {"position": torch.zeros(1, dtype=torch.int64)}):
        with pytest.raises(ValueError, match=r"^batch is .* of 4 choices; allowed: 1 to all with a position"):
            augment(images, indices, offsets, **wrong)
    for batch in (0, 5):
        with pytest.raises(ValueError, match=rf"^batch is {batch} of 4 choices"):
            augment(images, indices, offsets, position=torch.zeros(1, dtype=torch.int64), batch=batch)
    with pytest.raises(ValueError, match=r"^position is torch.float32 \[1\]; allowed: torch.int64 \[1\]"):
        augment(images, indices, offsets, position=torch.zeros(1), batch=2)


def test_both_paths_give_the_same_bits(monkeypatch, device):
    pytest.importorskip("triton")
    arguments = [*on(device, choices(3)[:5]), None, MEAN, STD, torch.float16]
    outs = []
    for path in ("reference", "triton"):
        monkeypatch.setenv("FASTCIFAR_KERNELS", path)
        outs.append(augment(*arguments))
    assert torch.equal(*outs)


def test_strided_choices(path, device, assert_close):
    images, indices, offsets, flips, cutouts, jitter = on(device, choices(6))
    arguments = (images, indices[::2], offsets.flip(1)[::2], flips[::2], cutouts[::2], jitter.flip(1)[::2])
    expected = one_by_one(*(tensor.cpu() for tensor in arguments), size=8)
    assert_close(augment(*arguments, MEAN, STD), expected, torch.float32)


def test_a_flip_and_a_shift_are_test_time_views(path, device):
    images = torch.randint(0, 256, (3, 6, 6, 3), dtype=torch.uint8, device=device)
    indices = torch.arange(3, device=device)
    zero = torch.zeros(3, 2, dtype=torch.int32, device=device)
    plain = augment(images, indices, zero)
    assert torch.equal(plain, images.permute(0, 3, 1, 2).float())
    flipped = augment(images, indices, zero, torch.ones(3, dtype=torch.bool, device=device))
    assert torch.equal(flipped, plain.flip(3))
    shifted = augment(images, indices, zero + 1)
    assert torch.equal(shifted[:, :, :-1, :-1], plain[:, :, 1:, 1:])
    assert torch.equal(shifted[:, :, -1], shifted[:, :, -3])  # the border mirrors the image, edge pixels not repeated


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_plain_batch_is_the_images_as_they_are_or_a_view_of_them(path, device, dtype):
    images, indices = torch.randint(256, (5, 6, 6, 3), dtype=torch.uint8, device=device), torch.tensor([4, 0, 2])
    indices, zero = indices.to(device), torch.zeros(3, 2, dtype=torch.int32, device=device)
    arguments, flips = (images, indices, MEAN, STD, dtype), torch.ones(3, dtype=torch.bool, device=device)
    assert torch.equal(plain_batch(*arguments), augment(images, indices, zero, None, None, None, MEAN, STD, dtype))
    view = augment(images, indices, zero - 1, flips, None, None, MEAN, STD, dtype)
    assert torch.equal(plain_batch(*arguments, shift=-1, flip=True), view)


def test_an_index_out_of_range_is_an_error_on_the_cpu(monkeypatch):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    images, _, offsets, *_ = choices(2)
    with pytest.raises(IndexError):
        augment(images, torch.tensor([0, 5]), offsets)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", torch.zeros(2, 8, 8, 3)),
        ("images", torch.zeros(2, 3, 8, 8, dtype=torch.uint8).permute(0, 2, 3, 1)),
        ("indices", torch.zeros(2, dtype=torch.int32)),
        ("offsets", torch.zeros(2, 2)),
        ("flips", torch.zeros(3, dtype=torch.bool)),
        ("cutouts", torch.zeros(2, 3, dtype=torch.int32)),
        ("jitter", torch.zeros(2, 2, dtype=torch.float64)),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, value):
    names = ("images", "indices", "offsets", "flips", "cutouts", "jitter")
    arguments = dict(zip(names, choices(2), strict=True))
    with pytest.raises(ValueError, match=rf"{name} (is|are) .*; allowed: "):
        augment(**{**arguments, name: value})


@pytest.mark.parametrize(("size", "crop"), [(0, None), (0, 4), (-1, 4), (8, 0), (8, -1), (8, 23), (23, None)])
def test_sides_that_cannot_be_are_refused(size, crop):
    with pytest.raises(ValueError, match=r"size is .*, crop .*; allowed: 1 or more, and 1 to 22"):
        augment(*choices(2), size=size, crop=crop)


@pytest.mark.parametrize("place", [0, 1])
def test_crops_beyond_the_mirror_image_are_refused_on_the_cpu(monkeypatch, place):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    images, indices, offsets, *_ = choices(2)
    for allowed, refused in ((-7, -8), (11, 12)):
        offsets[1, place] = allowed
        augment(images, indices, offsets, crop=4)
        offsets[1, place] = refused
        with pytest.raises(ValueError, match=r"offsets are .* \((top|left)\); allowed: -7 to 11 for a crop of 4"):
            augment(images, indices, offsets, crop=4)


def test_is_a_well_formed_operator(monkeypatch):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    constants = ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], torch.bfloat16, 7)
    for position in ((None, 4, 7), (torch.ones(1, dtype=torch.int64), 2, 8)):
        torch.library.opcheck(torch.ops.fastcifar.augment.default, (*choices(4), *constants, *position))


def test_compiles_into_one_graph(path, device):
    arguments = on(device, choices(2))
    compiled = torch.compile(lambda *tensors: augment(*tensors, MEAN, STD) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), augment(*arguments, MEAN, STD) * 2)


@pytest.mark.gpu
def test_a_captured_graph_replays_with_new_choices(path):
    static, fresh = on("cuda", choices(4)), on("cuda", choices(4))
    augment(*static, MEAN, STD)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = augment(*static, MEAN, STD)
    for tensor, new in zip(static, fresh, strict=True):
        tensor.copy_(new)
    graph.replay()
    assert torch.equal(out, augment(*fresh, MEAN, STD))


@pytest.mark.parametrize(("size", "crop"), [(224, None), (96, 224)])
def test_images_of_224_pixels(path, device, monkeypatch, size, crop):
    if path == "triton":  # the interpreter takes as long for a small block
        from fastcifar.kernels import augment_triton

        monkeypatch.setattr(augment_triton.SIZES, "interpreted", augment_triton.Sizes(block=2**16, warps=1))
    arguments = choices(2, images=2, side=224, reach=20)
    out = augment(*on(device, arguments), MEAN, STD, size=size, crop=crop)
    assert (out.double().cpu() - one_by_one(*arguments, size=size, crop=crop)).abs().max() < 1e-4
