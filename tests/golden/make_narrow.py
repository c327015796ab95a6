"""Writes the golden outputs of narrow networks, whose width changes nothing that is compared.

Needs torch 2.13.0, torchvision 0.28.0 and timm 1.0.31, and nothing else of this repository.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import generator
import numpy as np
import timm.models.convnext
import timm.models.resnet
import torch
import torchvision
from make import read_images
from torch.nn import functional as F

HERE = Path(__file__).parent / 'narrow'
SIZES = (64, 45)
# A step of AdamW. ε is so large that a gradient of rounding errors does not become a step.
ADAMW = {'lr': 0.1, 'eps': 1e-2, 'weight_decay': 0.5}


def convnext_torchvision() -> torch.nn.Module:
    rows = (8, 16, 1), (16, 24, 1), (24, 32, 2), (32, None, 1)
    row = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([row(*r) for r in rows])


def convnext_timm() -> torch.nn.Module:
    return timm.models.convnext.ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))


def resnet_sed() -> torch.nn.Module:
    """ResNet-D with squeeze-and-excitation."""
    return timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck,
        (1, 1, 2, 1),
        channels=(32, 64, 32, 32),
        stem_width=16,
        stem_type='deep',
        avg_down=True,
        block_args={'attn_layer': 'se'},
    )


class Sscd(torch.nn.Module):
    """The network of SSCD: generalised mean with p = 3, linear, unit length."""

    def __init__(self):
        super().__init__()
        block = timm.models.resnet.Bottleneck
        channels = (64, 16, 16, 16)
        self.backbone = timm.models.resnet.ResNet(
            block, (1,) * 4, channels=channels, num_classes=24
        )
        self.backbone.global_pool = Power()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.backbone(x))


class Power(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)


class Wide(torch.nn.Module):
    """WRN-10-2 as in the authors' code: the stem has no norm, each block begins with one."""

    def __init__(self):
        super().__init__()
        widths = 16, 32, 64, 128
        self.conv1 = torch.nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        for i in (1, 2, 3):
            block = torch.nn.Sequential(WideBlock(widths[i - 1], widths[i], 1 if i == 1 else 2))
            self.add_module(f'layer{i}', block)
        self.bn_last = torch.nn.BatchNorm2d(widths[-1])
        self.fc = torch.nn.Linear(widths[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.bn_last(x).relu().mean((2, 3)))


class WideBlock(torch.nn.Module):
    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        conv = torch.nn.Conv2d
        self.bn1 = torch.nn.BatchNorm2d(before)
        self.conv1 = conv(before, width, 3, stride, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, 1, 1, bias=False)
        self.shortcut_conv = conv(before, width, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(x).relu()
        return self.conv2(self.bn2(self.conv1(y)).relu()) + self.shortcut_conv(y)


# By name: the network, and the name of its last layer.
NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    'convnext_torchvision': (convnext_torchvision, 'classifier.2'),
    'convnext_timm': (convnext_timm, 'head.fc'),
    'resnet_sed': (resnet_sed, 'fc'),
    'resnet_sscd': (Sscd, ''),  # has no classifier: the features are what it answers
    'resnet_wide': (Wide, 'fc'),
}
TRAINED = ('convnext_torchvision', 'convnext_timm', 'resnet_sed')


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names or NETWORKS:
        make, last = NETWORKS[name]
        model = make().double()
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        state = generator.state_dict(name, shapes)
        model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
        golden = {'shapes': np.array(json.dumps(shapes)), **evaluate(model, last)}
        if name in TRAINED:
            golden |= train(model)
        golden = {k: v.astype('f4') if v.dtype == np.float64 else v for k, v in golden.items()}
        np.savez_compressed(HERE / f'{name}.npz', **golden)
        print(name, (HERE / f'{name}.npz').stat().st_size, flush=True)


def evaluate(model: torch.nn.Module, last: str) -> dict[str, np.ndarray]:
    """Returns the logits and the input of the last layer, at two sizes."""
    seen: dict[str, torch.Tensor] = {}
    if last:
        layer = model.get_submodule(last)
        layer.register_forward_pre_hook(lambda _, inputs: seen.update(features=inputs[0]))
    golden = {}
    for size in SIZES:
        with torch.no_grad():
            seen['logits' if last else 'features'] = model.eval()(read_images(size, 2))
        for kind, values in seen.items():
            found = golden[f'{kind}_{size}'] = values.numpy()
            assert np.isfinite(found).all()
            assert np.abs(found[0] - found[1]).max() > 0.1 * np.abs(found).max()
    return golden


def train(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Returns the logits in training, and what a step of AdamW changes."""
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    # As in timm and in the authors' code: kernels decay, norms, biases and scales do not.
    kernels, others = [], []
    for name, p in model.named_parameters():
        (others if p.ndim == 1 or name.endswith('layer_scale') else kernels).append(p)
    groups = [{'params': kernels}, {'params': others, 'weight_decay': 0.0}]
    optimizer = torch.optim.AdamW(groups, **ADAMW)
    logits = model(read_images(SIZES[0], len(generator.LABELS)))
    F.cross_entropy(logits, torch.from_numpy(generator.LABELS)).backward()
    optimizer.step()
    after = model.state_dict()
    changes = {k: (after[k] - v).numpy() for k, v in before.items() if v.is_floating_point()}
    return {
        'train_logits': logits.detach().numpy(),
        'changes': np.concatenate([generator.sample(change) for change in changes.values()]),
        'norms': np.array([np.linalg.norm(change) for change in changes.values()]),
    }


if __name__ == '__main__':
    main(sys.argv[1:])
