"""Contact sheets: many clips on one picture, for a look at a glance.

Shape legend: T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_MARGIN = 12
_GAP = 4
_CAPTION_SIZE = 15
_BACKGROUND = (250, 250, 251)
_TEXT = (32, 36, 44)


def evenly_spaced(num_frames: int, count: int) -> list[int]:
    """Return `count` frame numbers from the first to the last of `num_frames`; all of them where there are fewer."""
    count = min(count, num_frames)
    return [round(i) for i in np.linspace(0, num_frames - 1, count)] if count > 0 else []


def frame_strip(frames: np.ndarray, count: int, scale: int = 1, gap: int = _GAP) -> Image.Image:
    """Return evenly spaced frames of a clip, uint8 [T, H, W, 3], side by side, each pixel `scale` pixels wide."""
    numbers = evenly_spaced(len(frames), count)
    _, height, width, _ = frames.shape
    strip = Image.new("RGB", (len(numbers) * (width * scale + gap) - gap, height * scale), _BACKGROUND)
    for place, number in enumerate(numbers):
        picture = Image.fromarray(frames[number]).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        strip.paste(picture, (place * (width * scale + gap), 0))
    return strip


def contact_sheet(rows: Sequence[tuple[str, np.ndarray]], frames_per_row: int, scale: int) -> Image.Image:
    """Return one picture with a row for each (caption, clip uint8 [T, H, W, 3]): caption above evenly spaced frames.

    Raises ValueError where there is no row.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one clip")
    font = ImageFont.load_default(size=_CAPTION_SIZE)
    strips = [frame_strip(frames, frames_per_row, scale) for _, frames in rows]
    width = max(strip.width for strip in strips)
    captions = [_wrap(caption, font, width) for caption, _ in rows]
    line_height = _CAPTION_SIZE + 5
    heights = [len(lines) * line_height + strip.height for lines, strip in zip(captions, strips, strict=True)]
    total = sum(heights) + _MARGIN * (len(rows) + 1)
    sheet = Image.new("RGB", (width + 2 * _MARGIN, total), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for lines, strip, height in zip(captions, strips, heights, strict=True):
        for number, line in enumerate(lines):
            draw.text((_MARGIN, top + number * line_height), line, fill=_TEXT, font=font)
        sheet.paste(strip, (_MARGIN, top + height - strip.height))
        top += height + _MARGIN
    return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break `text` into at most three lines no wider than `width` pixels; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    line = ""
    words = text.split()
    for number, word in enumerate(words):
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            if len(lines) == 2:
                return [*lines, _cut(" ".join([line, *words[number:]]), font, width)]
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, _cut(line, font, width)]


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Shorten `line` to `width` pixels, with an ellipsis where anything is cut."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line.rstrip() + "..."
