"""Trains VGG-6 on CIFAR-10 and looks at it while it learns; the table that `05_dynamics` tells of.

    python experiments/dynamics.py --d 32 --seeds 0 1 2 --runs runs --root DATA

Goes on where it was cut: training from its checkpoint, measuring from the first epoch that has no rows. With
--tiny the digits and two epochs, to try the script itself.
"""
import argparse
from pathlib import Path

from dlmech.run import RESULTS
from dlmech.study.dynamics import describe_dynamics, EPOCHS, measure_dynamics


def options() -> argparse.Namespace:
    "What the command line asks for."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--d', type=int, default=64)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--runs', default='runs')
    p.add_argument('--root', default='')
    p.add_argument('--device', default='auto')
    p.add_argument('--table', type=Path)
    p.add_argument('--tiny', action='store_true')
    return p.parse_args()


def main() -> None:
    "Makes what is missing of the table, and says what it shows."
    o = options()
    params = dict(arch='vgg6', runs=o.runs, root=o.root, device=o.device)
    if o.tiny: params, looks = params | dict(d=1, labels='0,1', epochs=2), (0, 1, 2)
    else: params, looks = params | dict(d=o.d, dataset='cifar10'), EPOCHS
    path = o.table or RESULTS/f'dynamics-vgg6-{"digits" if o.tiny else "cifar10"}-d{params["d"]}.csv'
    print(describe_dynamics(measure_dynamics(path, o.seeds, looks, **params)))


if __name__ == '__main__': main()
