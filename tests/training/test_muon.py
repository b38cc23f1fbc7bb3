"""The optimiser of matrices."""

import pytest
import torch
from torch import nn

from dynenc.training.muon import Muon, optimizers, orthogonal


@pytest.mark.parametrize("shape", [(24, 24), (160, 40), (16, 500), (3, 20, 30)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.mT @ orthogonal(matrix) @ right.mT
    values = found.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert (found - torch.diag_embed(values)).abs().max() < 0.05


def test_a_convolution_is_one_matrix_and_groups_are_several() -> None:
    as_convolution = nn.Parameter(torch.zeros(32, 16, 3, 3))
    as_matrix = nn.Parameter(torch.zeros(32, 144))
    as_groups = nn.Parameter(torch.zeros(2, 16, 144))
    gradient = torch.randn(32, 144)
    for weight in (as_convolution, as_matrix, as_groups):
        weight.grad = gradient.reshape(weight.shape).clone()
    Muon([as_convolution, as_matrix, as_groups], lr=0.1).step()
    assert torch.equal(as_convolution.flatten(1), as_matrix)
    halves = [nn.Parameter(torch.zeros(16, 144)) for _ in range(2)]
    for half, part in zip(halves, gradient.chunk(2), strict=True):
        half.grad = part.clone()
    Muon(halves, lr=0.1).step()
    torch.testing.assert_close(as_groups.detach(), torch.stack([half.detach() for half in halves]))


def test_small_weights_and_vectors_are_left_to_adamw() -> None:
    convolution, depthwise = nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 3, groups=32)
    found = optimizers([*convolution.parameters(), *depthwise.parameters()], 0.1)
    [group] = found["muon"].param_groups
    assert group["params"] == [convolution.weight]
    [rest] = found["adamw"].param_groups
    assert len(rest["params"]) == 3
    assert list(optimizers([nn.Parameter(torch.zeros(3))], 0.1)) == ["adamw"]
