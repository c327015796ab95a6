"""ConvNeXt-T on ImageNet.

Paper: Liu et al. 2022, "A ConvNet for the 2020s" (arXiv:2201.03545), table 5, first column.

    python -m experiments.train --config=configs/imagenet_convnext.py --workdir=runs/convnext
    … --config.data.data_dir=DIR     the prepared data set

Result: not run here. Paper's top-1 accuracy: 82.1 %.
Cost: not measured; 92,897 steps of batch 4096.
Deviations: 1 % of the training images is held out. The warm-up begins at 0 and the cosine ends at
0, not 1e-6. RandAugment has torchvision's ops with magnitude 27 of 30, without noise, and applies
each with probability .5, as timm's (9 of 10, noise .5); timm's has inversion and added brightness
instead of identity, grey borders, and smooth resampling. Erased boxes have a uniformly drawn aspect
ratio and get uniform pixels. The decay of the average is at most (1 + t) / (10 + t). Crops are
bilinear, and mixup sees the whole batch.
"""

from ml_collections import ConfigDict

from configs.imagenet import set_data
from vision.core.config import default_config


def get_config() -> ConfigDict:
    """Returns the config of the experiment."""
    config = default_config()
    config.model = ConfigDict({'name': 'convnext_tiny', 'drop_path': 0.1})
    set_data(config)
    config.preprocess.train = (
        'decode|random_resized_crop(224)|flip_lr|randaugment(2, 27, 0.5)'
        '|random_erasing(0.25, area=(0.02, 0.33))'
    )
    config.preprocess.eval = 'decode|resize_small(256, "bicubic")|central_crop(224)'
    config.preprocess.mean = (0.485, 0.456, 0.406)
    config.preprocess.std = (0.229, 0.224, 0.225)
    config.preprocess.mixup, config.preprocess.cutmix = 0.8, 1.0
    config.loss.label_smoothing = 0.1
    config.optimizer = ConfigDict(
        {'name': 'adamw', 'lr': 4e-3, 'clip_norm': None, 'clip_value': None}
    )
    config.optimizer.lr_for_batch = None
    config.weight_decay = 0.05
    config.schedule = ConfigDict({'name': 'cosine', 'warmup': '20 epochs'})
    config.training.batch_size = 4096
    config.training.duration = '300 epochs'
    config.training.log_every = '100 steps'
    config.training.ema_decay = 0.9999
    config.evaluation.batch_size = 64
    return config
