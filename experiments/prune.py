"""The comparisons of `04_dilution` for many networks: each trial a row of a table in its run's folder,
resumed at any point.

    python experiments/prune.py --arch vgg6 --dataset digits --d 16 --seeds 0 1 2 3 4 --layers 4 5 [--ship]

A network that is not there is trained first (phases 1 to 3). With --ship the tables of all these runs go into
dlmech/results, where the notebook reads them.

    python experiments/prune.py --repair vgg16-cifar10-d16 resnet56-cifar100 --files FOLDER [--ship]

Selection, then repair: filters, by the seed of the calibration images; FOLDER holds the weights of networks
that do not come with the package. On efficientnet-lite0 every seed draws other halves of the photographs.

    python experiments/prune.py --kernels vgg6-cifar10 vgg16-cifar10-d16 --seeds 0 1 2 [--ship]

The same for kernels from a layer to the next, by AFCC's clusters and by rules that know of none.

    python experiments/prune.py --cut vgg16-cifar10-d64 resnet56-cifar100 --files FOLDER [--ship]

How much smaller and faster a network gets at which loss, beside an even cut and torch-pruning.
"""
import argparse, time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch

import dlmech
from dlmech.datasets import Data, get_data, ImageSet
from dlmech.model import start, train_or_load
from dlmech.probe import heads_for
from dlmech.pruning.links import merged
from dlmech.pruning.scores import SCORES
from dlmech.run import generator, ParameterError, RESULTS, Run
from dlmech.study.claims import NAMED, named_run
from dlmech.study.compare import (Calibrated, cut_study, dilution_study, end_study, gather, head_study,
                                  kernel_study, latency_study, LIBRARY, Method, method_of, METHODS,
                                  removal_study, repair_study, REPAIR_WAYS, RULES, scratch_study,
                                  SELECTIONS, Subject, TABLES, USUAL_SELECTIONS)
from dlmech.study.study import Study

LITE0 = 'efficientnet-lite0'
APART = [f'vgg6-cifar10-d64-fast-seed{n}' for n in (1, 2)]  # trained apart from vgg6-cifar10, which is seed 0
HALF_AND_MORE, RESNETS = (.5, .75), ('resnet56-cifar10', 'resnet56-cifar100')
LAST_SIX = [f'layers.{n}' for n in range(8, 14)]


@dataclass(frozen=True)
class FiltersOf:
    "Whose filters go: of which layers, which shares, by which selections and repairs; of `Calibrated`."
    layers: list[str]
    removed: tuple[float, ...] = HALF_AND_MORE
    how: dict = field(default_factory=dict)
    selections: Sequence[str] = tuple(SELECTIONS)
    ways: Sequence[str] = tuple(REPAIR_WAYS)


# of a ResNet inner filters of its last stage, as no others can go one by one, and fewer of them; where a
# label has one photograph, there are no label means, and so nothing that phase 3 knows
FILTERS_OF = {
    'vgg16-cifar10-d16': FiltersOf(LAST_SIX), 'vgg16-cifar10-d64': FiltersOf(LAST_SIX),
    **dict.fromkeys(['vgg6-cifar10', *APART], FiltersOf(['layers.4', 'layers.5'])),
    **dict.fromkeys(RESNETS, FiltersOf([f'layer3.{block}.bn1' for block in range(9)], (.25, .5),
                                       dict(largest_map=1024))),
    LITE0: FiltersOf([f'_blocks.{block}._bn0' for block in range(11, 16)], (.25, .5),
                     dict(heads=None, batch=25), USUAL_SELECTIONS, ('zero', 'after GRAIL', 'ridge'))}
INNER = [[f'layer3.{block}.{bn}' for block in (6, 7, 8)] for bn in ('bn1', 'bn2')]
# whose kernels go: its name among those of the claims, and from which layers to which
KERNELS_OF = {'vgg6-cifar10': ('vgg6', '4 to 5', ['layers.4', 'layers.5'], []),
              'vgg16-cifar10-d16': ('vgg16-narrow', '12 to 13', ['layers.12', 'layers.13'], []),
              'vgg16-cifar10-d64': ('vgg16', '12 to 13', ['layers.12', 'layers.13'], []),
              'vgg16-cifar100-d64': ('vgg16-cifar100', '12 to 13', ['layers.12', 'layers.13'], []),
              'resnet56-cifar100': ('resnet56-cifar100', 'inside the last blocks', *INNER)}
