"""VGG on ImageNet; the number of layers follows the colon.

Paper: Simonyan and Zisserman 2014 (arXiv:1409.1556), sections 3.1 (training, with Glorot's
initialisation) and 3.2 (dense evaluation).

    python -m experiments.train --config=configs/imagenet_vgg.py:16 --workdir=runs/vgg16
    … --config.data.data_dir=DIR     the prepared data set
    …:11  …:13  …:19

Result: not run here. Paper's error, top-1 / top-5, at one scale of 384 (`evals.dense_384`): 16
layers (D) 25.6 / 8.1 %, 19 layers (E) 25.5 / 8.0 %; at three scales (`evals.dense`): 24.8 / 7.5 %.
Cost: not measured; about 367,000 steps of batch 256 (paper: 370,000).
Deviations: 1 % of the training images is held out; the learning rate falls at 25, 50 and 65 epochs,
not by hand; checkpoints are selected on central crops of 384 pixels; biases are not decayed.
"""

from ml_collections import ConfigDict

from configs.imagenet import set_data
from vision.core.config import default_config
from vision.core.errors import unknown

_MODELS = {'11': 'vgg_a', '13': 'vgg_b', '16': 'vgg_d', '19': 'vgg_e'}


def get_config(depth: str = '16') -> ConfigDict:
    """Returns the config of the network with this number of layers."""
    if depth not in _MODELS:
        raise unknown('depth of imagenet_vgg.py', depth, _MODELS)
    config = default_config()
    config.model = ConfigDict({'name': _MODELS[depth]})
    set_data(config)
    config.preprocess.train = 'decode|scale_jitter(256, 512)|random_crop(224)|flip_lr|pca_noise'
    config.preprocess.eval = 'decode|resize_small(384)|central_crop(384)'
    config.preprocess.mean = (0.485, 0.456, 0.406)
    config.preprocess.std = (1 / 255,)  # the mean is subtracted in pixels
    config.evals.dense_384 = ConfigDict({'protocol': 'dense(384)'})
    config.evals.dense = ConfigDict({'protocol': 'dense(256, 384, 512)'})
    config.optimizer.lr = 0.01
    config.weight_decay = 5e-4
    config.schedule = ConfigDict({'name': 'step', 'warmup': '0 steps'})
    config.schedule.at = ('25 epochs', '50 epochs', '65 epochs')
    config.schedule.factor = 0.1
    config.training.batch_size = 256
    config.training.duration = '74 epochs'
    config.training.log_every = '100 steps'
    config.evaluation.batch_size = 32
    return config
