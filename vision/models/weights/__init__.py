"""Pretrained weights of torchvision and timm, read without torch, and folding of BatchNorm.

`load_pretrained` reads a file or a model of the Hugging Face hub into a model's variables.
`fold_batch_norm` folds batch normalisation into convolutions.

Read first: `pretrained.py`, `torch_names.py` (parameter names), `fold.py`.
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.models.weights.fold import FoldedModel, fold_batch_norm
    from vision.models.weights.pretrained import (
        IMAGENET_CLASSES,
        convert,
        load_pretrained,
        pretrained_input,
    )
    from vision.models.weights.state_dicts import read_state_dict
    from vision.models.weights.torch_names import TORCHVISION_MODELS
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
