"""How fast this machine trains: images a second by memory format, number type, threads, batch and
torch.compile, and the share of what a large matrix product reaches.

    python bench/train.py [--nets vgg6:64 vgg16:32 vgg16:64] [--batches 128 256] [--compile] [--out TABLE]

All ways of a network take turns in one process, so the ratios hold where the seconds do not.
"""
import argparse
from itertools import product
from pathlib import Path

import pandas as pd, torch

from dlmech.arch import get_model
from dlmech.pace import matrix_rate, measure_paces, Pace, PACES, training_flops
from dlmech.run import write_csv


def rows(net: str, batch: int, rates: dict[tuple[str, int], float], paces: list, repeats: int
         ) -> pd.DataFrame:
    "A network's paces for batches of that size."
    arch, d = net.split(':')
    model, device = get_model(arch, 10, int(d)), torch.device('cpu')
    t = measure_paces(model, batch, 32, 10, device, paces, repeats)
    flops = training_flops(model, 32, 10)
    of = [rates[number, threads] for number, threads in zip(t.number, t.threads)]
    t['share_of_matrix_rate'] = flops * t.images_per_second / of
    first = t.images_per_second.iloc[0]
    about = dict(network=f'{arch} d={d}', batch=batch, mflop=flops / 1e6)
    return t.assign(**about, ratio=t.images_per_second / first)


COLUMNS = ['network', 'batch', 'mflop', 'pace', 'images_per_second', 'ratio', 'share_of_matrix_rate']


def measure(nets: list[str], batches: list[int], repeats: int, compile: bool = False) -> pd.DataFrame:
    "The paces of all these networks, and batches, on this machine."
    graphs = [Pace(p.channels_last, p.number, True) for p in PACES if compile and not p.threads]
    rates = {}  # a pace of one thread is held against what one thread can do
    for number, threads in product(('float32', 'bfloat16'), (0, 1)):
        with Pace(threads=threads).threaded():
            rates[number, threads] = matrix_rate(number, torch.device('cpu'))
            told = f'{rates[number, threads] / 1e9:,.0f} GFLOP/s ({torch.get_num_threads()} threads)'
        print(f'{number}: {told}', flush=True)
    parts = [rows(net, batch, rates, PACES + graphs, repeats) for net in nets for batch in batches]
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def tables(quick: bool = False) -> dict[str, pd.DataFrame]:
    "Images a second in training, by memory format, number type, threads and batch."
    asked = (['vgg6:4'], [8], 1) if quick else (['vgg6:64', 'vgg16:32', 'vgg16:64'], [128, 256], 2)
    return {'train': measure(*asked)}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--nets', nargs='+', default=['vgg6:64', 'vgg16:32', 'vgg16:64'], metavar='ARCH:D')
    p.add_argument('--batches', type=int, nargs='+', default=[128, 256])
    p.add_argument('--repeats', type=int, default=2)
    p.add_argument('--compile', action='store_true', help='compiled networks too, which takes minutes')
    p.add_argument('--out', type=Path)
    args = p.parse_args()
    table = measure(args.nets, args.batches, args.repeats, args.compile)
    print(table.round(3).to_string(index=False))
    if args.out: write_csv(args.out, table)


if __name__ == '__main__': main()
