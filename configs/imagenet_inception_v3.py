"""Inception-v3 on ImageNet.

Paper: Szegedy et al. 2015, "Rethinking the Inception architecture" (arXiv:1512.00567), sections 7
and 8. The epsilon of RMSProp is inside the root, as in TensorFlow.

    python -m experiments.train --config=configs/imagenet_inception_v3.py --workdir=runs/inception
    … --config.data.data_dir=DIR     the prepared data set

Result: not run here. Paper's error with one crop, top-1 / top-5: 21.2 / 5.6 %.
Cost: not measured; about 79,000 steps of batch 1600.
Deviations: 1 % of the training images is held out; one synchronous batch of 1600 replaces 50
asynchronous replicas of batch 32, with the paper's learning rate for one replica. Values from the
authors' code: momentum .9, weight decay 4e-5 (except biases and norms), an auxiliary loss weighted
by .4, an average with decay .9999, crops of at least 5 % of the area, brightness within .125,
saturation within .5.
"""

from ml_collections import ConfigDict

from configs.imagenet import set_data
from vision.core.config import default_config


def get_config() -> ConfigDict:
    """Returns the config of the experiment."""
    config = default_config()
    config.model = ConfigDict({'name': 'inception_v3'})
    set_data(config)
    config.preprocess.train = (
        'decode|random_resized_crop(299, area=(0.05, 1))|flip_lr|brightness(0.125)|saturation(0.5)'
    )
    config.preprocess.eval = 'decode|resize_small(342)|central_crop(299)'
    config.preprocess.mean = config.preprocess.std = (0.5, 0.5, 0.5)
    config.loss.label_smoothing = 0.1
    config.loss.aux_weight = 0.4
    config.optimizer = ConfigDict(
        {'name': 'rmsprop', 'lr': 0.045, 'decay': 0.9, 'momentum': 0.9, 'eps': 1.0}
    )
    config.optimizer.eps_in_sqrt = True
    config.optimizer.initial_scale = 1.0  # as in TensorFlow, the mean square begins at 1
    config.optimizer.lr_for_batch = None
    config.optimizer.clip_value = None
    config.optimizer.clip_norm = 2.0
    config.weight_decay = 4e-5
    config.schedule = ConfigDict(
        {'name': 'exponential', 'warmup': '0 steps', 'every': '2 epochs', 'factor': 0.94}
    )
    config.training.batch_size = 1600
    config.training.duration = '100 epochs'
    config.training.log_every = '100 steps'
    config.training.ema_decay = 0.9999
    config.evaluation.batch_size = 100
    return config