MACS = [('multiply-adds', left) for left in (.7, .6, .5)]
HALF = [('filters', .5)]
CUT = {'vgg16-cifar10-d64': [('8 to 13', range(8, 14), HALF), ('all', range(1, 14), MACS)],
       'vgg16-cifar10-d16': [('8 to 13', range(8, 14), HALF), ('all', range(1, 14), MACS)],
       **dict.fromkeys(['vgg6-cifar10', *APART], [('4, 5', (4, 5), HALF), ('all', range(1, 6), MACS)]),
       'resnet56-cifar10': [('inside blocks', range(9), MACS[:1])],
       'resnet56-cifar100': [('inside blocks', range(9), MACS[:1])]}


def method(text: str) -> Method:
    "As `method_of`; what is wrong is said by argparse."
    try: return method_of(text)
    except ParameterError as e: raise argparse.ArgumentTypeError(str(e)) from None


def options() -> argparse.Namespace:
    "What the command line asks for."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--arch', default='vgg6')
    p.add_argument('--dataset', default='digits')
    p.add_argument('--d', type=int, default=16)
    p.add_argument('--labels', default='all')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
    p.add_argument('--layers', type=int, nargs='+', default=[4, 5])
    p.add_argument('--recipe', default='fast')
    p.add_argument('--epochs', type=int, default=0, help='of phase 1; 0: as many as the recipe says')
    p.add_argument('--heads', default='exact', help='of phase 2: exact, paper, ridge')
    p.add_argument('--retrain', type=int, default=1, help='epochs of the short retraining')
    p.add_argument('--images', type=int, default=10_000, help='training images to retrain on')
    p.add_argument('--tables', nargs='+', choices=TABLES, default=[t for t in TABLES if t != 'scratch'])
    p.add_argument('--scores', nargs='+', default=None, help='of table removal; all, where none is named')
    p.add_argument('--fractions', type=float, nargs='+', default=[.25, .5, .75, .9], help='of the filters')
    p.add_argument('--rules', nargs='+', default=RULES, help='of table dilution')
    p.add_argument('--thresholds', type=float, nargs='+', default=[.3, .5, .7, .9], help='of table dilution')
    p.add_argument('--ends', type=method, nargs='+', default=METHODS, metavar='METHOD:STRENGTH',
                   help='of tables end and latency: filters by a score at a share, or a rule for kernels at '
                        'a threshold, as in "filters by noise:.5" "AFCC:.3"')
    p.add_argument('--whole', action='store_true',
                   help='of table end: retrain the whole network as phase 1 trained it')
    p.add_argument('--runs', default='runs')
    p.add_argument('--root', default='')
    p.add_argument('--device', default='auto')
    p.add_argument('--repair', nargs='+', choices=list(FILTERS_OF), default=[],
                   help='selection, then repair, on these networks')
    p.add_argument('--kernels', nargs='+', choices=list(KERNELS_OF), default=[],
                   help='kernels by clusters and other rules, then repair, on these networks')
    p.add_argument('--calibration', type=int, default=2_000,
                   help='training images on which --kernels averages fields and repairs')
    p.add_argument('--heads-on', choices=['all', 'calibration'], default='all',
                   help='the training images on which --kernels finds exact heads')
    p.add_argument('--scored', type=int, default=5_000, help='test images of --kernels')
    p.add_argument('--cut', nargs='+', choices=list(CUT), default=[], help='smaller and faster networks')
    p.add_argument('--files', type=Path, default=Path('.'), help='where weights of others lie')
    p.add_argument('--ship', action='store_true', help='put the tables of these runs into the package')
    return p.parse_args()


def scores_there() -> list[str]:
    "Our scores, and the library's if it is installed."
    if find_spec('torch_pruning'): return [*SCORES, *LIBRARY]
    print('torch-pruning is not installed (pip install dlmech[prune]): its rows are left out', flush=True)
    return list(SCORES)


def studies_of(subject: Subject, args: argparse.Namespace) -> dict[str, Study]:
    "The study of each table."
    epochs = (0, args.retrain)
    return dict(removal=removal_study(subject, args.scores, args.fractions, epochs=epochs),
                dilution=dilution_study(subject, args.rules, args.thresholds, epochs),
                scratch=scratch_study(subject),
                end=end_study(subject, args.ends, args.retrain, args.whole),
                latency=latency_study(subject, args.ends),
                head=head_study(subject))


