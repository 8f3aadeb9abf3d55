"""The drawing of a phantom: shapes in film widths, the chest made of them, opacities, exposure."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.interpolate import CubicSpline

_SIDES = (-1, 1)


class Canvas:
    """Draws shapes given in film widths (0 to 1, y down) in the pose of one film."""

    def __init__(self, size_px: int, rng: np.random.Generator) -> None:
        self.size_px = size_px
        angle, scale = np.deg2rad(rng.normal(0, 1.6)), rng.normal(1, 0.02)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = 0.5 + rng.normal(0, 0.012, 2) - turn @ (0.5, 0.5)
        # Pixel i lies at (i + 0.5) / size_px, so that films of every size show the same place.
        self.matrix = np.column_stack([turn, shift]) * size_px - ((0, 0, 0.5), (0, 0, 0.5))
        back = cv2.invertAffineTransform(self.matrix)
        rows, columns = np.mgrid[:size_px, :size_px].astype(np.float32)
        self.x = (back[0, 0] * columns + back[0, 1] * rows + back[0, 2]).astype(np.float32)
        self.y = (back[1, 0] * columns + back[1, 1] * rows + back[1, 2]).astype(np.float32)

    def fill(self, *outlines: np.ndarray, blur: float) -> np.ndarray:
        """Returns float32 (S, S) in 0..1: the union of the outlines, its edges softened."""
        image = np.zeros((self.size_px, self.size_px), np.uint8)
        for outline in outlines:
            pixels = outline @ self.matrix[:, :2].T + self.matrix[:, 2]
            cv2.fillPoly(image, [np.round(pixels * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        return self.soften(image.astype(np.float32) / 255, blur)

    def soften(self, image: np.ndarray, blur: float) -> np.ndarray:
        """Blurs by a Gaussian of `blur` film widths."""
        sigma_px = max(blur * self.size_px, 0.3)
        return cv2.GaussianBlur(image, None, sigma_px, borderType=cv2.BORDER_REPLICATE)

    def texture(self, cells: int, rng: np.random.Generator) -> np.ndarray:
        """Returns smooth noise, about unit variance, that moves with the patient."""
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        x, y = self.x * cells, self.y * cells
        return cv2.remap(grid, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def _band(x: np.ndarray, y: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """Returns the outline (points, 2) of a band of that width along a line."""
    line = np.column_stack([x, y])
    along = np.diff(line, axis=0, append=line[-1:])
    along[-1] = along[-2]
    across = along[:, ::-1] * (-1, 1) / np.hypot(along[:, 0], along[:, 1])[:, None]
    offset = across * np.reshape(width, (-1, 1)) / 2
    return np.concatenate([line + offset, (line - offset)[::-1]])


def _closed(points: np.ndarray) -> np.ndarray:
    """Returns a smooth closed outline (48, 2) through the points."""
    knots = np.concatenate([points, points[:1]])
    return CubicSpline(range(len(knots)), knots, bc_type="periodic")(np.linspace(0, len(points), 48))


@dataclass(frozen=True)
class _Build:
    """Measures of one patient, in film widths: they tie lungs, ribs and opacities together."""

    chest: float  # greatest half width of the lungs
    apex: float
    domes: tuple[float, float]  # top of the diaphragm in the image left (over the liver, higher) and right
    heart: float  # how far the heart reaches to the image right of the midline

    def wall(self, y: np.ndarray | float) -> np.ndarray:
        """Distance of the chest wall from the midline at height y."""
        return self.chest * np.sqrt(np.clip(1 - ((0.86 - np.asarray(y)) / (0.86 - self.apex)) ** 2, 0, 1))


def _build(rng: np.random.Generator) -> _Build:
    right = rng.normal(0.70, 0.025)
    return _Build(
        chest=float(np.clip(rng.normal(0.375, 0.014), 0.34, 0.405)),
        apex=rng.normal(0.10, 0.012),
        domes=(right, right + rng.normal(0.025, 0.008)),
        heart=float(np.clip(rng.normal(0.20, 0.022), 0.15, 0.26)),
    )


def draw_anatomy(canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns the density (0 air to about 1) and how much of each pixel is aerated lung (0 to 1)."""
    build = _build(rng)
    body = canvas.fill(_torso(rng), blur=0.012)
    abdomen = canvas.fill(*_domes(build), blur=0.006)
    heart = canvas.fill(_heart(build, rng), blur=0.009)
    middle = canvas.fill(*_mediastinum(rng), blur=0.011)
    solid = 1 - (1 - abdomen) * (1 - heart) * (1 - middle)
    lungs = canvas.fill(*_lungs(build), blur=0.007) * (1 - solid)
    density = (0.46 + 0.12 * canvas.y) * canvas.soften(body, 0.03) * body * (1 - 0.66 * lungs)
    density += body * (0.15 * solid + 0.06 * middle * (1 - 0.8 * abdomen))
    density += body * (
        0.07 * canvas.fill(*_ribs(build, front=False), blur=0.004) * (1 - 0.6 * solid)
        + 0.04 * canvas.fill(*_ribs(build, front=True), blur=0.006) * (1 - 0.8 * solid)
    )
    density += body * (
        0.10 * canvas.fill(*_clavicles(rng), blur=0.005)
        + 0.05 * canvas.fill(*_scapulae(build), blur=0.01)
        + 0.05 * canvas.fill(*_vertebrae(), blur=0.004)
    )
    density += lungs * (
        rng.uniform(0.04, 0.08) * canvas.fill(*_vessels(rng), blur=0.005)
        + rng.uniform(0.04, 0.10) * canvas.fill(*_hila(rng), blur=0.022)
        + rng.uniform(0, 0.07) * canvas.fill(*_breasts(rng), blur=0.02)
    )
    density += lungs * (0.012 * canvas.texture(24, rng) + 0.010 * canvas.texture(60, rng))
    return density.astype(np.float32), lungs


