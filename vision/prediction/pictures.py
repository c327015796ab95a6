"""Heat maps laid over images, and images that are small and grey."""

import numpy as np

from vision.preprocess.pictures import to_rgb


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lays a heat map over an image.

    Args:
      image: uint8 [H, W, C].
      heat: float32 [H, W] in 0 … 1; where it is 0 the image is as it was, but grey.

    Returns:
      uint8 [H, W, 3].
    """
    from matplotlib import colormaps

    grey = to_rgb(image).astype(np.float32).mean(axis=-1, keepdims=True)
    colour = colormaps['turbo'](heat)[..., :3].astype(np.float32) * 255
    strength = 0.65 * heat[..., None]
    return np.rint(grey * (1 - strength) + colour * strength).astype(np.uint8)


def grey(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, C] → float32 [side, side], each the mean of its part, whatever the aspect."""
    from PIL import Image

    small = Image.fromarray(to_rgb(image)).convert('L').resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float32)
