import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.layers import materialised
from torch.utils._python_dispatch import TorchDispatchMode

from dynenc import DynamicConv, HybridDense
from dynenc.errors import UsageError
from dynenc.networks import compat
from dynenc.networks.layers import DynamicBlock, GatedConv, Int8Rows, patches

PAIR = st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def layers(draw):
    groups = draw(st.integers(1, 3))
    stride = draw(PAIR)
    paddings = ["valid", 0, 1, (0, 2)] + (["same"] if stride in (1, (1, 1)) else [])
    return {
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": draw(PAIR),
        "stride": stride,
        "padding": draw(st.sampled_from(paddings)),
        "dilation": draw(PAIR),
        "groups": groups,
        "bias": draw(st.booleans()),
        "hidden": draw(st.integers(1, 7)),
        "batch_norm": draw(st.booleans()),
    }


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # of even kernels, once a process
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@settings(deadline=None, max_examples=30)
@given(
    layer=layers(),
    batch=st.integers(1, 3),
    height=st.integers(7, 17),
    width=st.integers(7, 17),
    seed=st.integers(0, 1000),
)
def test_factorised_equals_materialised_kernels(
    dtype, tolerance, layer, batch, height, width, seed
):
    torch.manual_seed(seed)
    conv = DynamicConv(**layer).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in conv.named_parameters():
            if name.endswith(("power", "scale")):
                parameter.uniform_(0.5, 1.5)
        image = torch.rand(batch, layer["in_channels"], height, width, dtype=dtype) * 2 - 1
        difference = (conv(image) - materialised(conv, image)).abs().max()
    assert difference <= tolerance


def test_training_mode_equals_materialised_kernels_with_batch_statistics():
    torch.manual_seed(0)
    conv = DynamicConv(3, 4, 8, 8).double().train()
    image = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert torch.allclose(conv(image), materialised(conv, image), atol=1e-10)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"), [(3, 1, 0), (3, 1, 1), (8, 8, 0), (2, 2, 0), (5, 3, 2)]
)
def test_output_shape_is_that_of_conv2d(kernel_size, stride, padding):
    image = torch.rand(2, 3, 21, 34)
    ours = DynamicConv(3, 6, kernel_size, stride, padding)
    theirs = torch.nn.Conv2d(3, 6, kernel_size, stride, padding)
    assert ours(image).shape == theirs(image).shape


def test_defaults_are_those_of_a_3x3_convolution():
    assert DynamicConv(3, 5)(torch.rand(1, 3, 10, 12)).shape == (1, 5, 8, 10)


def test_wrong_arguments_are_refused_as_conv2d_refuses_them():
    for arguments in ({"groups": 2}, {"padding": "same", "stride": 2}, {"padding": "other"}):
        with pytest.raises(ValueError, match=r"groups|padding|Invalid"):
            DynamicConv(3, 4, **arguments)


@pytest.mark.parametrize(("padding", "height"), [(0, 2), ("valid", 2)])
def test_images_smaller_than_the_kernel_are_refused(padding, height):
    with pytest.raises(UsageError):
        DynamicConv(3, 4, 3, padding=padding)(torch.zeros(1, 3, height, 9))


