"""Synthetic brain MRI slices: formulas for the geometry and contrast of one slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from brainmri_core.arrays import F32, F64, U8, Mask

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Subject:
    """One synthetic subject: what all its slices share.

    Attributes
    ----------
    label : str
        Class.
    plane : str
        Plane of all its slices.
    seed : tuple of int
        Seed of shape, contrast and tumour.
    size : tuple of int
        Width and height of its images in pixels.
    """

    label: str
    plane: Plane
    seed: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class Scanner:
    """How the images of a site look, whatever the subject.

    Attributes
    ----------
    gamma, noise, brightness : float
        Factors of the exponent of the gray levels, of the noise, and of the brightest gray level.
    voxel : float
        Side of a measured voxel, in pixels of the image.
    head : tuple of float
        Factors of the head's width and height.
    """

    gamma: float = 1.0
    noise: float = 1.0
    brightness: float = 1.0
    voxel: float = 1.0
    head: tuple[float, float] = (1.0, 1.0)


FIRST_SCANNER = Scanner()


@dataclass(frozen=True)
class Slice:
    """One rendered slice: uint8 pixels ``(H, W)`` and a bool tumour mask of the same shape."""

    pixels: U8
    tumour: Mask


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> F32:
    """Return smooth noise of zero mean and unit standard deviation with about `cells` cells across."""
    low = rng.standard_normal((cells, cells)).astype(np.float32)
    image = Image.fromarray(low).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    field = np.asarray(image, np.float32)
    unit: F32 = (field - field.mean()) / (field.std() + np.float32(1e-6))
    return unit


def _soft(distance: F32, width: float) -> F32:
    """Return a soft step: 1 where the signed distance is negative, 0 where positive."""
    step: F32 = np.clip(0.5 - distance / np.float32(2 * width), 0, 1).astype(np.float32)
    return step


def _ellipse(x: F32, y: F32, cx: float, cy: float, a: float, b: float, angle: float = 0.0) -> F32:
    """Return the signed distance (roughly) to a rotated ellipse, negative inside."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = (
        (x - np.float32(cx)) * cos + (y - np.float32(cy)) * sin,
        (y - np.float32(cy)) * cos - (x - np.float32(cx)) * sin,
    )
    radius: F32 = np.sqrt((u / np.float32(a)) ** 2 + (v / np.float32(b)) ** 2)
    return (radius - 1) * np.float32(min(a, b))


def _blend(image: F32, mask: F32, value: F32 | float) -> F32:
    return image * (1 - mask) + mask * np.asarray(value, np.float32)


def render(subject: Subject, number: int, slices: int, scanner: Scanner = FIRST_SCANNER) -> Slice:
    """Render one slice of a subject.

    Parameters
    ----------
    subject : Subject
        The subject; its seed decides shape, contrast and tumour.
    number, slices : int
        Index of the slice, and number of slices; neighbouring slices look alike.
    scanner : Scanner
        Scanner of the site.
    """
    body = np.random.default_rng((*subject.seed, 0))
    own = np.random.default_rng((*subject.seed, 1, number))
    width, height = subject.size
    depth = (number - (slices - 1) / 2) / max(slices, 2)
    angle = body.normal(0, 0.05) + own.normal(0, 0.045)
    zoom = (1.0 - 0.22 * depth * depth - 0.05 * depth) * body.uniform(0.94, 1.04)
    x, y = _coordinates(width, height, angle, zoom, own.normal(0, 0.02, 2))
    x, y = x / np.float32(scanner.head[0]), y / np.float32(scanner.head[1])
    t2 = body.random() < 0.2
    texture = [_noise(body, (height, width), cells) for cells in (9, 22, 40)]
    fresh = [_noise(own, (height, width), cells) for cells in (9, 22, 40)]
    mix = np.float32(0.75)
    fields = [mix * a + np.float32(np.sqrt(1 - mix**2)) * b for a, b in zip(texture, fresh, strict=True)]
    image, brain = _HEADS[subject.plane](x, y, body, depth, fields, t2)
    tumour = np.zeros_like(image)
    if subject.label != "notumor":
        image, tumour = _TUMOURS[subject.label](
            image, brain, x, y, subject.plane, body, own, depth, fields, t2
        )
    bias = 1 + np.float32(0.12) * (body.normal() * x + body.normal() * y + body.normal() * x * y)
    image = np.clip(image * np.clip(bias, 0.6, 1.4), 0, None)
    sigma = body.uniform(0.012, 0.035) * scanner.noise
    real = image + own.normal(0, sigma, image.shape).astype(np.float32)
    imaginary = own.normal(0, sigma, image.shape).astype(np.float32)
    magnitude = np.sqrt(real**2 + imaginary**2) ** np.float32(body.uniform(0.85, 1.15) * scanner.gamma)
    scaled = _measured(magnitude, scanner.voxel) * np.float32(body.uniform(205, 255) * scanner.brightness)
    return Slice(np.clip(scaled, 0, 255).astype(np.uint8), tumour > 0.5)


