"""How suspicious a film looks: simple measured scores that rank films for a person to go through.

The limits were set on 5,216 frontal films of children (Kermany et al., Cell 2018) and on phantoms:
nearly all untouched films stay under 0.5 on every score, planted defects rise above it. A score is
a reason to look at a film, never a verdict on it.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from openmed.films.chest import CHEST_PX, SIDES, likeness
from openmed.films.images import resize_film

REASONS = {
    "blank": "nothing to be seen",
    "inverted": "looks inverted (MONOCHROME1 not inverted)",
    "rotated": "looks rotated",
    "non_chest": "does not look like a frontal chest film",
    "cut": "large border, or lungs cut off",
    "exposure": "extreme exposure or little contrast",
    "blur": "blurred",
    "burned_in_text": "text burned into the film near its border",
}
"""The scores, each with what a high one says; of equal ones the first is named first."""

_TEXT_PX, _WORK_PX = 512, 256


def measure_quality(film: NDArray[np.uint8]) -> dict[str, float]:
    """Scores a film for each defect of `REASONS`, on copies of 512, 256 and 32 px at most.

    Orientation, polarity and content are told by the correlation of the ranks of a 32 x 32 copy
    with a drawn frontal chest, its turns and its cut halves; blur by how little of the detail a
    further blur takes away (Crete et al., "The blur effect", Proc. SPIE 6492, 2007); text by rows
    of thin strokes much brighter or darker than what they lie on.
    Of a film uint8 (H, W), 16 pixels a side or more.

    Returns:
        A score from 0 to 1 for each key of `REASONS`, 1 the most suspicious; 0.5 is the limit.
    """
    fine = _shrink(film, _TEXT_PX)
    work = _shrink(fine, _WORK_PX)
    small = resize_film(work, CHEST_PX)
    match = likeness(small)
    upright = match["upright"]
    turned = max(match[name] for name in ("90", "180", "270"))
    halved = max(match[side] for side in SIDES)
    # Inverted chests resemble turned ones a little, and turned ones inverted ones.
    fit = abs(upright)
    seen = max(*match.values(), -min(match.values()))
    blurred = _blur(work)
    contrast = float(small.std())
    scores = {
        "blank": _score(-contrast, -6, 1.5),
        "inverted": _score(-upright - turned, 0, 0.08),
        "rotated": _score(turned - fit, 0.06, 0.05),
        # Noise has more fine detail than any film.
        "non_chest": max(_score(-seen, -0.3, 0.05), _score(-blurred, -0.25, 0.03)),
        "cut": max(_score(halved - fit, 0.2, 0.05), _score(_border(work), 0.25, 0.04)),
        "exposure": _exposure(work),
        "blur": _score(blurred, 0.7, 0.02),
        "burned_in_text": _score(max(_text(fine), _text(cv2.bitwise_not(fine))), 4.5, 1),
    }
    if scores["blank"] > 0.5:
        # What is not there has no orientation.
        scores |= dict.fromkeys(("inverted", "rotated", "cut", "blur"), 0.0)
    return scores


def suspicion(scores: Mapping[str, float]) -> tuple[float, list[str]]:
    """Ranks a film by the worst score of `measure_quality`.

    Returns:
        The worst score, 0 to 1, and the names of the scores above 0.5, the worst first and nearly
        equal ones as in `REASONS`; where none is, the name of the worst alone.
    """
    names = sorted(REASONS, key=lambda name: -round(scores[name], 1))
    above = [name for name in names if scores[name] > 0.5]
    return max(scores[name] for name in REASONS), above or names[:1]


def _score(value: float, limit: float, scale: float) -> float:
    """0.5 at the limit, rising over about four scales to either side; never flat, so it ranks."""
    return float(1 / (1 + np.exp(-np.clip((value - limit) / scale, -30, 30))))


def _shrink(film: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """Shrinks each side to at most `side_px`; never enlarges, which would look like blur."""
    height, width = film.shape
    # Whole factors first: averaging over parts of pixels takes ten times as long.
    down, across = max(1, height // side_px), max(1, width // side_px)
    if down > 1 or across > 1:
        whole = film[: height // down * down, : width // across * across]
        film = cv2.resize(whole, (width // across, height // down), interpolation=cv2.INTER_AREA)
    size = (min(width // across, side_px), min(height // down, side_px))
    return film if film.shape == size[::-1] else cv2.resize(film, size, interpolation=cv2.INTER_LINEAR)


def _border(film: NDArray[np.uint8]) -> float:
    """Share of the film in flat black or white bands along its four sides."""
    tiny = resize_film(film, 64)
    left = [64, 64]
    for axis in (0, 1):
        means, spreads = tiny.mean(1 - axis), tiny.std(1 - axis)
        content = np.flatnonzero((spreads >= 6) | ((means >= 16) & (means <= 239)))
        left[axis] = content[-1] - content[0] + 1 if len(content) else 0
    return 1 - left[0] * left[1] / 64**2


def _exposure(film: NDArray[np.uint8]) -> float:
    """Too dark, too bright, too flat or saturated, in the middle two thirds of the film."""
    height, width = film.shape
    middle = film[height // 6 : height - height // 6, width // 6 : width - width // 6]
    shares = cv2.calcHist([middle], [0], None, [256], [0, 256]).ravel() / middle.size
    summed = np.cumsum(shares)
    spread = int(np.searchsorted(summed, 0.95)) - int(np.searchsorted(summed, 0.05))
    mean = float(shares @ np.arange(256))
    saturated = float(summed[3] + 1 - summed[251])
    return max(
        _score(-mean, -58, 5), _score(mean, 210, 5), _score(-spread, -28, 4), _score(saturated, 0.12, 0.02)
    )


def _blur(film: NDArray[np.uint8]) -> float:
    """The blur effect of Crete et al.: near 1 where blurring again changes nothing, 0 for noise."""
    pixels, worst = film.astype(np.int16) * 16, 0.0
    for axis, window in ((1, (9, 1)), (0, (1, 9))):
        steps, left = _steps(pixels, axis), _steps(cv2.blur(pixels, window), axis)
        lost = cv2.max(cv2.subtract(steps, left), 0)
        worst = max(worst, 1 - cv2.sumElems(lost)[0] / max(cv2.sumElems(steps)[0], 1))
    return worst


def _steps(pixels: np.ndarray, axis: int) -> np.ndarray:
    return cv2.absdiff(pixels[:, 1:], pixels[:, :-1]) if axis else cv2.absdiff(pixels[1:], pixels[:-1])


def _text(film: NDArray[np.uint8]) -> float:
    """Strokes a row of the line of bright text near the border that has the most; 0 without one.

    A side marker (R, L) has two or three. A stroke takes more than half of the brightness that its
    background leaves, so that ribs and tubes do not count.
    """
    ground = cv2.morphologyEx(film, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    rise = cv2.subtract(film, ground)
    strokes = cv2.bitwise_and(
        cv2.compare(rise, cv2.addWeighted(ground, -0.5, ground, 0, 128), cv2.CMP_GT),
        cv2.compare(rise, 20, cv2.CMP_GT),
    )
    lines = cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, np.ones((1, 9), np.uint8))
    lines = cv2.morphologyEx(lines, cv2.MORPH_OPEN, np.ones((3, 12), np.uint8))
    outlines, _ = cv2.findContours(lines, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    boxes = [cv2.boundingRect(outline) for outline in outlines]
    return max((_strokes(strokes, *box) for box in boxes if _like_text(box, film.shape)), default=0.0)


def _like_text(box: Sequence[int], shape: tuple[int, ...]) -> bool:
    """Tells a line of small text near a border from anything else by its box: x, y, width, height."""
    x, y, width, height = box
    across, down = (x + width / 2) / shape[1], (y + height / 2) / shape[0]
    return height <= 28 and width >= 2 * height and min(across, 1 - across, down, 1 - down) <= 0.3


def _strokes(strokes: np.ndarray, x: int, y: int, width: int, height: int) -> float:
    """Mean number of strokes that the busier half of a box's rows crosses."""
    part = strokes[y : y + height, x : x + width] > 0
    starts = (part[:, 1:] & ~part[:, :-1]).sum(1)
    return float(np.sort(starts)[-max(1, height // 2) :].mean())
