"""Step 3, choose: the models by name, and the layers that they are made of.

`create_model('resnet50', num_classes=10)` returns a Flax module; `MODELS` has all names. A
user-defined model is an `ImageModel` built from `Conv`, `Dense`, `BatchNorm` and the pools, and the
config names it as 'my_module:MyNet'. The package `weights` reads weights of torchvision and timm;
the package `cpu` has faster forms of layers for CPUs.

Read first: `registry.py` (the models by name), `base.py` (the contract of models), `layers.py`, and
`lenet.py` as an example.
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.models.base import Endpoints, ImageModel, init_variables
    from vision.models.layers import (
        BatchNorm,
        Conv,
        Dense,
        adaptive_avg_pool,
        avg_pool,
        flatten,
        global_avg_pool,
        local_response_norm,
        max_pool,
        xla_only,
    )
    from vision.models.registry import MODELS, create_model, find_model
    from vision.models.summary import Summary, summarise
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
