"""The PyTorch side of `benchmarks.race`: a plain training loop over tensors in memory.

    python torch_race.py FILE.npz RECIPE SEED STARTED

It imports nothing from this project except the network in `torch_throughput.py`.
"""

import json
import math
import sys
import time


def main(file, recipe, seed, started):
    """Trains until the accuracy is reached, and prints the same JSON as `benchmarks.race.run`."""
    import numpy as np
    import torch
    from torch_throughput import lenet5

    recipe, last = json.loads(recipe), float(started)
    seconds = dict.fromkeys(('import', 'data', 'compile', 'train', 'eval'), 0.0)

    def mark(phase):
        nonlocal last
        now = time.time()
        seconds[phase] += now - last
        last = now

    # Read the data and put it on the device.
    mark('import')
    torch.manual_seed(int(seed))
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    images, labels = {}, {}
    with np.load(file) as arrays:
        for split in ('train', 'test'):
            pixels = arrays[f'x_{split}'].astype(np.float32) / 255
            pixels = torch.from_numpy((pixels - recipe['mean']) / recipe['std'])
            images[split] = pixels.permute(0, 3, 1, 2).contiguous().to(device)
            labels[split] = torch.from_numpy(arrays[f'y_{split}'].astype(np.int64)).to(device)
    model = lenet5(10).to(device)
    optimizer, schedule = _optimizer(model, recipe, len(labels['train']))
    loss = torch.nn.CrossEntropyLoss(label_smoothing=recipe['label_smoothing'])
    mark('data')
    # Train epoch by epoch. The phase 'compile' stays 0, because eager PyTorch compiles nothing.
    top1 = []
    for _ in range(recipe['epochs']):
        model.train()
        # All images are on the device, so an epoch is a permutation of their indices.
        order = torch.randperm(len(labels['train']), device=device)
        for rows in order.split(recipe['batch_size']):
            optimizer.zero_grad()
            loss(model(images['train'][rows]), labels['train'][rows]).backward()
            optimizer.step()
            schedule.step()
        mark('train')
        model.eval()
        with torch.inference_mode():
            parts = zip(images['test'].split(1000), labels['test'].split(1000), strict=True)
            correct = sum((model(x).argmax(1) == y).sum() for x, y in parts).item()
        top1.append(correct / len(labels['test']))
        mark('eval')
        # As in our loop, the race ends after the first evaluation that reaches the accuracy.
        if top1[-1] >= recipe['accuracy']:
            break
    total = last - float(started) if top1[-1] >= recipe['accuracy'] else None
    print(json.dumps({'seconds': total, **seconds, 'epochs': len(top1), 'top1': top1}))


def _optimizer(model, recipe, examples):
    """Initialises the model and returns the optimizer and learning rate schedule of our recipe."""
    import torch

    # Our initialisation: Glorot uniform kernels, biases 0.
    kernels = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    for parameter in kernels:
        torch.nn.init.xavier_uniform_(parameter)
    for parameter in biases:
        torch.nn.init.zeros_(parameter)
    # Weight decay on kernels only; the schedule changes with every step.
    groups = [{'params': kernels, 'weight_decay': recipe['weight_decay']}, {'params': biases}]
    optimizer = torch.optim.SGD(groups, recipe['lr'], momentum=recipe['momentum'], nesterov=True)
    epoch = examples / recipe['batch_size']
    warmup, total = round(recipe['warmup_epochs'] * epoch), round(recipe['epochs'] * epoch)

    def factor(step):
        return rate_factor(step, warmup, total)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def rate_factor(step, warmup, total):
    """Returns a step's learning rate as a fraction of the peak: linear warm-up, then cosine."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / (total - warmup), 1)))


if __name__ == '__main__':
    main(*sys.argv[1:])
