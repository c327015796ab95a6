"""Inception-v3 on ImageNet: Szegedy et al. 2015, "Rethinking the Inception architecture", arXiv:1512.00567.

Section 8: 50 replicas of batch 32, 100 epochs, RMSProp with decay .9 and ε 1.0 (inside the root, as in
TensorFlow), rate .045 times .94 each two epochs, gradients clipped at 2.0, averaged weights; label
smoothing .1 (section 7). The paper's error with one crop: 21.2 / 5.6 %.

    python -m experiments.train --config=configs/imagenet_inception_v3.py --workdir=runs/inception_v3 --config.data.data_dir=DIR

What deviates: 1 % of the training images is held out (`imagenet.py`); one synchronous batch of 1600 in
place of 50 asynchronous replicas (the rate was theirs for 32 at a time; it is kept). As in the authors' code: momentum .9, weight decay 4e-5 (not of biases and norms), the
auxiliary loss times .4, an average of .9999, crops from 5 % of the area on, brightness within .125 and saturation within .5.
Not measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    """The experiment."""
    config = imagenet.get_config()
    config.model = ConfigDict({'name': 'inception_v3'})
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
    config.optimizer.initial_scale = 1.0  # as TensorFlow's: the mean square begins at 1
    config.optimizer.lr_for_batch = None
    config.optimizer.clip_value = None
    config.optimizer.clip_norm = 2.0
    config.weight_decay = 4e-5
    config.schedule = ConfigDict(
        {'name': 'exponential', 'warmup': '0 steps', 'every': '2 epochs', 'factor': 0.94}
    )
    config.training.batch_size = 1600
    config.training.duration = '100 epochs'
    config.training.ema_decay = 0.9999
    config.evaluation.batch_size = 100
    return config
