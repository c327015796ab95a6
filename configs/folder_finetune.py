"""Fine-tuning ImageNet weights on a folder of photos, `FOLDER/CLASS/*.jpg`.

Papers: Tan and Le 2019 (arXiv:1905.11946), EfficientNet, in its Lite form; He et al. 2015
(arXiv:1512.03385), ResNet-50; Donahue et al. 2013, "DeCAF" (arXiv:1310.1531), transfer of features.

    pip install -e ".[pretrained]"
    python -m experiments.train --config=configs/folder_finetune.py --workdir=runs/photos
    … --config.data.path=FOLDER                the photos; required
    …:frozen                                   train the new classifier only
    …:resnet50                                 ResNet-50, with weights from the Hugging Face hub
    … --config.init_from=resnet50.safetensors  weights from a file or a workdir
    … --config.init_from=None '--config.lr_factors=()'  from scratch

Result: depends on the photos; not measured here.
Cost: not measured; --dry_run prints the peak memory and the time per step.
Deviations: the classifier is new, for the folder's classes. The whole network is trained, the
backbone with a tenth of the classifier's learning rate. The weights of EfficientNet-Lite0 are
installed as a package, not downloaded from a hub.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vision.core.config import default_config
from vision.core.errors import unknown


def get_config(variant: str = 'full') -> ConfigDict:
    """Returns the config; 'frozen' trains only the classifier, 'resnet50' uses another network."""
    if variant not in ('full', 'frozen', 'resnet50'):
        raise unknown('variant of folder_finetune.py', variant, ['full', 'frozen', 'resnet50'])
    config = default_config()
    config.data.source = 'folder'
    config.data.path = placeholder(str)
    config.preprocess.train = 'decode|random_resized_crop(224)|flip_lr'
    # Normalise the pixels as in the training of the weights.
    if variant == 'resnet50':
        config.model = ConfigDict({'name': 'resnet50'})
        config.init_from = 'hf:timm/resnet50.tv_in1k'
        config.preprocess.eval = 'decode|resize_small(256)|central_crop(224)'
        config.preprocess.mean = (0.485, 0.456, 0.406)
        config.preprocess.std = (0.229, 0.224, 0.225)
    else:
        config.model = ConfigDict({'name': 'efficientnet_lite0'})
        config.init_from = 'efficientnet_lite0'
        config.preprocess.eval = "decode|resize_small(256, 'bicubic')|central_crop(224)"
        config.preprocess.mean = (127 / 255,)
        config.preprocess.std = (128 / 255,)
    config.optimizer.lr = 0.01
    config.weight_decay = 1e-4
    config.schedule.warmup = '0.5 epochs'
    config.training.batch_size = 32
    config.training.duration = '10 epochs'
    config.training.log_every = '10 steps'
    config.evaluation.batch_size = 32
    if variant == 'frozen':
        config.freeze = 'backbone'
    else:
        config.lr_factors = (('backbone', 0.1),)
    if variant == 'full':
        # With TensorFlow's momentum, 0.99, running statistics would still be close to ImageNet's
        # after the few steps of an epoch on a small folder, and validation would fail.
        config.model.bn_momentum = 0.9
    return config