def _mirrored(u: np.ndarray, y: np.ndarray, width: np.ndarray | float) -> list[np.ndarray]:
    """Returns a band on each side of the midline; u is the distance from it."""
    return [_band(0.5 + side * u, y, width) for side in _SIDES]


def _ellipse(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 30)
    return np.column_stack([x + half_width * np.cos(angle), y + half_height * np.sin(angle)])


def _torso(rng: np.random.Generator) -> np.ndarray:
    neck, slope = rng.normal(0.095, 0.008), rng.normal(0.10, 0.012)
    u = np.array([neck, neck, neck + 0.03, 0.30, 0.44, 0.53, 0.56, 0.475, 0.455, 0.455, 0.46])
    y = np.array([-0.1, 0, 0.045, slope, slope + 0.06, 0.24, 0.42, 0.44, 0.52, 0.7, 1.15])
    return np.column_stack([np.concatenate([0.5 - u, 0.5 + u[::-1]]), np.concatenate([y, y[::-1]])])


def _lungs(build: _Build) -> list[np.ndarray]:
    y = build.apex + (0.93 - build.apex) * np.linspace(0, 1, 40) ** 2  # dense where the apex is round
    walls = (np.column_stack([0.5 + side * build.wall(y), y]) for side in _SIDES)
    return [np.concatenate([wall, [(0.5, 0.93), (0.5, build.apex)]]) for wall in walls]


def _domes(build: _Build) -> list[np.ndarray]:
    u = np.linspace(-0.02, 0.6, 40)
    rise = np.where(u < 0.19, 1.5, 3.2) * (u - 0.19) ** 2
    floor = [(0.6, 1.2), (-0.02, 1.2)]
    halves = (np.concatenate([np.column_stack([u, top + rise]), floor]) for top in build.domes)
    return [half * (side, 1) + (0.5, 0) for half, side in zip(halves, _SIDES, strict=True)]


def _heart(build: _Build, rng: np.random.Generator) -> np.ndarray:
    tip, right = 0.49 + build.heart, 0.5 - rng.normal(0.085, 0.008)
    base = build.domes[1] + 0.03
    x = (0.46, 0.55, 0.5 + 0.6 * build.heart, tip, tip, 0.5, right + 0.01, right)
    y = (0.40, 0.41, 0.50, base - 0.09, base, base + 0.05, base, base - 0.12)
    return _closed(np.column_stack([x, y]))


def _mediastinum(rng: np.random.Generator) -> list[np.ndarray]:
    y = np.linspace(-0.05, 1.1, 24)
    width = np.interp(y, (0, 0.15, 0.3, 0.45, 1), (0.13, 0.115, 0.125, 0.13, 0.12)) * rng.normal(1, 0.06)
    knob = rng.normal(0.042, 0.004)  # the arch of the aorta
    return [_band(np.full(24, 0.497), y, width), _ellipse(0.545, 0.325, knob, 1.2 * knob)]


def _ribs(build: _Build, *, front: bool) -> list[np.ndarray]:
    """Returns nine pairs: behind they run down outwards, in front they run down inwards."""
    t, outlines = np.linspace(0, 1, 20), []
    for k, start in enumerate(np.linspace(build.apex + 0.03, 0.78, 9)):
        drop = 0.055 + 0.012 * k
        reach = float(build.wall(start + drop)) + 0.012
        if front:
            u = reach * (1 - 0.62 * t**1.3)
            y = start + drop + (0.10 + 0.008 * k) * np.sin(t * np.pi / 2) ** 0.9
        else:
            u = 0.03 + (reach - 0.03) * np.sin(t * np.pi / 2)
            y = start - 0.022 * np.sin(t * np.pi) + drop * t**2
        outlines += _mirrored(u, y, 0.021 + 0.004 * t)
    return outlines