def _measured(image: F32, voxel: float) -> F32:
    """Return an image with the resolution of larger voxels, at its old size."""
    if voxel == 1:
        return image
    height, width = image.shape
    size = (round(width / voxel), round(height / voxel))
    few = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    return np.asarray(few.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _coordinates(width: int, height: int, angle: float, zoom: float, shift: F64) -> tuple[F32, F32]:
    side = min(width, height) / 2
    columns = (np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)) / np.float32(side)
    rows = (np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2)) / np.float32(side)
    x, y = np.meshgrid(columns - np.float32(shift[0]), rows - np.float32(shift[1]))
    cos, sin = np.float32(np.cos(angle) / zoom), np.float32(np.sin(angle) / zoom)
    return x * cos + y * sin, y * cos - x * sin


def _tissue(inside: F32, radius: F32, fields: list[F32], t2: bool) -> F32:
    """Return gray and white matter with folds: dark sulci near the surface, white matter within."""
    large, middle, fine = fields
    white, grey, fluid = (0.36, 0.5, 0.85) if t2 else (0.56, 0.42, 0.12)
    ribbon = _soft(np.float32(0.72) + 0.06 * middle + 0.03 * fine - radius, 0.06)
    tissue = np.float32(white) + np.float32(grey - white) * ribbon + 0.02 * large + 0.015 * fine
    sulci = np.exp(-((middle / np.float32(0.16)) ** 2)) * np.clip((radius - np.float32(0.55)) * 3, 0, 1)
    gyri = (
        np.exp(-((fine / np.float32(0.14)) ** 2))
        * np.clip((radius - np.float32(0.7)) * 4, 0, 1)
        * np.float32(0.6)
    )
    return _blend(
        _blend(tissue, np.clip(sulci * inside, 0, 1) * np.float32(0.8), fluid),
        np.clip(gyri * inside, 0, 1),
        fluid,
    )


def _skull(x: F32, y: F32, cx: float, cy: float, a: float, b: float, wobble: F32) -> tuple[F32, F32, F32]:
    """Return the head with scalp, bone and fluid, the soft mask of the brain, and the radius within the brain (1: edge)."""
    scalp = _ellipse(x, y, cx, cy, a, b) + wobble
    image = 0.72 * _soft(scalp, 0.012)
    image = _blend(image, _soft(scalp + 0.05, 0.012), 0.05)
    image = _blend(image, _soft(scalp + 0.105, 0.01), 0.16)
    inside = _soft(scalp + 0.12, 0.012)
    radius: F32 = np.clip(1 + (scalp + np.float32(0.12)) / np.float32(min(a, b) - 0.12), 0, 2)
    return image.astype(np.float32), inside, radius