def compare(args: argparse.Namespace, seed: int) -> Run:
    "Fills the tables of one network, which is trained if it is not there; its run."
    began = time.time()
    run = start(arch=args.arch, dataset=args.dataset, layer='all', labels=args.labels, d=args.d, seed=seed,
                recipe=args.recipe, epochs=args.epochs, heads=args.heads, runs=args.runs, root=args.root,
                device=args.device)
    subject = Subject(run, args.layers, args.images)
    print(f'{run.path.name}: ready after {time.time() - began:.0f} s', flush=True)
    studies = studies_of(subject, args)
    for name in args.tables: fill(studies[name], f'  {name}')
    return run


def fill(study: Study, told: str) -> None:
    "Fills a table and says how long it took."
    began = time.time()
    rows = len(study.fill())
    print(f'{told}: {rows} rows, {time.time() - began:.0f} s', flush=True)


def table_folder(args: argparse.Namespace) -> Path:
    "Where tables of networks of the package lie."
    folder = RESULTS if args.ship else Path(args.runs)
    folder.mkdir(exist_ok=True)
    return folder


def halves(images: ImageSet, seed: int) -> Data:
    "Half of some images, one of each label, to calibrate and to choose on, and the others to score on."
    own, rest = (images.at(part) for part in torch.randperm(
        len(images), generator=generator(seed, 'halves')).chunk(2))
    return Data(own, own, rest, 'imagenet-sample')


def network_and_data(name: str, args: argparse.Namespace) -> tuple:
    "A network of the package, or of a file of weights, and its images, or the photographs."
    if name == LITE0:
        from claims import lite0_net, photographs
        return lite0_net(), photographs(args.root)
    named = NAMED.get(name)
    if not (named and named.weights): return dlmech.load(name), get_data(name.split('-')[1], args.root)
    run = start(layer='all', weights=str(args.files/named.weights), runs=args.runs, root=args.root,
                **named.params)
    return train_or_load(run), run.data


def repairs(args: argparse.Namespace) -> None:
    "Fills the tables of repairs, seed by seed, so that what is there is whole whenever it is stopped."
    folder = table_folder(args)
    for seed in args.seeds:
        for name in args.repair:
            net, data = network_and_data(name, args)
            of, images = FILTERS_OF[name], halves(data, seed) if name == LITE0 else data
            make = partial(Calibrated, net, images, of.layers, **of.how)
            study = repair_study(folder/'repair-filters.csv', name, make, of.selections, of.ways, of.removed,
                                 [seed])
            fill(study, f'{name}, seed {seed}')


def paths_of(name: str, layers: Iterable[int]) -> list[str]:
    "The module paths of layers: a VGG's by number; of a ResNet the first convolutions of all its blocks."
    if not name.startswith('resnet'): return [f'layers.{n}' for n in layers]
    return [f'layer{stage}.{block}.bn1' for stage in (1, 2, 3) for block in layers]


def cuts(args: argparse.Namespace) -> None:
    "Fills the table of cuts, seed by seed."
    folder = table_folder(args)
    for seed in args.seeds:
        for name in args.cut:
            net, data = network_and_data(name, args)
            for layers, numbers, wanted in CUT[name]:
                make = partial(Calibrated, net, data, paths_of(name, numbers), whole=True, largest_map=1024)
                study = cut_study(folder/'repair-cuts.csv', name, make, layers, wanted, seeds=[seed])
                fill(study, f'{name}, {layers}, seed {seed}')


def kernels(args: argparse.Namespace) -> None:
    "Fills the table of kernels, seed by seed of the calibration images."
    folder = table_folder(args)
    for seed, name in product(args.seeds, args.kernels):
        known, layers, of, also = KERNELS_OF[name]
        weights = str(args.files/NAMED[known].weights) if NAMED[known].weights else ''
        run = named_run(NAMED[known], 0, weights, runs=args.runs, root=args.root)
        net, heads = merged(train_or_load(run)), 'exact'
        if args.heads_on == 'all': heads = heads_for(run, [run.layers.index(path) + 1 for path in of])[1]
        make = partial(Calibrated, net, run.data, of, images=args.calibration, scored=args.scored,
                       heads=heads, also=also)
        study = kernel_study(folder/'repair-kernels.csv', name, layers, make, seeds=[seed],
                             heads_on=f'{args.heads_on} training images')
        fill(study, f'{name}, {layers}, seed {seed}')


def main() -> None:
    "All networks, one after the other."
    args, runs = options(), []
    if args.cut: return cuts(args)
    if args.kernels: return kernels(args)
    if args.repair: return repairs(args)
    args.scores = args.scores or scores_there()
    for seed in args.seeds:
        runs.append(compare(args, seed))
        if args.ship: gather(runs, RESULTS)


if __name__ == '__main__': main()
