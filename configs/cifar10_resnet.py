"""ResNet on CIFAR-10; the number of layers follows the colon.

Paper: He et al. 2015, "Deep residual learning for image recognition" (arXiv:1512.03385), section
4.2: networks of 110 layers or more begin with a learning rate of .01.

    python -m experiments.train --config=configs/cifar10_resnet.py:56 --workdir=runs/cifar10_56
    …:20  …:32  …:44  …:110  …:1202      …:110-v2  …:164-v2   pre-activation (arXiv:1603.05027)

Result: not run here. Paper's test error in %, by the number of layers: 8.75 (20), 7.51 (32), 7.17
(44), 6.97 (56), 6.43 (110; mean of five 6.61 ± .16), 7.93 (1202).
Cost: not measured; the data set must be downloaded (TFDS).
Deviations: images are normalised by channel, not by pixel; the best checkpoint on 5,000 held-out
images is reported; biases and norms are not decayed; networks of 110 layers or more switch to a
learning rate of .1 after 400 iterations (the paper: when the training error is below 80 %).
"""

from ml_collections import ConfigDict

from vision.core.config import default_config
from vision.core.errors import unknown

DEPTHS = ('20', '32', '44', '56', '110', '1202', '110-v2', '164-v2')


def get_config(depth: str = '20') -> ConfigDict:
    """Returns the config of the network with this number of layers."""
    if depth not in DEPTHS:
        raise unknown('depth of cifar10_resnet.py', depth, DEPTHS)
    config = default_config()
    config.model = ConfigDict({'name': f'resnet{depth.replace("-", "_")}'})
    config.data.source, config.data.name = 'tfds', 'cifar10'
    config.data.in_memory, config.data.validation = True, 5000
    config.preprocess.train = 'random_crop(32, padding=4)|flip_lr'
    config.preprocess.mean = (0.4914, 0.4822, 0.4465)
    config.preprocess.std = (0.2470, 0.2435, 0.2616)
    config.optimizer.lr = 0.1
    config.weight_decay = 1e-4
    at, factor = ('32000 steps', '48000 steps'), (0.1, 0.1)
    if int(depth.split('-')[0]) >= 110:
        config.optimizer.lr = 0.01
        at, factor = ('400 steps', *at), (10.0, *factor)
    config.schedule = ConfigDict({'name': 'step', 'warmup': '0 steps', 'at': at, 'factor': factor})
    config.training.batch_size = 128
    config.training.duration = '64000 steps'
    config.evaluation.batch_size = 500
    return config
