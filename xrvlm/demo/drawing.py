"""Draw a bird: from attributes and a random generator to 64 x 64 pixels.

In its own frame the bird faces right: x along the body, y downwards, lengths in units of `scale` below. Siblings differ
in small parts. Pose, size, direction, light, clutter, twigs in front, blur and noise are nuisance factors.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 64                                # pixels of a picture
OVERSAMPLING = 2
PALETTE = {
    "red": (205, 45, 40), "orange": (235, 135, 35), "yellow": (235, 210, 60), "green": (60, 150, 70),
    "blue": (55, 95, 200), "purple": (130, 65, 160), "brown": (125, 80, 45), "black": (35, 35, 40),
    "white": (238, 238, 232), "grey": (140, 142, 146),
}
HEAD = (0.38, -0.27)
BREAST = (0.2, 0.07)
WING = (-0.13, -0.02)

# outlines, relative to the head
BEAKS = {
    "short": [(0.13, -0.06), (0.3, 0.02), (0.13, 0.09)],
    "long": [(0.13, -0.035), (0.62, 0.04), (0.13, 0.06)],
    "hooked": [(0.12, -0.09), (0.28, -0.07), (0.36, 0.04), (0.31, 0.17), (0.25, 0.05), (0.12, 0.07)],
    "flat": [(0.13, -0.02), (0.4, 0.0), (0.45, 0.06), (0.4, 0.1), (0.13, 0.09)],
}
CRESTS = {"no": [], "short": [(-0.16, -0.04), (-0.2, -0.2), (0.02, -0.13)],
          "tall": [(-0.15, -0.02), (-0.22, -0.46), (0.0, -0.13)]}
# outlines in the bird's frame; points with x < -0.5 move with the tail
TAILS = {
    "short": [[(-0.3, -0.1), (-0.58, -0.02), (-0.56, 0.12), (-0.3, 0.1)]],
    "long": [[(-0.3, -0.1), (-1.02, 0.16), (-1.0, 0.26), (-0.3, 0.1)]],
    "forked": [[(-0.3, -0.1), (-0.92, -0.16), (-0.6, 0.04), (-0.3, 0.06)],
               [(-0.3, -0.02), (-0.62, 0.08), (-0.9, 0.3), (-0.3, 0.12)]],
    "fan": [[(-0.3, -0.06), (-0.72, -0.3), (-0.82, 0.0), (-0.74, 0.28), (-0.3, 0.1)]],
}
BREAST_SPOTS = ((-0.1, -0.06), (0.0, -0.1), (0.1, -0.05), (-0.06, 0.05), (0.06, 0.04), (0.0, 0.13))
WING_SPOTS = ((-0.16, 0.0), (-0.06, -0.06), (0.04, 0.05), (0.12, -0.04), (-0.05, 0.06), (0.18, 0.02))

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


def draw(attributes: Mapping[str, str], rng: np.random.Generator) -> np.ndarray:
    """(64, 64, 3) uint8. Everything but `attributes` is drawn from `rng`."""
    picture = _background(rng)
    bird = _Bird(ImageDraw.Draw(picture), rng)
    _paint(bird, attributes, rng)
    if rng.random() < 0.35:
        _twig(bird.canvas, rng)
    picture = picture.reduce(OVERSAMPLING)
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7)))
    return _light(np.asarray(picture, dtype=np.float32), rng)


class _Bird:
    """A random pose: draws shapes that are given in the bird's frame."""

    def __init__(self, canvas: ImageDraw.ImageDraw, rng: np.random.Generator):
        side = SIZE * OVERSAMPLING
        self.canvas = canvas
        self.scale = side * rng.uniform(0.42, 0.56)
        self.facing = -1 if rng.random() < 0.5 else 1
        self.tilt = rng.normal(0, 0.22)
        self.centre = side * (0.5 + rng.uniform(-0.09, 0.09)), side * (0.52 + rng.uniform(-0.08, 0.08))

    def polygon(self, points: Points, colour: Colour) -> None:
        self.canvas.polygon(self._on_canvas(points), fill=colour)

    def line(self, points: Points, colour: Colour, width: float) -> None:
        self.canvas.line(self._on_canvas(points), fill=colour, width=max(1, round(width * self.scale)))

    def _on_canvas(self, points: Points) -> list[tuple[float, float]]:
        turned = _turn(points, self.tilt)
        return [(self.centre[0] + self.facing * self.scale * x, self.centre[1] + self.scale * y) for x, y in turned]


