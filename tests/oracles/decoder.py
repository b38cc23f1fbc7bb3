"""The integer decoder in plain numpy, after docs/decoder.md; slow."""

import numpy as np


def scaled(a, b):
    """A product of 16-bit integers in 2^-15, rounded."""
    return (a * b + (1 << 14)) >> 15


def saturated(values, bits):
    """Integers within those of so many bits."""
    return values.clip(-(1 << bits - 1), (1 << bits - 1) - 1)


def by_channel(tensor):
    return tensor.astype(np.int64)[:, None, None]


def product(tensors, name, inputs, step_q=0):
    """A convolution, [C, h, w] -> y [N, h, w]; at the borders the edge is repeated."""
    weight = tensors[f"{name}.weight"].astype(np.float64)
    side, (height, width) = weight.shape[2], inputs.shape[1:]
    around = side // 2
    padded = np.pad(inputs, ((0, 0), (around, around), (around, around)), "edge").astype(np.float64)
    sums = by_channel(tensors[f"{name}.bias"])
    if step_q:
        sums = sums + by_channel(tensors[f"{name}.slope"]) * min(step_q, 1280)
    for down in range(side):
        for right in range(side):
            part = padded[:, down : down + height, right : right + width]
            exact = np.tensordot(weight[:, :, down, right], part, 1)  # below 2^53
            sums = sums + exact.astype(np.int64)
    assert np.abs(sums).max() < 1 << 31
    t = saturated(sums >> int(tensors[f"{name}.shift"][0]), 16)
    return scaled(t, by_channel(tensors[f"{name}.multiplier"]))


def activations(tensors, name, residual):
    term = scaled(residual, by_channel(tensors[f"{name}.input.scale"]))
    term = saturated(term + by_channel(tensors[f"{name}.input.offset"]), 16)
    return saturated(term >> int(tensors[f"{name}.input.shift"][0]), 8)


def block(tensors, name, residual):
    hidden = saturated(product(tensors, f"{name}.spatial", activations(tensors, name, residual)), 8)
    gates, values = np.split(product(tensors, f"{name}.gate", hidden), 2)
    limit = by_channel(tensors[f"{name}.limit"])
    gated = saturated(scaled(gates.clip(0, limit), values.clip(-limit, limit)), 8)
    return saturated(residual + product(tensors, f"{name}.mix", gated), 16)


def shuffle(values):
    """[4 * C, h, w] -> [C, 2h, 2w]."""
    count, height, width = values.shape
    parts = values.reshape(count // 4, 2, 2, height, width)
    return parts.transpose(0, 3, 1, 4, 2).reshape(count // 4, 2 * height, 2 * width)


def pixels(values):
    return values.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def decode(tensors, widths, blocks, latents, step_q=0):
    """Latents int16 [C, h, w] in 1/2048 -> pixels uint8, for each size twice as high."""
    residual = product(tensors, "layers.0", latents.astype(np.int64), step_q)
    index = 1
    for count in blocks[: len(widths)]:
        for _ in range(count):
            residual = block(tensors, f"layers.{index}", residual)
            index += 1
        name = f"layers.{index}"
        residual = shuffle(product(tensors, name, activations(tensors, name, residual)))
        index += 2
    return pixels(residual)
