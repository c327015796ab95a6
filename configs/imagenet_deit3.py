"""ViT-S/16 on ImageNet from scratch by DeiT III; the number of epochs follows the colon.

Paper: Touvron, Cord and Jégou 2022, "DeiT III: Revenge of the ViT" (arXiv:2204.07118), table 1,
column "Ours, ImageNet-1k".

    python -m experiments.train --config=configs/imagenet_deit3.py:800 --workdir=runs/deit3
    … --config.data.data_dir=DIR     the prepared data set
    …:400

Result: not run here. Paper's top-1 accuracy: 80.4 % in 400 epochs, 81.4 % in 800.
Cost: not measured; 247,726 and 495,451 steps of batch 2048.
Deviations: 1 % of the training images is held out; the warm-up begins at 0, not 1e-6; the colour
jitter has a fixed order; crops are bilinear; mixup sees the whole batch. The published weights were
trained with the authors' command for ViT-S, which has a learning rate of 4e-3 and a weight decay of
.05 (`--config.optimizer.lr=4e-3 --config.weight_decay=0.05`).
"""

from ml_collections import ConfigDict

from configs.imagenet import set_data
from vision.core.config import default_config
from vision.core.errors import unknown

EPOCHS = ('400', '800')


def get_config(epochs: str = '800') -> ConfigDict:
    """Returns the config for this number of epochs."""
    if epochs not in EPOCHS:
        raise unknown('number of epochs of imagenet_deit3.py', epochs, EPOCHS)
    config = default_config()
    config.model = ConfigDict({'name': 'deit3_s16', 'drop_path': 0.05, 'uniform_drop_path': True})
    set_data(config)
    config.data.repeats = 3
    config.preprocess.train = (
        'decode|random_resized_crop(224)|flip_lr|three_augment'
        '|brightness(0.3)|contrast(0.3)|saturation(0.3)'
    )
    config.preprocess.eval = 'decode|resize_small(224, "bicubic")|central_crop(224)'
    config.preprocess.mean = (0.485, 0.456, 0.406)
    config.preprocess.std = (0.229, 0.224, 0.225)
    config.preprocess.mixup, config.preprocess.cutmix = 0.8, 1.0
    config.loss = ConfigDict(config.loss.to_dict() | {'name': 'sigmoid_cross_entropy'})
    config.loss.threshold, config.loss.average = 0.0, True
    config.optimizer = ConfigDict(
        {'name': 'lamb_masked', 'lr': 3e-3, 'clip_norm': 1.0, 'clip_value': None}
    )
    config.optimizer.lr_for_batch = None
    config.weight_decay = 0.02
    config.schedule = ConfigDict({'name': 'cosine', 'warmup': '5 epochs'})
    config.training.batch_size = 2048
    config.training.duration = f'{epochs} epochs'
    config.training.log_every = '100 steps'
    config.evaluation.batch_size = 64
    return config
