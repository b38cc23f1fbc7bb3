"""LPIPS on AlexNet and VGG-16, and DISTS."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dynenc.errors import WeightsError
from dynenc.evaluation.lpips import LPIPS
from dynenc.evaluation.vgg import DISTS, LPIPSVGG, VGG16


@pytest.fixture(params=["LPIPS", "LPIPS-VGG", "DISTS"])
def distance(request, lpips_path, vgg_path):
    if request.param == "LPIPS":
        return LPIPS(lpips_path)
    return {"LPIPS-VGG": LPIPSVGG, "DISTS": DISTS}[request.param](VGG16(vgg_path))


@pytest.fixture
def images():
    """[2, 2, 3, 48, 56]: two batches of two different images in [-1, 1]."""
    return torch.rand(2, 2, 3, 48, 56, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_distance_of_equal_images_is_zero(distance, images):
    one, two = images
    assert torch.equal(distance(one, one), torch.zeros(2))
    assert (distance(one, two) > 0.001).all()
    assert torch.allclose(distance(one, two), distance(two, one))


def test_distance_grows_with_noise(distance, images):
    one, noise = images
    distances = [distance((one + s * noise).clamp(-1, 1), one) for s in (0.02, 0.1, 0.5)]
    assert (torch.stack(distances).diff(dim=0) > 0).all()


def test_each_image_of_a_batch_is_measured_by_itself(distance, images):
    one, two = images
    alone = [distance(*pair) for pair in zip(one.split(1), two.split(1), strict=True)]
    assert torch.allclose(distance(one, two), torch.cat(alone), atol=1e-6)


def test_features_of_a_reference_are_used_again(distance, images):
    one, two = images
    kept = list(distance.features(two))
    assert torch.equal(distance.compare(distance.features(one), kept), distance(one, two))


def test_gradient_descent_lowers_the_distance(distance, images):
    one, two = images
    one = one.clone().requires_grad_()
    before = distance(one, two).sum()
    before.backward()
    assert torch.isfinite(one.grad).all()
    moved = one - 1e-3 * one.grad / one.grad.norm()
    assert distance(moved, two).sum() < before


def test_flat_images_have_finite_gradients(distance):
    one = torch.full((1, 3, 32, 32), -1.0, requires_grad=True)
    distance(one, torch.ones(1, 3, 32, 32)).sum().backward()
    assert torch.isfinite(one.grad).all()


def test_bfloat16_is_close_and_gives_float32(distance, images):
    exact = distance(*images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = distance(*images)
    assert rough.dtype == torch.float32
    assert torch.allclose(rough, exact, rtol=0.1, atol=0.01)


def test_lpips_and_dists_against_their_formulas(vgg_path, vgg_state, images):
    """Computed once more, with VGG-16 as a stack of torch's own layers and DISTS as published."""
    one, two = images
    weights = {name: value.float() for name, value in vgg_state.items()}

    def layers(image, pool):
        for i in range(13):
            image = F.conv2d(image, weights[f"conv.{i}.weight"], weights[f"conv.{i}.bias"], 1, 1)
            image = image.relu()
            if i in (1, 3, 6, 9, 12):
                yield image
                image = pool(image)

    def scaled(image, mean, std):
        return (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    expected = torch.zeros(2)
    inputs = [scaled(x, [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]) for x in images]
    both = (layers(x, torch.nn.MaxPool2d(2)) for x in inputs)
    for i, (a, b) in enumerate(zip(*both, strict=True)):
        a, b = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b))
        expected += (weights[f"head.{i}"] * (a - b) ** 2).sum(1).mean((1, 2))
    assert torch.allclose(LPIPSVGG(VGG16(vgg_path))(one, two), expected, atol=1e-5)

    def blur(image):
        hann = torch.hann_window(5, periodic=False)[1:-1]
        window = torch.outer(hann, hann) / hann.sum() ** 2
        squares = [F.conv2d(x[:, None], window[None, None], None, 2, 1) for x in image.unbind(1)]
        return (torch.cat(squares, 1) + 1e-12).sqrt()

    unit = [(x + 1) / 2 for x in images]
    inputs = [scaled(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) for x in unit]
    both = [[x, *layers(y, lambda z: blur(z**2))] for x, y in zip(unit, inputs, strict=True)]
    similarity, start = torch.zeros(2), 0
    for a, b in zip(*both, strict=True):
        part = slice(start, start := start + a.shape[1])
        (va, ma), (vb, mb) = (torch.var_mean(x, (2, 3), correction=0) for x in (a, b))
        covariance = (a * b).mean((2, 3)) - ma * mb
        texture = (2 * ma * mb + 1e-6) / (ma**2 + mb**2 + 1e-6)
        structure = (2 * covariance + 1e-6) / (va + vb + 1e-6)
        similarity += texture @ weights["alpha"][part] + structure @ weights["beta"][part]
    expected = 1 - similarity / (weights["alpha"].sum() + weights["beta"].sum())
    assert torch.allclose(DISTS(VGG16(vgg_path))(one, two), expected, atol=1e-5)


def test_weights_that_are_missing_or_do_not_fit(lpips_path, vgg_state, tmp_path):
    with pytest.raises(WeightsError, match="VGG-16"):
        VGG16(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="VGG-16"):
        VGG16(lpips_path)
    (damaged := tmp_path / "damaged.safetensors").write_bytes(lpips_path.read_bytes()[:200])
    with pytest.raises(WeightsError, match="LPIPS"):
        LPIPS(damaged)
    for changed, metric in (({"beta": torch.rand(5)}, DISTS), ({"head.2": None}, LPIPSVGG)):
        state = {name: value for name, value in (vgg_state | changed).items() if value is not None}
        save_file(state, path := tmp_path / "other.safetensors")
        with pytest.raises(WeightsError, match="safetensors does not hold the weights of"):
            metric(VGG16(path))
