"""Drawing of heat maps, and small grey versions of images."""

import numpy as np

from vision.preprocess.pictures import to_rgb


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lays a heat map over an image.

    Args:
      image: uint8 [H, W, C].
      heat: float32 [H, W] in 0 … 1. Where it is 0, the image is shown in grey.

    Returns:
      uint8 [H, W, 3].
    """
    from matplotlib import colormaps

    # Draw colour on grey, so that the image's own colours are not mistaken for heat.
    grey = to_rgb(image).astype(np.float32).mean(axis=-1, keepdims=True)
    colour = colormaps['turbo'](heat)[..., :3].astype(np.float32) * 255
    strength = 0.65 * heat[..., None]
    return np.rint(grey * (1 - strength) + colour * strength).astype(np.uint8)


def grey(image: np.ndarray, side: int) -> np.ndarray:
    """Shrinks an image uint8 [H, W, C] to float32 grey [side, side] by averaging.

    The aspect ratio is not kept.
    """
    from PIL import Image

    small = Image.fromarray(to_rgb(image)).convert('L').resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float32)
