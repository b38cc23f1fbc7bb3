import torch

from dynenc.training.context_networks import _train, _Trainees
from dynenc.training.samples import FitConfig


def test_every_sample_can_be_in_a_batch():
    config = FitConfig("fast", hidden=2, middle=2, batch=2, iterations=40)
    seen = set()

    class Recorder(_Trainees):
        def bits(self, neighbours, target, octave):
            seen.update(octave.tolist())
            return super().bits(neighbours, target, octave)

    networks = Recorder(torch.ones(1, 1), torch.ones(1, 1), config)
    octave = torch.tensor([0.0, 1.0, 2.0, 3.0])
    neighbours = torch.zeros(1, 1, 4, dtype=torch.int16)
    _train(networks, neighbours, torch.zeros(1, 4), octave, config)
    assert seen == {0, 1, 2, 3}
