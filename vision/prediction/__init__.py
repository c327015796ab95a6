"""Step 6, predict: classify new images with a trained run or with pretrained weights.

A `Classifier` takes paths, encoded bytes, Pillow images and arrays, and returns probabilities,
features or heat maps. `export` writes its model as StableHLO, `explain_files` writes pictures of
heat maps, and `serve` starts the demo page.

Read first: `classifier.py`, `feed.py` (images in), `gradcam.py` (heat maps).
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.prediction.classifier import Classifier
    from vision.prediction.demo import serve
    from vision.prediction.explain import draw_heat_maps, explain_files
    from vision.prediction.feed import files
    from vision.prediction.gradcam import Explanation
    from vision.prediction.pages import Picture, write_page
    from vision.prediction.stablehlo import export
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