def _axial(
    x: F32, y: F32, body: np.random.Generator, depth: float, fields: list[F32], t2: bool
) -> tuple[F32, F32]:
    a, b = body.uniform(0.7, 0.78), body.uniform(0.86, 0.94)
    image, brain, radius = _skull(x, y, 0, 0, a, b, 0.012 * fields[0])
    image = _blend(image, brain, _tissue(brain, radius, fields, t2))
    fluid = 0.88 if t2 else 0.1
    fissure = np.exp(-(((x + 0.01 * fields[0]) / np.float32(0.012)) ** 2)) * np.clip(
        np.abs(y) * 2.2 - 0.5, 0, 1
    )
    image = _blend(image, np.clip(fissure, 0, 1) * brain * np.float32(0.8), fluid)
    size = body.uniform(0.75, 1.2) * (1 - 0.8 * abs(depth))
    for side in (-1, 1):
        horn = _ellipse(x, y, side * 0.10, -0.14 + 0.1 * depth, 0.055 * size, 0.19 * size, side * 0.32)
        back = _ellipse(x, y, side * 0.15, 0.2 + 0.1 * depth, 0.05 * size, 0.16 * size, -side * 0.42)
        image = _blend(image, np.maximum(_soft(horn, 0.012), _soft(back, 0.012)), fluid)
        nucleus = _ellipse(x, y, side * 0.21, -0.02, 0.09, 0.15, side * 0.25)
        image = _blend(image, _soft(nucleus, 0.03) * np.float32(0.5), 0.44)
    return image, brain


def _coronal(
    x: F32, y: F32, body: np.random.Generator, depth: float, fields: list[F32], t2: bool
) -> tuple[F32, F32]:
    a, b = body.uniform(0.74, 0.8), body.uniform(0.76, 0.82)
    neck = _ellipse(x, y, 0, 0.95, 0.55, 0.55) + 0.03 * fields[0]
    base = 0.42 * _soft(neck, 0.02) * (0.8 + 0.1 * np.tanh(fields[1]))
    image, brain, radius = _skull(x, y, 0, -0.14, a, b, 0.012 * fields[0])
    outside = 1 - _soft(_ellipse(x, y, 0, -0.14, a, b), 0.012)
    image = np.maximum(image, (base * outside).astype(np.float32))
    floor = _soft(0.36 + 0.1 * np.cos(x * 7) + 0.02 * fields[0] - y, 0.03)
    brain = brain * (1 - floor)
    image = _blend(
        image, floor * _soft(_ellipse(x, y, 0, -0.14, a - 0.05, b - 0.05), 0.02), 0.3 + 0.08 * fields[1]
    )
    image = _blend(image, brain, _tissue(brain, radius, fields, t2))
    fluid = 0.88 if t2 else 0.1
    fissure = np.exp(-(((x + 0.01 * fields[0]) / np.float32(0.013)) ** 2)) * np.clip(-y * 2.4 - 0.4, 0, 1)
    image = _blend(image, np.clip(fissure, 0, 1) * brain, fluid)
    size = body.uniform(0.75, 1.2) * (1 - 0.6 * abs(depth))
    for side in (-1, 1):
        horn = _ellipse(x, y, side * 0.11, -0.2, 0.13 * size, 0.055 * size, side * 0.5)
        sylvian = _ellipse(x, y, side * 0.5, 0.02, 0.17, 0.022, side * 0.45)
        image = _blend(image, _soft(horn, 0.012), fluid)
        image = _blend(image, _soft(sylvian, 0.012) * brain * np.float32(0.8), fluid)
    third = _ellipse(x, y, 0, 0.0, 0.018, 0.09)
    stem = _ellipse(x, y, 0, 0.38, 0.13, 0.26)
    image = _blend(image, _soft(stem, 0.02), 0.47 if not t2 else 0.42)
    return _blend(image, _soft(third, 0.01), fluid), brain


