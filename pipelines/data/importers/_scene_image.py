"""Renders the picture of a scene: flat objects with a soft shadow, drawn four times as large and then shrunk."""

from __future__ import annotations

import colorsys
import io
import math

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pipelines.data.importers._scene import Scene, SceneObject

_PALETTE = {
    "red": "#e23b3b",
    "orange": "#f58b1f",
    "yellow": "#f6d02f",
    "green": "#38a854",
    "blue": "#2f6fe0",
    "purple": "#8a45c9",
    "pink": "#f27fb5",
    "black": "#2b2d38",
}
_OVERSAMPLING = 4


def render_scene(scene: Scene, size: int) -> bytes:
    """Render a scene as an RGB PNG of ``size`` x ``size`` pixels."""
    large = size * _OVERSAMPLING
    canvas = _draw_background(scene.ground, large)
    shadow = Image.new("L", canvas.size)
    for obj in scene.objects:
        mask, corner = _object_mask(obj, large)
        shadow.paste(90, corner, mask)
    shadow = ImageChops.offset(shadow.filter(ImageFilter.BoxBlur(0.014 * large)), 0, round(0.018 * large))
    canvas.paste("#3a3f58", (0, 0), shadow)
    for obj in scene.objects:
        mask, corner = _object_mask(obj, large)
        canvas.paste(_make_shaded_fill(_PALETTE[obj.color], mask.size), corner, mask)
    buffer = io.BytesIO()
    canvas.reduce(_OVERSAMPLING).save(buffer, "PNG")
    return buffer.getvalue()


def _draw_background(hue: float, large: int) -> Image.Image:
    top, bottom = (
        tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
        for saturation, value in ((0.05, 0.99), (0.13, 0.91))
    )
    blend = _make_vertical_gradient((large, large))
    return Image.composite(Image.new("RGB", blend.size, bottom), Image.new("RGB", blend.size, top), blend)


def _make_shaded_fill(color: str, size: tuple[int, int]) -> Image.Image:
    """Make an image of one colour that is a little lighter at the top than at the bottom."""
    base = Image.new("RGB", size, color)
    light = Image.blend(base, Image.new("RGB", size, "white"), 0.16)
    dark = Image.blend(base, Image.new("RGB", size, "black"), 0.10)
    return Image.composite(dark, light, _make_vertical_gradient(size))


def _make_vertical_gradient(size: tuple[int, int]) -> Image.Image:
    """Make a grey image that goes from 0 at the top to 255 at the bottom."""
    return Image.linear_gradient("L").resize(size, Image.Resampling.NEAREST)


def _object_mask(obj: SceneObject, large: int) -> tuple[Image.Image, tuple[int, int]]:
    """Make a mask of an object's filled outline within a square around it, and return the position of the square's top
    left corner on the canvas.
    """
    radius = obj.radius * large
    left, top = math.floor(obj.x * large - radius), math.floor(obj.y * large - radius)
    mask = Image.new("L", (math.ceil(2 * radius) + 1,) * 2)
    draw = ImageDraw.Draw(mask)
    x, y = obj.x * large - left, obj.y * large - top
    if obj.shape == "circle":
        radius *= 0.92
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    else:
        outline = _OUTLINES[obj.shape]
        draw.polygon([_rotate_point(x, y, radius * reach, degrees + obj.angle) for reach, degrees in outline], fill=255)
    return mask, (left, top)


def _rotate_point(x: float, y: float, radius: float, degrees: float) -> tuple[float, float]:
    return x + radius * math.sin(math.radians(degrees)), y - radius * math.cos(math.radians(degrees))


def _star_points() -> list[tuple[float, float]]:
    return [(1.0 if point % 2 == 0 else 0.46, 36.0 * point) for point in range(10)]


def _plus_sign_points(arm: float = 0.34) -> list[tuple[float, float]]:
    """Return the corners of a plus sign whose arms are ``arm`` of the radius wide to each side."""
    tip = math.degrees(math.asin(arm))
    return [
        corner
        for side in range(4)
        for corner in ((1.0, 90 * side - tip), (1.0, 90 * side + tip), (arm * math.sqrt(2), 90 * side + 45.0))
    ]


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(1.0, 45.0 + 90 * corner) for corner in range(4)],
    "triangle": [(1.0, 120.0 * corner) for corner in range(3)],
    "star": _star_points(),
    "cross": _plus_sign_points(),
}
"""Corners as (distance in radii, degrees clockwise from the top)."""
