"""The comparisons of `04_dilution` for many networks: each trial a row of a table in its run's folder, resumable at any point.

    python bench/prune.py --arch vgg6 --dataset digits --d 16 --seeds 0 1 2 3 4 --layers 4 5 [--ship]

A network that is not there is trained first (phases 1 to 3). With --ship the tables of all these runs go into dlmech/results,
where the notebook reads them.
"""
import argparse, time

from dlmech.compare import (ENDS, TABLES, Ready, dilution_table, end_table, gather, head_table,
                            latency_table, removal_table, scratch_table)
from dlmech.model import start
from dlmech.scores import SCORES
from dlmech.run import RESULTS

a = argparse.ArgumentParser()
a.add_argument('--arch', default='vgg6')
a.add_argument('--dataset', default='digits')
a.add_argument('--d', type=int, default=16)
a.add_argument('--labels', default='all')
a.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
a.add_argument('--layers', type=int, nargs='+', default=[4, 5])
a.add_argument('--recipe', default='fast')
a.add_argument('--epochs', type=int, default=0, help='of phase 1; 0: as many as the recipe says')
a.add_argument('--retrain', type=int, default=1, help='epochs of the short retraining')
a.add_argument('--images', type=int, default=10_000, help='training images to retrain on')
a.add_argument('--tables', nargs='+', choices=TABLES, default=['removal', 'dilution', 'head', 'end',
                                                               'latency'])
a.add_argument('--fractions', type=float, nargs='+', default=[.25, .5, .75, .9])
a.add_argument('--thresholds', type=float, nargs='+', default=[.3, .5, .7, .9])
a.add_argument('--whole', action='store_true',
               help='of table end: retrain the whole network as phase 1 trained it')
a.add_argument('--ends', nargs='+',
               help='of tables end and latency: filters by a score at a share, or a rule for kernels at a '
                    'threshold, as in "filters by noise:.5" "AFCC:.3"')
a.add_argument('--scores', nargs='+', default=None)
a.add_argument('--rules', nargs='+', default=None)
a.add_argument('--runs', default='runs')
a.add_argument('--root', default='')
a.add_argument('--device', default='auto')
a.add_argument('--ship', action='store_true')
a = a.parse_args()
ends = [(way, float(amount)) for way, amount in (e.rsplit(':', 1) for e in a.ends)] if a.ends else ENDS

try:
    import torch_pruning
    others = ['torch-pruning', 'torch-pruning, spread']
except ImportError:
    others = []
    print('torch-pruning is not installed (pip install dlmech[prune]): its rows are left out', flush=True)

runs = []
for seed in a.seeds:
    t = time.time()
    run = start(arch=a.arch, dataset=a.dataset, layer='all', labels=a.labels, d=a.d, seed=seed,
                recipe=a.recipe, epochs=a.epochs, runs=a.runs, root=a.root, device=a.device)
    runs.append(run)
    ready = Ready(run, a.layers, a.images)
    print(f'{run.path.name}: ready after {time.time()-t:.0f} s', flush=True)
    make = dict(removal=lambda: removal_table(ready, a.scores or [*SCORES, *others], a.fractions,
                                              epochs=(0, a.retrain)),
                dilution=lambda: dilution_table(ready, a.rules, a.thresholds, (0, a.retrain)),
                scratch=lambda: scratch_table(ready), head=lambda: head_table(ready),
                end=lambda: end_table(ready, ends, a.retrain, a.whole),
                latency=lambda: latency_table(ready, ends))
    for name in a.tables:
        t = time.time()
        n = len(make[name]())
        print(f'  {name}: {n} rows, {time.time()-t:.0f} s', flush=True)
    if a.ship: gather(runs, RESULTS)
