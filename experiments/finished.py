"""Makes of a finished run what comes with the package as zoo:NAME: tables, fields in single precision, the
images that drive its filters most. The run's images have to be at hand.

    python experiments/finished.py runs/vgg16-cifar10-d64-brief10-seed0
"""
import argparse, shutil
from pathlib import Path

import torch

import dlmech
from dlmech.datasets import ImageSet
from dlmech.filter import find_clusters, normalised
from dlmech.measurement import FINISHED, Measurement, Pictures, put_sheet, save_measurement, write_layer
from dlmech.run import write_tensors

LARGE = 100_000  # bytes, up to which a head comes along: those of the last layers, where the explorer opens


def shown(m: Measurement) -> torch.Tensor:
    "The numbers of the images that drive some filter most, each once."
    numbers = torch.cat([part.top['image'].flatten() for part in m]).unique()
    return numbers[numbers >= 0]


def in_single(M: torch.Tensor, threshold: float) -> torch.Tensor:  # (C, K, K) float64
    "Fields in single precision, where that moves no cluster."
    small = M.float()
    a, b = (find_clusters(normalised(x.double()), threshold) for x in (M, small))
    return small if torch.equal(a.cluster, b.cluster) and torch.equal(a.clipped, b.clipped) else M


def finish(m: Measurement, folder: Path) -> Path:
    "Writes what comes with the package into a folder that was empty; the folder."
    save_measurement(m, folder)
    numbers, pictures = shown(m), Pictures(m.images)
    images, labels = zip(*(pictures[int(i)] for i in numbers))
    put_sheet(folder, ImageSet(torch.stack(images), torch.tensor(labels), m.names))
    for part in m:
        place = torch.searchsorted(numbers, part.top['image'].clamp(min=0))
        image = torch.where(part.top['image'] < 0, -1, place).short()   # the number in the sheet
        write_layer(folder, part.number, part.top | dict(image=image, output=part.top['output'].short()),
                    part.filters)
        write_tensors(folder/f'fields-{part.number}.safetensors',
                      dict(fields=in_single(part.fields, m.threshold)))
        head = folder/f'head-{part.number}.safetensors'
        if head.stat().st_size > LARGE: head.unlink()  # no report needs them
    for left in folder.glob('.*'): shutil.rmtree(left) if left.is_dir() else left.unlink()
    return folder


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('runs', nargs='+', help='folders of finished runs')
    for run in p.parse_args().runs:
        m = dlmech.open(run)
        shutil.rmtree(FINISHED/m.title, ignore_errors=True)
        folder = finish(m, FINISHED/m.title)
        print(f'{folder}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.1f} MB')