def _paint(bird: _Bird, attributes: Mapping[str, str], rng: np.random.Generator) -> None:
    """Draw from back to front: the wing covers the body, and the head covers the root of the beak."""
    colours = {part: _shade(PALETTE[attributes[part]], rng) for part in ("body", "wing", "head", "breast")}
    colours |= {part: _shade(PALETTE[attributes[part]], rng, 8) for part in ("beak_colour", "legs")}
    for x in (-0.02, 0.12):
        bird.line([(x, 0.2), (x - 0.02, 0.5), (x + 0.06, 0.52)], colours["legs"], 0.045)
    lift = rng.normal(0, 0.05)
    for outline in TAILS[attributes["tail"]]:
        moved = [(x, y + lift) if x < -0.5 else (x, y) for x, y in outline]
        bird.polygon(moved, _darker(colours["wing"], 0.8))
    bird.polygon(_ellipse(0, 0, 0.44, 0.27, 0.12), colours["body"])
    bird.polygon(_ellipse(*BREAST, 0.2, 0.19, 0.3), colours["breast"])
    _breast_pattern(bird, attributes["breast_pattern"], _mark(colours["breast"]))
    turn = rng.normal(0.25, 0.12)
    bird.polygon(_ellipse(*WING, 0.3, 0.15, turn), colours["wing"])
    _wing_pattern(bird, attributes["wing_pattern"], turn, _mark(colours["wing"]))
    if CRESTS[attributes["crest"]]:
        bird.polygon(_shift(CRESTS[attributes["crest"]], HEAD), colours["head"])
    bird.polygon(_shift(BEAKS[attributes["beak"]], HEAD), colours["beak_colour"])
    bird.polygon(_ellipse(*HEAD, 0.17, 0.16), colours["head"])
    eye = HEAD[0] + 0.06, HEAD[1] - 0.03
    bird.polygon(_ellipse(*eye, 0.045, 0.045, corners=10), (250, 250, 245))
    bird.polygon(_ellipse(*eye, 0.026, 0.026, corners=8), (10, 10, 10))


def _breast_pattern(bird: _Bird, pattern: str, colour: Colour) -> None:
    x, y = BREAST
    if pattern == "striped":
        for step in (-0.11, -0.03, 0.05, 0.13):
            bird.line([(x + step, y - 0.13), (x + step + 0.02, y + 0.14)], colour, 0.035)
    elif pattern == "spotted":
        for spot in _shift(BREAST_SPOTS, BREAST):
            bird.polygon(_ellipse(*spot, 0.032, 0.032, corners=8), colour)
    elif pattern == "banded":
        bird.line([(x - 0.17, y - 0.05), (x + 0.19, y + 0.03)], colour, 0.09)


def _wing_pattern(bird: _Bird, pattern: str, turn: float, colour: Colour) -> None:
    if pattern == "barred":
        for step in (-0.12, 0.0, 0.12):
            bird.line(_shift(_turn([(step, -0.12), (step + 0.02, 0.12)], turn), WING), colour, 0.04)
    elif pattern == "spotted":
        for spot in _shift(_turn(WING_SPOTS, turn), WING):
            bird.polygon(_ellipse(*spot, 0.03, 0.03, corners=8), colour)


def _background(rng: np.random.Generator) -> Image.Image:
    """A gradient with leaves and stalks of random colours."""
    side = SIZE * OVERSAMPLING
    top, bottom = rng.uniform(60, 215, (2, 3))
    share = np.linspace(0, 1, side)[:, None, None]
    rows = np.broadcast_to(top * (1 - share) + bottom * share, (side, side, 3))
    picture = Image.fromarray(rows.astype(np.uint8))
    canvas = ImageDraw.Draw(picture)
    for _ in range(rng.integers(4, 12)):
        colour, (x, y) = _any_colour(rng, 30, 235), rng.uniform(0, side, 2)
        if rng.random() < 0.5:
            long, short = rng.uniform(3, 14) * OVERSAMPLING, rng.uniform(2, 6) * OVERSAMPLING
            canvas.polygon(_ellipse(x, y, long, short, rng.uniform(0, 3), corners=10), fill=colour)
        else:
            reach = rng.normal(0, 25 * OVERSAMPLING, 2)
            canvas.line([x, y, x + reach[0], y + reach[1]], fill=colour,
                        width=int(rng.integers(1, 4)) * OVERSAMPLING)
    return picture


def _twig(canvas: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Something in front of the bird."""
    x, y = rng.uniform(0, SIZE * OVERSAMPLING, 2)
    reach = rng.normal(0, 45 * OVERSAMPLING, 2)
    canvas.line([x, y, x + reach[0], y + reach[1]], fill=_any_colour(rng, 30, 200),
                width=int(rng.integers(1, 4)) * OVERSAMPLING)


def _light(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Contrast, brightness, tint and sensor noise."""
    lit = (pixels - 128) * rng.uniform(0.75, 1.15) + 128 + rng.normal(0, 14)
    tinted = lit * (1 + rng.normal(0, 0.05, 3))
    noisy = tinted + rng.normal(0, rng.uniform(1, 7), pixels.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def _ellipse(x: float, y: float, long: float, short: float, turn: float = 0.0, corners: int = 18) -> Points:
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    outline = [(long * math.cos(angle), short * math.sin(angle)) for angle in angles]
    return _shift(_turn(outline, turn), (x, y))


def _turn(points: Points, angle: float) -> Points:
    cos, sin = math.cos(angle), math.sin(angle)
    return [(cos * x - sin * y, sin * x + cos * y) for x, y in points]


def _shift(points: Points, by: tuple[float, float]) -> Points:
    return [(x + by[0], y + by[1]) for x, y in points]


def _shade(colour: Colour, rng: np.random.Generator, spread: float = 14) -> Colour:
    red, green, blue = (int(np.clip(value + rng.normal(0, spread), 0, 255)) for value in colour)
    return red, green, blue


def _any_colour(rng: np.random.Generator, low: float, high: float) -> Colour:
    red, green, blue = (int(value) for value in rng.uniform(low, high, 3))
    return red, green, blue


def _darker(colour: Colour, share: float) -> Colour:
    red, green, blue = (int(value * share) for value in colour)
    return red, green, blue


def _mark(ground: Colour) -> Colour:
    """Light marks on dark feathers, dark ones on light."""
    return (245, 245, 240) if sum(ground) < 380 else (25, 25, 30)
