"""Which recipe needs few epochs: networks trained by each, compared on validation images only.

    python experiments/recipe.py --nets vgg6:16 vgg16:16 --seeds 0 1 --epochs 8 --root DATA

A row for each network, recipe and seed, written when it is there; the same command goes on from there. Beside
the success rates stand the last layer's clusters, since a recipe shapes what filters do.
"""
import argparse, time
from dataclasses import replace
from pathlib import Path

import pandas as pd, torch

import dlmech
from dlmech.arch import get_model, layers_of
from dlmech.batches import Batches
from dlmech.datasets import get_data
from dlmech.model import Recipe, RECIPES, success_rate, train
from dlmech.pace import best_pace, describe_pace, measure_paces, Pace
from dlmech.run import read_csv, RESULTS
from dlmech.study.study import put_row

KEY = ['network', 'epochs', 'recipe', 'seed']
FAST, BRIEF = RECIPES['fast'], RECIPES['brief']
SETTINGS: dict[str, Recipe] = {
    'fast': FAST,
    'brief': BRIEF,
    'brief, no average': replace(BRIEF, average=0.),
    'brief, SGD in place of Muon': replace(BRIEF, optimizer='sgd', lr=FAST.lr * 2, fc_lr=FAST.fc_lr * 2,
                                           weight_decay=FAST.weight_decay),  # of `fast`, for twice the batch
    'brief, labels as they are': replace(BRIEF, smoothing=0.),
    'brief, nothing cut out': replace(BRIEF, cutout=0),
    'brief, flipped at random': replace(BRIEF, flip=True),
    'brief, batches of 128': replace(BRIEF, batch=128, lr=BRIEF.lr * .7, fc_lr=BRIEF.fc_lr * .7),
    'brief, batches of 512': replace(BRIEF, batch=512, lr=BRIEF.lr * 1.4, fc_lr=BRIEF.fc_lr * 1.4),
    'brief, half the rate': replace(BRIEF, lr=BRIEF.lr / 2),
    'brief, twice the rate': replace(BRIEF, lr=BRIEF.lr * 2)}
NUMBERS = {'brief, float32': 'float32'}   # the same recipe, other numbers


def trial(arch: str, d: int, name: str, seed: int, epochs: int, pace: Pace, data) -> dict:
    "One network trained by one recipe: success rates, time, and the last layer's clusters."
    r = replace(SETTINGS[name if name not in NUMBERS else 'brief'], epochs=epochs)
    if name in NUMBERS: pace = replace(pace, number=NUMBERS[name])
    net, began = get_model(arch, data.K, d, seed=seed), time.process_time()
    log = train(net, data, r, torch.device('cpu'), seed, pace=pace)
    seconds = time.process_time() - began
    last = dlmech.measure(net.eval(), heads_on=data.train, fields_on=data.valid,
                          layers=layers_of(arch)[-1:]).layers.iloc[-1]
    valid = success_rate(net, Batches(data.valid, 500))
    return dict(valid_success_rate=valid, valid_images=len(data.valid), pace=str(pace),
                train_success_rate=log.train_success_rate.iloc[-1], cpu_seconds=round(seconds),
                **{k: last[k] for k in ('snr', 'n_clusters', 'n_clusters_excess', 'noise')})


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--nets', nargs='+', default=['vgg6:16', 'vgg16:16'], metavar='ARCH:D')
    p.add_argument('--recipes', nargs='+', choices=[*SETTINGS, *NUMBERS], default=[*SETTINGS, *NUMBERS])
    p.add_argument('--seeds', type=int, nargs='+', default=[0])
    p.add_argument('--epochs', type=int, default=8)
    p.add_argument('--root', default='')
    p.add_argument('--out', type=Path, default=RESULTS/'recipes.csv')
    args = p.parse_args()
    data = get_data('cifar10', root=args.root)
    for net in args.nets:
        arch, d = net.split(':')
        table = measure_paces(get_model(arch, data.K, int(d)), BRIEF.batch, 32, data.K, torch.device('cpu'))
        print(net, describe_pace(table), flush=True)
        for seed in args.seeds:
            for name in args.recipes:
                key = dict(zip(KEY, (f'{arch} d={d}', args.epochs, name, seed)))
                if args.out.exists() and len(read_csv(args.out).merge(pd.DataFrame([key]), on=KEY)): continue
                row = key | trial(arch, int(d), name, seed, args.epochs, best_pace(table), data)
                put_row(args.out, row, KEY)
                print(row, flush=True)


if __name__ == '__main__': main()
