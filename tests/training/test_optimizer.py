"""Tests of the optimiser."""

import pytest
import torch
from torch import nn

from dynenc import registry
from dynenc.networks import loading
from dynenc.training.optimizer import Muon, Optimizer

RATE = 0.01


@pytest.mark.parametrize("outputs", [24, 160], ids=["wide", "tall"])
def test_muon_steps_as_that_of_torch_does(outputs):
    theirs_of = getattr(torch.optim, "Muon", None)
    if theirs_of is None:
        pytest.skip("torch 2.9 or newer")
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(outputs, 9 * 16, generator=generator)
    ours = nn.Parameter(start.view(outputs, 16, 3, 3).clone())
    theirs = nn.Parameter(start.clone())
    one = Muon([ours], RATE)
    other = theirs_of([theirs], RATE, weight_decay=0, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        theirs.grad = torch.randn(start.shape, generator=generator)
        ours.grad = theirs.grad.view_as(ours)
        one.step()
        other.step()
    moved = (theirs - start).norm()
    assert moved > 0.1
    assert (ours.flatten(1) - theirs).norm() < 0.05 * moved  # products are in bfloat16


def test_rare_directions_are_learnt_by_wide_layers_only():
    encoder = loading.build(registry.MODELS["light"])
    before = {name: weight.detach().clone() for name, weight in encoder.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    for weight in encoder.parameters():  # gradients with one direction far larger than the others
        rows = torch.randn(len(weight), 1, generator=generator)
        weight.grad = 100 * rows.view(-1, *[1] * (weight.dim() - 1)).expand_as(weight)
        weight.grad = weight.grad + torch.randn(weight.shape, generator=generator)
    Optimizer(encoder, nn.Identity(), RATE).step(RATE)
    ranks = {}
    for name, weight in encoder.named_parameters():
        if weight.dim() == 4 and min(weight.shape[:2]) > 1:
            values = torch.linalg.svdvals((weight.detach() - before[name]).flatten(1))
            ranks[name] = (values > 0.2 * values[0]).float().mean().item()
    assert ranks["context.0.spatial.weight"] > 0.9
    assert ranks["context.0.gate.weight"] > 0.9
    assert ranks["stem.weight"] < 0.1  # by AdamW, whose steps have the signs of the gradients
