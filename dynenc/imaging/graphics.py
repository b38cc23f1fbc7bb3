"""Finding text and graphics in a picture: type, lines, user interfaces, charts.

Tiles are judged by statistics of their pixels. Text and graphics have sharp edges between few
levels, with flats between them, in many tiles side by side whose backgrounds resemble each other;
photographs have one of these, but seldom all of them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from dynenc.imaging import arrays
from dynenc.imaging.arrays import Pixels
from dynenc.native import kernel
from dynenc.native.kernel import TILE

Mask = npt.NDArray[np.bool_]

SHARP = 20  # pixels of a tile that differ by 48 levels from a neighbour
STILL, BACKGROUND = 64, 102  # rendered: pixels equal to neighbours; near the brightest or darkest
CALM, SCANNED, BOTH = 110, 128, 180  # scanned: calm pixels; background; background and ink
WINDOW = 2  # tiles to each side that must agree ...
RENDERED_PEERS, SCANNED_PEERS = 6, 9  # ... so many of the 25
MOSTLY, PARTLY = 0.6, 0.75  # documents: tiles with edges that resemble text; of all, found at once
RENDERED_LEVELS, SCANNED_LEVELS = 6, 10  # differences of backgrounds that count as the same
EDGE, SMOOTH = 1, 90  # around what is found: sharp and calm pixels
DITHERED = 32  # still pixels in drawn gradients, which are calm everywhere
ACROSS, FRAMED = 12, 212  # at the frames of photographs: pixels along one edge; calm beside it
CLOSINGS, ENCLOSED = 2, 5  # rounds in which tiles are added that have so many neighbours
LEAST = 6  # tiles, of what is taken for text
OUTLINED, WHITE, BLACK = 56, 254, 10  # white type with a dark outline: sharp pixels; levels
OUTLINED_STILL, OUTLINED_BOTH, OUTLINED_PEERS = 8, 80, 5  # still pixels; fill and outline; tiles
FLAT, FLAT_PEERS = 192, 18  # drawn: still pixels; tiles of the 25 that have so many
NOISY_CALM, NOISY_BACKGROUND, NOISY_INK = 48, 110, 32  # text in noise: pixels; most that are ink
NOISY_TILES, NOISY_LEAST = 60, 10  # such tiles; those of the halved picture taken for text
STRIP = 2**20  # px that are looked at at once


@dataclass(frozen=True, eq=False)
class _Tiles:
    """The statistics of a picture's tiles, [rows, columns] each; see `dynenc_tiles`.

    Those after `sharp` are 0 of tiles with fewer than `SHARP` such pixels.
    """

    still: kernel.Counts
    calm: kernel.Counts
    sharp: kernel.Counts
    bright: kernel.Counts
    dark: kernel.Counts
    high: kernel.Counts
    low: kernel.Counts

    @property
    def background(self) -> kernel.Counts:
        """How many pixels are near the end of the levels where most are."""
        return np.maximum(self.bright, self.dark)

    @property
    def level(self) -> npt.NDArray[np.int16]:
        """The level at that end."""
        return np.where(self.bright > self.dark, self.high, self.low).astype(np.int16)


def find(picture: Image.Image | Pixels, *, eager: bool = False) -> Mask:
    """The tiles of an RGB picture that hold text or graphics, and flats that adjoin them.

    Args:
        eager: take single tiles for text, too, that resemble it by themselves.
    Returns: [rows, columns] of tiles of 16x16 px, those at the right and lower edge cut off.
    """
    tiles = _measured(picture)
    found = _found(tiles, 1 if eager else LEAST, eager=eager) | _outlined(tiles)
    missed = np.count_nonzero(_like_noisy_text(tiles) & ~found)
    if missed < max(NOISY_TILES, found.sum() / 3):
        return found
    halved = _found(_measured(arrays.halved(picture)), NOISY_LEAST)  # with half the noise
    rows, columns = found.shape
    return found | halved.repeat(2, 0).repeat(2, 1)[:rows, :columns]


def _found(tiles: _Tiles, least: int, *, eager: bool = False) -> Mask:
    """The tiles of text and graphics, and flats that adjoin them; none if fewer than `least`."""
    sharp = tiles.sharp >= SHARP
    if np.count_nonzero(sharp & (tiles.still >= STILL) | sharp & (tiles.calm >= CALM)) < least:
        return np.zeros_like(sharp)
    rendered = sharp & (tiles.still >= STILL) & (tiles.background >= BACKGROUND)
    scanned = sharp & (tiles.calm >= CALM) & (tiles.background >= SCANNED)
    scanned &= tiles.bright + tiles.dark >= BOTH
    level = tiles.level
    if eager:
        found = rendered | scanned
    else:
        found = _with_peers(rendered, level, RENDERED_LEVELS, RENDERED_PEERS)
        found |= _with_peers(scanned, level, SCANNED_LEVELS, SCANNED_PEERS)
        found |= _on_flats(rendered, tiles.still >= FLAT)
    if found.sum() < least:
        return np.zeros_like(found)
    alike = rendered | scanned
    found = _completed(found, tiles, alike)
    if found.mean() < PARTLY and alike.sum() >= MOSTLY * sharp.sum():  # a document
        found = _completed(found | alike, tiles, alike)
    return found


def _completed(found: Mask, tiles: _Tiles, alike: Mask) -> Mask:
    """The tiles found, with those that adjoin them and resemble text, flats or frames."""
    parts = alike | (tiles.sharp >= EDGE) & (tiles.calm >= SMOOTH)
    drawn = (tiles.still >= STILL) | (tiles.still >= DITHERED) & (tiles.calm == TILE**2)
    found = _grown(found, parts | drawn, most=2)
    found = _grown(found, drawn, most=sum(found.shape))
    found |= dilated(found) & (tiles.sharp >= ACROSS) & (tiles.calm >= FRAMED)
    for _ in range(CLOSINGS):
        found |= _set_around(found) >= ENCLOSED
    return found


def _outlined(tiles: _Tiles) -> Mask:
    """The tiles of white type with a dark outline, which stands upon photographs."""
    likely = (tiles.sharp >= OUTLINED) & (tiles.still >= OUTLINED_STILL)
    likely &= (tiles.high >= WHITE) & (tiles.low <= BLACK)
    likely &= tiles.bright + tiles.dark >= OUTLINED_BOTH
    found = _with_peers(likely, tiles.level, 255, OUTLINED_PEERS)
    if np.count_nonzero(found) < LEAST:
        return np.zeros_like(found)
    return found | dilated(found) & (tiles.sharp >= ACROSS)


def _like_noisy_text(tiles: _Tiles) -> Mask:
    """The tiles that could be text in noise; so could some of a photograph."""
    background, ink = tiles.background, np.minimum(tiles.bright, tiles.dark)
    like = (tiles.sharp >= SHARP) & (tiles.calm >= NOISY_CALM) & (ink <= NOISY_INK)
    found: Mask = like & (background >= NOISY_BACKGROUND)
    return found


def shape_of(picture: Image.Image) -> tuple[int, int]:
    """The number of rows and columns of tiles."""
    return -(-picture.height // TILE), -(-picture.width // TILE)


def _measured(picture: Image.Image | Pixels) -> _Tiles:
    """The tiles of a picture, in strips, as the pixels of a Pillow image are copied."""
    height, width = arrays.size_of(picture)
    rows = max(1, STRIP // (TILE * width))
    found = []
    for top in range(0, height, TILE * rows):
        below = min(top + TILE * rows, height)
        strip = arrays.part_of(picture, 0, top, width, min(below + 1, height))
        found.append(kernel.tiles(strip, -(-(below - top) // TILE), SHARP))
    return _Tiles(*(found[0] if len(found) == 1 else np.concatenate(found, 1)))


def _with_peers(tiles: Mask, level: npt.NDArray[np.int16], tolerance: int, least: int) -> Mask:
    """The tiles with enough neighbours of a similar background."""
    if tiles.sum() < least:
        return np.zeros_like(tiles)
    rows, columns = tiles.shape
    around = np.pad(np.where(tiles, level, -256).astype(np.int16), WINDOW, constant_values=-256)
    peers = np.zeros(tiles.shape, np.uint8)
    for down in range(2 * WINDOW + 1):
        for right in range(2 * WINDOW + 1):
            other = around[down : down + rows, right : right + columns]
            peers += np.abs(other - level) <= tolerance
    return tiles & (peers >= least)


def _on_flats(tiles: Mask, flat: Mask) -> Mask:
    """The tiles among many flat ones, as of sparse graphics."""
    if not tiles.any():
        return tiles
    rows, columns = tiles.shape
    around, peers = np.pad(flat, WINDOW), np.zeros(tiles.shape, np.uint8)
    for down in range(2 * WINDOW + 1):
        for right in range(2 * WINDOW + 1):
            peers += around[down : down + rows, right : right + columns]
    return tiles & (peers >= FLAT_PEERS)


def _grown(found: Mask, allowed: Mask, most: int) -> Mask:
    """The tiles found, grown by up to that many rings of allowed tiles."""
    for _ in range(most):
        grown = found | dilated(found) & allowed
        if np.array_equal(grown, found):
            break
        found = grown
    return found


def _set_around(mask: Mask) -> npt.NDArray[np.uint8]:
    """How many of the eight neighbours of each tile are set; the border is replicated."""
    padded = np.pad(mask, 1, mode="edge").astype(np.uint8)
    high = padded[:-2] + padded[1:-1] + padded[2:]
    around: npt.NDArray[np.uint8] = high[:, :-2] + high[:, 1:-1] + high[:, 2:] - mask
    return around


def dilated(mask: Mask) -> Mask:
    """A dilation by one tile in all eight directions."""
    wide = mask.copy()
    wide[1:] |= mask[:-1]
    wide[:-1] |= mask[1:]
    high = wide.copy()
    high[:, 1:] |= wide[:, :-1]
    high[:, :-1] |= wide[:, 1:]
    return high
