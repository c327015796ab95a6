"""Step 2, preprocess: the loader, which turns a source and an op string into batches on devices.

`TrainBatches` and `EvalBatches` yield the batches of a split. Images in memory whose ops all have a
device form are augmented on the devices; all other images pass through tf.data on the host. An op
string such as 'resize(32)|flip_lr' names functions of the package `ops`.

Read first: `inputs.py` (the loader), `ops/registry.py` (the ops by name), `device.py` and
`pipeline.py` (the two routes).
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.preprocess.decode import read
    from vision.preprocess.device import normalise
    from vision.preprocess.inputs import EvalBatches, Loading, TrainBatches, examples, input_shape
    from vision.preprocess.statistics import channel_statistics
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
