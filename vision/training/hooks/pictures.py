"""Pictures for TensorBoard: what the model is fed, and what it says of validation images."""

from typing import Any

import jax
import numpy as np

from vision.core import processes
from vision.preprocess.device import Batch
from vision.task.base import Task
from vision.training.evaluator import Evaluator
from vision.training.hooks import Hook
from vision.training.recorder import Recorder, visible
from vision.training.step import Metrics

_TRAIN, _VALIDATION = 64, 32  # images of a grid
_TILE = 96  # pixels of a captioned image at least
_RIGHT, _WRONG = (60, 160, 60), (210, 50, 50)


class Pictures(Hook):
    """Shows the first training batch, and the first validation images with their labels."""

    def __init__(self, recorder: Recorder, evaluator: Evaluator, task: Task):
        """Takes what the pictures are written with, where they come from, and what captions them."""
        self._recorder, self._evaluator, self._task = recorder, evaluator, task

    def after_step(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Shows what was fed in the first step, of what this process holds."""
        if step == 1:
            images = _local(batch['image'])
            images = images.reshape(-1, *images.shape[-3:])  # views of one image are neighbours
            self._recorder.images('train/images', images[:_TRAIN], 0)

    def after_evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Shows the first validation images of process 0 with the task's captions."""
        if not processes.is_first():
            return
        batch, answers = self._evaluator.first['validation']
        images, ids = (_local(batch[k]) for k in ('image', 'id'))
        columns = jax.device_get(dict(answers))
        rows = {int(example): row for row, example in enumerate(columns['id'])}
        tiles = []
        for i in np.flatnonzero(ids >= 0)[:_VALIDATION]:
            caption, right = self._task.caption(columns, rows[int(ids[i])])
            tiles.append(captioned(images[i], caption, _RIGHT if right else _WRONG))
        self._recorder.images('validation/images', np.stack(tiles), step)


def captioned(image: np.ndarray, caption: str, color: tuple[int, int, int]) -> np.ndarray:
    """Writes a line below an image.

    Args:
      image: uint8 or float32 [H, W, C] in 0 … 255; small ones are enlarged.
      caption: cut to the width of the picture.
      color: RGB, of the line's background.

    Returns:
      uint8 [H', W', 3].
    """
    from PIL import Image, ImageDraw, ImageFont

    pixels = np.clip(np.round(np.asarray(image, np.float32)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(visible(pixels), (*pixels.shape[:2], 3)))
    times = max(1, -(-_TILE // min(picture.size)))
    picture = picture.resize(
        (picture.width * times, picture.height * times), Image.Resampling.NEAREST
    )
    font = ImageFont.load_default(11)
    if not caption.isascii():  # Pillow's own font has few other letters
        from vision.core import fonts

        font, caption = ImageFont.truetype(fonts.file_of(), 11), fonts.legible(caption)
    while caption and font.getlength(caption) > picture.width - 4:
        caption = caption[:-1]
    sheet = Image.new('RGB', (picture.width, picture.height + 15), color)
    sheet.paste(picture)
    ImageDraw.Draw(sheet).text((2, picture.height + 1), caption, (255, 255, 255), font)
    return np.asarray(sheet)


def _local(x: jax.Array) -> np.ndarray:
    """The first part of an array that this process holds."""
    return np.asarray(x.addressable_shards[0].data)
