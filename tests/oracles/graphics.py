"""What `dynenc.imaging.graphics` finds, in numpy: the oracle of native/graphics.c and tiles.c."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from dynenc.imaging.graphics import dilated
from dynenc.native.kernel import Search

TILE = 16
Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

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
NOISY_TILES, NOISY_LEAST = 60, 10  # such tiles; those of the halved image taken for text


@dataclass(frozen=True, eq=False)
class _Tiles:
    """The statistics of an image's tiles, [rows, columns] each; see `dynenc_tiles`.

    Those after `sharp` are 0 of tiles with fewer than `SHARP` such pixels.
    """

    still: Counts
    calm: Counts
    sharp: Counts
    bright: Counts
    dark: Counts
    high: Counts
    low: Counts

    @property
    def background(self) -> Counts:
        """How many pixels are near the end of the levels where most are."""
        return np.maximum(self.bright, self.dark)

    @property
    def level(self) -> Counts:
        """The level at that end."""
        return np.where(self.bright > self.dark, self.high, self.low)


def statistics(pixels: npt.NDArray[np.uint8]) -> Counts:
    """What `dynenc_tiles` counts, tile by tile: [7, rows, columns]."""
    missing = [(0, -side % TILE) for side in pixels.shape[:2]]
    values = np.asarray(Image.fromarray(pixels).convert("L")).astype(int)
    values = np.pad(values, missing, mode="edge")
    change = np.zeros(values.shape, int)
    change[:, :-1] = abs(np.diff(values, axis=1))
    change[:-1] = np.maximum(change[:-1], abs(np.diff(values, axis=0)))
    rows, columns = (side // TILE for side in values.shape)
    found = np.zeros((7, rows, columns), int)
    for row, column in np.ndindex(rows, columns):
        place = np.s_[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        tile, moved = values[place], change[place]
        high, low = tile.max(), tile.min()
        near = (high - low) // 6
        counts = moved == 0, moved <= 8, moved >= 48, tile >= high - near, tile <= low + near
        found[:, row, column] = [*(each.sum() for each in counts), high, low]
    found[3:, found[2] < SHARP] = 0
    return found


def graphics(given: Counts, search: Search) -> tuple[Mask, int]:
    """What `kernel.find_graphics_tiles` finds by statistics [7, rows, columns]."""
    tiles = _Tiles(*given.astype(int))
    least = {Search.TEXT: LEAST, Search.EAGER: 1, Search.HALVED: NOISY_LEAST}[search]
    found = _found(tiles, least, eager=search is Search.EAGER)
    if search is not Search.HALVED:
        found |= _outlined(tiles)
    return found, np.count_nonzero(_like_noisy_text(tiles) & ~found)


def find(pixels: npt.NDArray[np.uint8], *, eager: bool = False) -> Mask:
    """The tiles of an image [H, W, 3] that hold text or graphics, and flats that adjoin them."""
    found, missed = graphics(statistics(pixels), Search.EAGER if eager else Search.TEXT)
    if missed < max(NOISY_TILES, found.sum() / 3):
        return found
    halved = np.asarray(Image.fromarray(pixels).reduce(2))  # with half the noise
    again, _ = graphics(statistics(halved), Search.HALVED)
    rows, columns = found.shape
    return found | again.repeat(2, 0).repeat(2, 1)[:rows, :columns]


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


def _with_peers(tiles: Mask, level: Counts, tolerance: int, least: int) -> Mask:
    """The tiles with enough neighbours of a similar background."""
    if tiles.sum() < least:
        return np.zeros_like(tiles)
    rows, columns = tiles.shape
    around = np.pad(np.where(tiles, level, -256), WINDOW, constant_values=-256)
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