def _sagittal(
    x: F32, y: F32, body: np.random.Generator, depth: float, fields: list[F32], t2: bool
) -> tuple[F32, F32]:
    a, b = body.uniform(0.84, 0.9), body.uniform(0.68, 0.74)
    face = _ellipse(x, y, -0.42, 0.5, 0.34, 0.52, 0.1) + 0.04 * fields[0]
    nose = _ellipse(x, y, -0.8, 0.38, 0.12, 0.1, -0.5)
    neck = _ellipse(x, y, 0.32, 0.92, 0.34, 0.62, -0.12)
    below = np.maximum(np.maximum(_soft(face, 0.015), _soft(nose, 0.015)), _soft(neck, 0.015))
    base: F32 = (below * (0.4 + 0.07 * np.tanh(fields[1]))).astype(np.float32)
    air = _ellipse(x, y, -0.38, 0.52, 0.2, 0.06, 0.15)
    base = _blend(base, _soft(air, 0.02), 0.03)
    image, brain, radius = _skull(x, y, 0.02, -0.2, a, b, 0.012 * fields[0])
    outside = 1 - _soft(_ellipse(x, y, 0.02, -0.2, a, b), 0.012)
    image = np.maximum(image, (base * outside).astype(np.float32))
    floor = _soft(0.2 - 0.16 * np.tanh(4 * (x + 0.1)) * -1 + 0.02 * fields[0] - y, 0.025)
    brain = brain * (1 - floor)
    bone = floor * _soft(_ellipse(x, y, 0.02, -0.2, a - 0.05, b - 0.05), 0.02)
    image = _blend(image, bone, 0.22 + 0.1 * fields[1])
    image = _blend(image, brain, _tissue(brain, radius, fields, t2))
    fluid = 0.88 if t2 else 0.1
    arc = _ellipse(x, y, 0.02, -0.12, 0.34, 0.2)
    callosum = np.exp(-((arc / np.float32(0.028)) ** 2)) * np.clip(-(y + 0.1) * 14, 0, 1)
    image = _blend(image, np.clip(callosum, 0, 1), 0.66 if not t2 else 0.3)
    ventricle = _ellipse(x, y, 0.0, -0.15, 0.24, 0.08)
    image = _blend(image, _soft(ventricle, 0.02) * np.float32(0.9), fluid)
    thalamus = _ellipse(x, y, 0.04, -0.06, 0.15, 0.08)
    image = _blend(image, _soft(thalamus, 0.02), 0.47)
    stem = _ellipse(x, y, 0.2, 0.34, 0.095, 0.42, -0.16)
    image = _blend(image, _soft(stem, 0.015), 0.5)
    pons = _ellipse(x, y, 0.13, 0.2, 0.11, 0.12)
    image = _blend(image, _soft(pons, 0.015), 0.52)
    cerebellum = _ellipse(x, y, 0.46, 0.24, 0.24, 0.2, 0.25)
    leaves = 0.45 + 0.16 * np.sin(26 * np.hypot(x - 0.3, y - 0.2) + 1.5 * fields[0])
    image = _blend(image, _soft(cerebellum, 0.015), leaves)
    sella = _ellipse(x, y, -0.08, 0.26, 0.05, 0.035)
    return _blend(image, _soft(sella, 0.015), 0.5), brain


_HEADS = {"axial": _axial, "coronal": _coronal, "sagittal": _sagittal}


def _lobed(
    x: F32, y: F32, cx: float, cy: float, radius: float, rng: np.random.Generator, rough: float
) -> F32:
    """Return the signed distance to a blob whose radius varies with the angle."""
    theta = np.arctan2(y - np.float32(cy), x - np.float32(cx))
    wave = sum(
        rng.normal(0, rough / k) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)).astype(np.float32)
        for k in range(2, 7)
    )
    distance: F32 = np.hypot(x - np.float32(cx), y - np.float32(cy)).astype(np.float32)
    return distance - np.float32(radius) * (1 + np.asarray(wave, np.float32))


