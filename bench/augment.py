"""The augmentation of phase 1 beside torchvision's transforms.v2, on batches of CIFAR-10 in memory:
`python bench/augment.py [--root DATA]`. v2 draws once a call, so it is called image by image."""
import argparse, time

import pandas as pd, torch
from torchvision.transforms import v2

from dlmech.datasets import Augment, get_data
from dlmech.run import generator

BATCH, REPEATS, SHIFT = 128, 30, 4


def by_images(x: torch.Tensor, transform: v2.Transform) -> torch.Tensor:  # (B, H, W, 3) -> (B, 3, H, W)
    return torch.stack([transform(image) for image in x.permute(0, 3, 1, 2)])


def seconds(f) -> float:
    "The median time of a call."
    f()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        f()
        times.append(time.perf_counter() - began)
    return pd.Series(times).median()


def tables(quick: bool = False, root: str = '') -> dict[str, pd.DataFrame]:
    "Milliseconds a batch, here and by transforms.v2; quick: the digits in place of CIFAR-10."
    x = get_data('digits' if quick else 'cifar10', root).train.images[:BATCH]
    crop, flip = v2.RandomCrop(x.shape[1], padding=SHIFT), v2.RandomHorizontalFlip()
    ours, theirs, g = Augment(shift=SHIFT, flip=True), v2.Compose([crop, flip]), generator(0)
    calls = {'here': lambda: ours(x, torch.rand(BATCH, generator=g) < .5, g),
             'transforms.v2, image by image': lambda: by_images(x, theirs),
             'transforms.v2, one draw for the batch': lambda: theirs(x.permute(0, 3, 1, 2))}
    table = pd.DataFrame([dict(what=what, images=BATCH, ms=1e3 * seconds(f)) for what, f in calls.items()])
    return {'augment': table.assign(ratio=table.ms / table.ms[0])}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='', help='where data sets lie')
    print(tables(root=parser.parse_args().root)['augment'].round(2).to_string(index=False))
