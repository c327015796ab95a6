"""ViT-S/16 on ImageNet from scratch; the number of epochs follows the colon, 90 or 300.

Paper: Beyer, Zhai and Kolesnikov 2022, "Better plain ViT baselines for ImageNet-1k"
(arXiv:2205.01580), section 2, and the authors' config `vit_s16_i1k.py`.

    python -m experiments.train --config=configs/imagenet_vit.py:90 --workdir=runs/vit
    … --config.data.data_dir=DIR     the prepared data set
    …:300

Result: not run here. Paper's top-1 accuracy: 76.5 % in 90 epochs, 80.0 % in 300 (figure 1); with
one linear layer as classifier, as here, 76.7 and 79.8 % (table 1).
Cost: not measured; 111,477 and 371,588 steps of batch 1024. The paper reports 6.5 hours for 90
epochs on a TPU v3-8.
Deviations: the classifier is one linear layer; RandAugment is torchvision's at its strongest
magnitude, 30 (the authors': 10), which lacks Cutout, SolarizeAdd and Invert of the authors'
TensorFlow code; Adam's first moment is float32, not bfloat16; the shorter side is resized
bilinearly, not by area. The authors do not multiply the weight decay by the peak learning rate, so
their 1e-4 corresponds to .1 in AdamW.
"""

from ml_collections import ConfigDict

from configs.imagenet import set_data
from vision.core.config import default_config
from vision.core.errors import unknown

EPOCHS = ('90', '300')


def get_config(epochs: str = '90') -> ConfigDict:
    """Returns the config for this number of epochs."""
    if epochs not in EPOCHS:
        raise unknown('number of epochs of imagenet_vit.py', epochs, EPOCHS)
    config = default_config()
    config.model = ConfigDict(
        {'name': 'vit_s16', 'pool': 'mean', 'positions': 'sincos2d', 'activation': 'gelu_tanh'}
    )
    set_data(config)
    config.preprocess.train = (
        'decode|random_resized_crop(224, area=(0.05, 1))|flip_lr|randaugment(2, 30)'
    )
    config.preprocess.eval = 'decode|resize_small(256)|central_crop(224)'
    config.preprocess.mean = config.preprocess.std = (0.5, 0.5, 0.5)
    config.preprocess.mixup = 0.2
    config.optimizer = ConfigDict(
        {'name': 'adamw', 'lr': 1e-3, 'clip_norm': 1.0, 'clip_value': None}
    )
    config.optimizer.lr_for_batch = None
    config.weight_decay = 0.1
    config.schedule = ConfigDict({'name': 'cosine', 'warmup': '10000 steps'})
    config.training.batch_size = 1024
    config.training.duration = f'{epochs} epochs'
    config.training.log_every = '100 steps'
    config.evaluation.batch_size = 64
    return config