def _glioma(
    image: F32, brain: F32, x: F32, y: F32, plane: Plane, body: np.random.Generator, own: np.random.Generator,
    depth: float, fields: list[F32], t2: bool,
) -> tuple[F32, F32]:  # fmt: skip
    """Draw an irregular ring-enhancing mass inside the brain, with a necrotic core and oedema."""
    side = body.choice([-1, 1])
    cy = {
        "axial": body.uniform(-0.4, 0.42),
        "coronal": body.uniform(-0.45, 0.02),
        "sagittal": body.uniform(-0.55, -0.15),
    }[plane]
    cx = side * body.uniform(0.2, 0.4)
    radius = body.uniform(0.13, 0.25) * (1 - 0.6 * depth * depth) + own.normal(0, 0.006)
    shape = np.random.default_rng(int(body.integers(2**31)))
    distance = _lobed(x, y, cx, cy, radius, shape, 0.28) + 0.02 * fields[1]
    oedema = _soft(distance - 0.09 - 0.03 * fields[0], 0.06) * brain
    image = _blend(image, oedema * np.float32(0.75), 0.72 if t2 else 0.27)
    tumour = _soft(distance, 0.012) * brain
    ring = np.clip(0.84 + 0.12 * fields[1], 0.55, 1.0)
    image = _blend(image, tumour, ring * body.uniform(0.65, 1.05))
    core = _soft(distance + radius * body.uniform(0.25, 0.42) + 0.025 * fields[2], 0.015) * brain
    return _blend(image, core, np.clip((0.8 if t2 else 0.17) + 0.06 * fields[1], 0, 1)), tumour


def _meningioma(
    image: F32, brain: F32, x: F32, y: F32, plane: Plane, body: np.random.Generator, own: np.random.Generator,
    depth: float, fields: list[F32], t2: bool,
) -> tuple[F32, F32]:  # fmt: skip
    """Draw a bright homogeneous smooth mass that sits on the dura, with a dural tail."""
    low, high = {
        "axial": (0, 2 * np.pi),
        "coronal": (1.05 * np.pi, 1.95 * np.pi),
        "sagittal": (1.1 * np.pi, 1.9 * np.pi),
    }[plane]
    theta = body.uniform(low, high)
    centre = {
        "axial": (0.0, 0.0, 0.58, 0.72),
        "coronal": (0.0, -0.14, 0.6, 0.6),
        "sagittal": (0.02, -0.2, 0.7, 0.5),
    }[plane]
    cx, cy = centre[0] + centre[2] * np.cos(theta), centre[1] + centre[3] * np.sin(theta)
    radius = body.uniform(0.13, 0.24) * (1 - 0.6 * depth * depth) + own.normal(0, 0.006)
    shape = np.random.default_rng(int(body.integers(2**31)))
    distance = _lobed(x, y, float(cx), float(cy), radius, shape, 0.05)
    tumour = _soft(distance, 0.012) * brain
    image = _blend(image, _soft(distance - 0.025, 0.02) * brain * np.float32(0.6), 0.8 if t2 else 0.16)
    image = _blend(image, tumour, body.uniform(0.66, 1.0) + 0.015 * fields[1])
    edge = np.exp(-(((brain - 0.5) / np.float32(0.35)) ** 2)) * _soft(distance - 0.16, 0.05)
    return _blend(image, np.clip(edge, 0, 1) * np.float32(0.55), 0.9), tumour


def _pituitary(
    image: F32, brain: F32, x: F32, y: F32, plane: Plane, body: np.random.Generator, own: np.random.Generator,
    depth: float, fields: list[F32], t2: bool,
) -> tuple[F32, F32]:  # fmt: skip
    """Draw a bright midline mass at the sella."""
    cx, cy = {"axial": (0.0, -0.06), "coronal": (0.0, 0.27), "sagittal": (-0.08, 0.2)}[plane]
    radius = body.uniform(0.085, 0.155) * (1 - 0.5 * depth * depth) + own.normal(0, 0.004)
    shape = np.random.default_rng(int(body.integers(2**31)))
    stretch = np.float32(body.uniform(0.8, 1.15))
    distance = _lobed(x, (y - np.float32(cy)) * stretch + np.float32(cy), cx, cy, radius, shape, 0.08)
    image = _blend(image, _soft(distance - 0.03, 0.02) * np.float32(0.7), 0.8 if t2 else 0.12)
    tumour = _soft(distance, 0.012)
    return _blend(image, tumour, body.uniform(0.6, 0.95) + 0.04 * fields[1]), tumour


_TUMOURS = {"glioma": _glioma, "meningioma": _meningioma, "pituitary": _pituitary}