def _clavicles(rng: np.random.Generator) -> list[np.ndarray]:
    t, drop = np.linspace(0, 1, 20), rng.normal(0.075, 0.012)
    y = 0.205 - drop * t - 0.014 * np.sin(t * 2 * np.pi)
    return _mirrored(0.04 + 0.33 * t, y, 0.028 - 0.006 * np.sin(t * np.pi))


def _scapulae(build: _Build) -> list[np.ndarray]:
    u = build.chest - 0.055 + np.array([0, 0.10, 0.12, 0.05, 0.03])
    y = np.array([0.20, 0.15, 0.24, 0.43, 0.44])
    return [np.column_stack([0.5 + side * u, y]) for side in _SIDES]


def _vertebrae() -> list[np.ndarray]:
    tops = np.arange(-0.02, 1.05, 0.062)
    return [_band(np.full(2, 0.497), np.array([top, top + 0.049]), 0.062) for top in tops]


def _hila(rng: np.random.Generator) -> list[np.ndarray]:
    outlines = []
    for side in _SIDES:
        size, y = rng.normal(0.04, 0.006), rng.normal(0.445, 0.012) - 0.012 * side
        outlines.append(_ellipse(0.5 + 0.10 * side, y, size, 1.6 * size))
    return outlines


def _vessels(rng: np.random.Generator) -> list[np.ndarray]:
    """Returns bands that leave the hila in all directions and taper."""
    t, outlines = np.linspace(0, 1, 14), []
    for side in _SIDES:
        for start in np.linspace(-1.25, 1.3, 11) + rng.normal(0, 0.1, 11):
            length, heading = rng.uniform(0.13, 0.27) * t, start + rng.normal(0, 0.4) * t
            x = 0.5 + side * (0.085 + length * np.cos(heading))
            outlines.append(_band(x, 0.445 + 1.15 * length * np.sin(heading), 0.014 * (1 - 0.8 * t)))
    return outlines


def _breasts(rng: np.random.Generator) -> list[np.ndarray]:
    y, size = rng.normal(0.66, 0.03), rng.normal(0.15, 0.02)
    return [_ellipse(0.5 + side * 0.22, y, size, 0.8 * size) for side in _SIDES]


def draw_opacities(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Returns the density that one to three soft, irregular opacities add; zero beyond their reach."""
    clear, turn = np.ones_like(canvas.x), np.linspace(-np.pi, np.pi, 65)
    mottle = np.clip(0.85 + 0.18 * canvas.texture(22, rng), 0.4, 1.2)
    sides = rng.permutation([-1, 1, rng.choice(_SIDES)]).tolist()
    for side in sides[: rng.choice(3, p=(0.5, 0.35, 0.15)) + 1]:
        y, size = rng.uniform(0.28, 0.62), rng.uniform(0.105, 0.165)
        inner = 0.15 + 0.25 * max(y - 0.45, 0) * (side + 1)  # keep clear of the heart
        dx = canvas.x - (0.5 + side * rng.uniform(inner, 0.27))
        dy = (canvas.y - y) / rng.uniform(0.9, 1.4)
        edge = 1 + sum(rng.normal(0, 0.28 / k) * np.cos(k * turn + rng.uniform(0, 6.3)) for k in range(2, 6))
        reach = np.interp(np.arctan2(dy, dx), turn, size * np.clip(edge, 0.6, 1.5)).astype(np.float32)
        depth = np.clip(1.35 * (1 - np.hypot(dx, dy) / reach), 0, 1)
        clear *= 1 - rng.uniform(0.36, 0.50) * depth * depth * (3 - 2 * depth) * mottle
    return 1 - clear


def expose(
    density: np.ndarray, canvas: Canvas, patient: np.random.Generator, film: np.random.Generator
) -> np.ndarray:
    """Returns the film in grey levels: uneven beam, response curve and grain."""
    gamma = float(np.exp(patient.normal(0, 0.14) + film.normal(0, 0.12)))
    gain, floor = film.normal(0.97, 0.05), patient.normal(0.03, 0.02) + film.normal(0, 0.015)
    tilt = film.normal(0, 0.04, 2).tolist()
    beam = 1 + tilt[0] * (canvas.x - 0.5) + tilt[1] * (canvas.y - 0.5)
    grain = canvas.soften(film.standard_normal(density.shape, dtype=np.float32), 0.003)
    signal = floor + gain * beam * np.clip(density, 0, 1.2) ** gamma + film.uniform(0.008, 0.014) * grain
    return np.clip(np.round(255 * signal), 0, 255).astype(np.uint8)
