"""AlexNet on ImageNet.

Paper: Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional
neural networks", sections 4.1 and 5.

    python -m experiments.train --config=configs/imagenet_alexnet.py --workdir=runs/alexnet
    … --config.data.data_dir=DIR     the prepared data set

Result: not run here. Paper's error, top-1 / top-5: 40.7 / 18.2 % (`evals.ten_crop`).
Cost: not measured; about 892,000 steps of batch 128.
Deviations: 1 % of the training images is held out; the learning rate falls at 30, 60 and 80 epochs
instead of when validation stops improving; crops have 227 pixels, so that the output of conv1 is
55 x 55; one mean per channel is subtracted, not one per pixel. Biases are decayed like the weights.
"""

from ml_collections import ConfigDict

from configs.imagenet import set_data
from vision.core.config import default_config


def get_config() -> ConfigDict:
    """Returns the config of the experiment."""
    config = default_config()
    config.model = ConfigDict({'name': 'alexnet_2012'})
    set_data(config)
    config.preprocess.train = (
        'decode|resize_small(256)|central_crop(256)|random_crop(227)|flip_lr|pca_noise'
    )
    config.preprocess.eval = 'decode|resize_small(256)|central_crop(227)'
    config.preprocess.mean = (0.485, 0.456, 0.406)
    config.preprocess.std = (1 / 255,)  # the mean is subtracted in pixels
    config.evals.ten_crop = ConfigDict(
        {'ops': 'decode|resize_small(256)|central_crop(256)|ten_crop(227)'}
    )
    config.optimizer.lr = 0.01
    config.weight_decay = 5e-4
    config.weight_decay_pattern = '(kernel|bias)$'
    config.schedule = ConfigDict({'name': 'step', 'warmup': '0 steps'})
    config.schedule.at = ('30 epochs', '60 epochs', '80 epochs')
    config.schedule.factor = 0.1
    config.training.batch_size = 128
    config.training.duration = '90 epochs'
    config.training.log_every = '100 steps'
    return config
