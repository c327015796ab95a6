"""AlexNet on ImageNet: Krizhevsky, Sutskever and Hinton 2012.

"ImageNet classification with deep convolutional neural networks", section 5: batch 128, momentum .9,
weight decay 5e-4, rate .01 divided by 10 three times in about 90 epochs; section 4.1: crops of 256
pixels, flips, PCA colour noise; ten crops at test. The paper's error: 40.7 / 18.2 % (top-1, top-5).

    python -m experiments.train --config=configs/imagenet_alexnet.py --workdir=runs/alexnet --config.data.data_dir=DIR

What deviates: 1 % of the training images is held out (`imagenet.py`); the rate falls at 30, 60 and 80
epochs instead of when an experimenter sees validation stop; crops are of 227 pixels, which conv1 needs for 55 x 55; only the mean is subtracted, in pixels,
as in the paper, but one mean per channel; biases are decayed as weights are. Not measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    """The experiment."""
    config = imagenet.get_config()
    config.model = ConfigDict({'name': 'alexnet_2012'})
    config.preprocess.train = (
        'decode|resize_small(256)|central_crop(256)|random_crop(227)|flip_lr|pca_noise'
    )
    config.preprocess.eval = 'decode|resize_small(256)|central_crop(227)'
    config.preprocess.std = (1 / 255,)
    config.evals.ten_crop = ConfigDict(
        {'ops': 'decode|resize_small(256)|central_crop(256)|ten_crop(227)'}
    )
    config.optimizer.lr = 0.01
    config.weight_decay = 5e-4
    config.weight_decay_pattern = '(kernel|bias)$'
    config.schedule = imagenet.step_schedule(('30 epochs', '60 epochs', '80 epochs'))
    config.training.batch_size = 128
    return config
