import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_layers import materialised

from dynenc import DynamicConv, HybridDense
from dynenc.layers import DynamicBlock

LAYERS = st.fixed_dictionaries(
    {
        "in_channels": st.integers(1, 4),
        "out_channels": st.integers(1, 5),
        "kernel_size": st.integers(1, 5),
        "stride": st.integers(1, 5),
        "padding": st.integers(0, 2),
        "hidden": st.integers(1, 7),
        "batch_norm": st.booleans(),
    }
)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@settings(deadline=None, max_examples=30)
@given(
    layer=LAYERS,
    batch=st.integers(1, 3),
    height=st.integers(5, 17),
    width=st.integers(5, 17),
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


def test_memory_does_not_hold_the_kernels():
    conv = DynamicConv(16, 64, 8, 8, hidden=1)
    assert max(p.numel() for p in conv.parameters()) == 64 * 16 * 64


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


def test_gradients_are_right():
    torch.manual_seed(0)
    conv = DynamicConv(2, 2, 2, 2, hidden=2, batch_norm=False).double()
    image = torch.rand(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv, (image,))


def test_block_keeps_the_shape():
    assert DynamicBlock(8)(torch.rand(2, 8, 5, 7)).shape == (2, 8, 5, 7)