class Largest(TorchDispatchMode):
    """The most numbers that any result held."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (7, 1), (8, 8)])
def test_memory_grows_with_neither_kernels_nor_patches(kernel_size, stride):
    conv = DynamicConv(16, 32, kernel_size, stride, hidden=2).eval()
    image = torch.rand(1, 16, 64, 64)
    with torch.no_grad(), Largest() as largest:
        positions = conv(image)[0, 0].numel()
    rows = 32 * (2 * 2 + 1)
    parameters = rows * 16 * kernel_size**2
    assert largest.numbers <= max(rows * positions, parameters, image.numel())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_and_has_finite_gradients(dtype):
    torch.manual_seed(0)
    conv = DynamicConv(3, 8, 3, padding="same", batch_norm=False)
    image = torch.rand(2, 3, 12, 12) * 2 - 1
    exact = conv(image)
    half = conv.to(dtype)(image.to(dtype))
    assert half.dtype == dtype
    assert (half.float() - exact).abs().max() < 0.05
    half.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in conv.parameters())


def test_channels_last_gives_the_same():
    conv = DynamicConv(3, 8, 3, padding=1).eval()
    image = torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        expected = conv(image)
        last = conv.to(memory_format=torch.channels_last)
        assert torch.allclose(
            last(image.to(memory_format=torch.channels_last)), expected, atol=1e-5
        )


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (4, 4)])
def test_export_takes_other_sizes(kernel_size, stride):
    conv = DynamicConv(3, 4, kernel_size, stride).eval()
    sides = {
        2: 4 * torch.export.Dim("h", min=2, max=99),
        3: 4 * torch.export.Dim("w", min=2, max=99),
    }
    program = torch.export.export(conv, (torch.rand(1, 3, 16, 24),), dynamic_shapes=(sides,))
    image = torch.rand(1, 3, 32, 20)
    with torch.no_grad():
        assert torch.allclose(program.module()(image), conv(image), atol=1e-6)


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # torch's own, on Python 3.13.0
def test_compile_sees_one_graph():
    conv = DynamicConv(3, 4, 3, padding=1).eval()
    image = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        whole = torch.compile(conv, fullgraph=True, backend="aot_eager")
        assert torch.allclose(whole(image), conv(image), atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (8, 8)])
def test_onnx_gives_the_same(tmp_path, kernel_size, stride):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    conv = DynamicConv(3, 4, kernel_size, stride, hidden=4).eval()
    image, path = torch.rand(1, 3, 16, 24), tmp_path / "conv.onnx"
    torch.onnx.export(conv, (image,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert np.abs(found - conv(image).detach().numpy()).max() < 1e-5


def test_hybrid_dense_is_the_papers_formula():
    torch.manual_seed(1)
    dense = HybridDense(6, 5).double()
    with torch.no_grad():
        dense.power.uniform_(0.5, 2)
        dense.scale.uniform_(-2, 2)
        inputs = torch.randn(40, 6, dtype=torch.float64)
        z = inputs @ dense.weight[0].T + dense.bias
        expected = torch.copysign(dense.scale * (z.clamp(min=0) + 1e-8) ** dense.power, z)
        assert torch.allclose(dense(inputs), expected, atol=1e-12)


def test_hybrid_dense_turns_nan_into_zero():
    dense = HybridDense(2, 3)
    assert torch.equal(dense(torch.full((1, 2), float("nan"))), torch.zeros(1, 3))


def test_hybrid_dense_takes_no_rows():
    assert HybridDense(4, 6)(torch.zeros(2, 0, 4)).shape == (2, 0, 6)


def test_groups_do_not_mix():
    dense = HybridDense(6, 4, groups=2)
    with torch.no_grad():
        dense.weight.abs_()
        dense.bias.abs_()
    inputs = torch.rand(1, 6)
    changed = inputs.clone()
    changed[0, 3:] += 1
    assert torch.equal(dense(inputs)[0, :2], dense(changed)[0, :2])
    assert not torch.equal(dense(inputs)[0, 2:], dense(changed)[0, 2:])


def test_groups_must_divide():
    with pytest.raises(ValueError, match="groups"):
        HybridDense(5, 4, groups=2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 2, "stride": 2, "hidden": 2, "batch_norm": False},
        {"kernel_size": 3, "padding": "same", "groups": 2, "hidden": 1},
        {"kernel_size": (1, 2), "dilation": (1, 2), "hidden": 2},
    ],
)
def test_gradients_are_right(arguments):
    torch.manual_seed(0)
    conv = DynamicConv(2, 2, **arguments).double()
    image = torch.rand(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in conv.named_parameters()]

    def run(image, *parameters):
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(conv, state, (image,))

    assert torch.autograd.gradcheck(run, (image, *conv.parameters()))


@pytest.mark.parametrize(("kernel_size", "stride"), [(8, 8), (3, 2), (1, 1)])
def test_gated_convolution_equals_kernels_that_are_built(kernel_size, stride):
    torch.manual_seed(0)
    conv = GatedConv(3, 5, kernel_size, stride).double()
    image = torch.rand(2, 3, 16, 24, dtype=torch.float64) * 2 - 1
    out = conv(image).flatten(2)
    unit, unit_bias = (part[:5] for part in conv.rows())
    rest, rest_bias = (part[5:] for part in conv.rows())
    patches = torch.nn.functional.unfold(image, kernel_size, stride=stride)
    for place in range(patches.shape[2]):
        for number in range(2):
            patch = patches[number, :, place]
            predicted = (unit @ patch + unit_bias).clamp(min=0)
            kernels = predicted[:, None] * rest
            expected = kernels @ patch + predicted * rest_bias
            assert torch.allclose(out[number, :, place], expected, atol=1e-12)


def test_block_keeps_the_shape():
    assert DynamicBlock(8)(torch.rand(2, 8, 5, 7)).shape == (2, 8, 5, 7)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("crop", [(0, 0), (3, 5), (0, 8)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_patches_are_what_a_convolution_sees(dtype, crop, memory):
    image = torch.arange(2 * 3 * 45 * 70).view(2, 3, 45, 70).remainder(251).to(dtype)
    image = image.contiguous(memory_format=memory)[..., crop[0] :, crop[1] :]
    for size in ((8, 8), (1, 1), (3, 5), (2, 8)):
        height, width = (side // part for side, part in zip(image.shape[2:], size, strict=True))
        whole = image[..., : height * size[0], : width * size[1]]
        split = whole.reshape(2, 3, height, size[0], width, size[1])
        expected = split.permute(0, 2, 4, 3, 5, 1).reshape(2, height * width, -1)
        assert torch.equal(patches(image, size), expected)


@pytest.mark.parametrize("integers", [True, False])
@given(n_patches=st.integers(1, 40), n_rows=st.integers(1, 40), seed=st.integers(0, 1000))
def test_products_of_bytes_are_exact(integers, n_patches, n_rows, seed):
    """Of the rounded rows, to the last bit of the sums, with int8 products and without."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n_rows, 192, generator=generator)
    bias = torch.randn(n_rows, generator=generator)
    pixels = torch.randint(0, 256, (1, n_patches, 192), dtype=torch.uint8, generator=generator)
    rows = Int8Rows(weight, bias)
    with pytest.MonkeyPatch.context() as patch:
        if not integers:
            patch.setattr(compat, "has_exact_int_mm", lambda: False)
        products = rows(pixels)
    sums = pixels.long() @ rows.rows.long().T  # exact
    expected = sums * rows.scale.double() + bias - 127.5 * rows.rows.long().sum(1) * rows.scale
    assert (products - expected).abs().max() < 1e-4
    rounded = rows.rows * rows.scale[:, None] * 127.5
    assert (rounded - weight).abs().max() <= weight.abs().max() / 253


def test_rows_of_zeros_stay_finite():
    rows = Int8Rows(torch.zeros(2, 192), torch.ones(2))
    assert rows(torch.full((1, 3, 192), 255, dtype=torch.uint8)).equal(torch.ones(1, 3, 2))
