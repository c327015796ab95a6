"""VGG on ImageNet: Simonyan and Zisserman 2014, arXiv:1409.1556; the depth stands behind the colon.

Section 3.1: batch 256, rate .01 divided by 10 three times, momentum .9, weight decay 5e-4, dropout .5,
74 epochs (370,000 iterations), scale jitter in [256, 512], flips and colour shifts; Glorot's
initialisation, with which they found that no pre-training was needed. Section 3.2: dense evaluation.
The paper's error at one scale of 384, `evals.dense_384`: 25.6 / 8.1 % (16 layers, D), 25.5 / 8.0 % (19, E); at three,
`evals.dense`: 24.8 / 7.5 %.

    python -m experiments.train --config=configs/imagenet_vgg.py:16 --workdir=runs/vgg16 --config.data.data_dir=DIR
    …:11  …:13  …:19

What deviates: 1 % of the training images is held out (`imagenet.py`); the rate falls at 25, 50 and 65 epochs instead of by hand; selection looks at one scale
of 384, the middle of the image; only the channels' means are subtracted, in pixels; biases are not decayed. Not measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet
from vision.core.errors import unknown

_MODELS = {'11': 'vgg_a', '13': 'vgg_b', '16': 'vgg_d', '19': 'vgg_e'}


def get_config(depth: str = '16') -> ConfigDict:
    """The experiment with so many layers."""
    if depth not in _MODELS:
        raise unknown('depth of imagenet_vgg.py', depth, _MODELS)
    config = imagenet.get_config()
    config.model = ConfigDict({'name': _MODELS[depth]})
    config.preprocess.train = 'decode|scale_jitter(256, 512)|random_crop(224)|flip_lr|pca_noise'
    config.preprocess.eval = 'decode|resize_small(384)|central_crop(384)'
    config.preprocess.std = (1 / 255,)
    config.evals.dense_384 = ConfigDict({'protocol': 'dense(384)'})
    config.evals.dense = ConfigDict({'protocol': 'dense(256, 384, 512)'})
    config.optimizer.lr = 0.01
    config.weight_decay = 5e-4
    config.schedule = imagenet.step_schedule(('25 epochs', '50 epochs', '65 epochs'))
    config.training.duration = '74 epochs'
    config.evaluation.batch_size = 32
    return config
