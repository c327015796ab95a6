"""ResNet-50 on ImageNet, by "ResNet strikes back"; the procedure follows the colon.

Paper: Wightman, Touvron and Jégou 2021 (arXiv:2110.00476), table 2.

    python -m experiments.train --config=configs/imagenet_resnet_strikes_back.py:a2 \\
        --workdir=runs/a2
    … --config.data.data_dir=DIR     the prepared data set
    …:a1  …:a3

Result: not run here. Paper's top-1 accuracy (table 1): A1 80.4, A2 79.8, A3 78.1 %.
Cost: not measured; A1 about 371,600, A2 185,800, A3 61,900 steps of batch 2048.
Deviations: 1 % of the training images is held out. The warm-up begins at 0, and the cosine ends at
0. RandAugment has torchvision's ops at the same fraction of their strongest magnitude (7/10, A3:
6/10), without noise on the magnitude, and applies each with probability .5, as timm's; timm's has
inversion and added brightness instead of identity, grey borders, and smooth resampling. Crops are
bilinear. BatchNorm and mixup see the whole batch. As in timm's code, the gradient is clipped at norm
1 inside LAMB, and targets above .2 become 1, which cancels A1's smoothing.
"""

from ml_collections import ConfigDict

from configs.imagenet import set_data
from vision.core.config import default_config
from vision.core.errors import unknown

# Columns of table 2: epochs, learning rate, weight decay, mixup, smoothing, stochastic depth,
# repeated augmentation, RandAugment's magnitude (of 30), and pixels in training.
_TABLE_2 = {
    'a1': (600, 5e-3, 0.01, 0.2, 0.1, 0.05, 3, 21, 224),
    'a2': (300, 5e-3, 0.02, 0.1, 0.0, 0.05, 3, 21, 224),
    'a3': (100, 8e-3, 0.02, 0.1, 0.0, 0.0, 1, 18, 160),
}


def get_config(procedure: str = 'a2') -> ConfigDict:
    """Returns the config of the procedure."""
    if procedure not in _TABLE_2:
        raise unknown('procedure of imagenet_resnet_strikes_back.py', procedure, _TABLE_2)
    row = _TABLE_2[procedure]
    epochs, lr, decay, mixup, smoothing, drop_path, repeats, magnitude, size = row
    config = default_config()
    config.model = ConfigDict({'name': 'resnet50', 'drop_path': drop_path})
    set_data(config)
    config.data.repeats = repeats
    config.preprocess.train = (
        f'decode|random_resized_crop({size})|flip_lr|randaugment(2, {magnitude}, 0.5)'
    )
    config.preprocess.eval = 'decode|resize_small(235, "bicubic")|central_crop(224)'
    config.preprocess.mean = (0.485, 0.456, 0.406)
    config.preprocess.std = (0.229, 0.224, 0.225)
    config.preprocess.mixup, config.preprocess.cutmix = mixup, 1.0
    config.loss = ConfigDict(config.loss.to_dict() | {'name': 'sigmoid_cross_entropy'})
    config.loss.threshold, config.loss.average = 0.2, True
    config.loss.label_smoothing = smoothing
    config.optimizer = ConfigDict(
        {'name': 'lamb_masked', 'lr': lr, 'clip_norm': 1.0, 'clip_value': None}
    )
    config.optimizer.lr_for_batch = None
    config.weight_decay = decay
    config.schedule = ConfigDict({'name': 'cosine', 'warmup': '5 epochs'})
    config.training.batch_size = 2048
    config.training.duration = f'{epochs} epochs'
    config.training.log_every = '100 steps'
    config.evaluation.batch_size = 64
    return config
