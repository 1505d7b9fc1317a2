"""The sweep over numbers of labels K of `05_universality`, in the background: killed at any point, the same
command goes on (a checkpoint each epoch, a row for each finished run).

    nohup python experiments/sweep.py --arch vgg6 --d 16 --steps 11130 --draws 3 --root DATA --ship &

11,130 steps are 30 epochs of CIFAR-100's hundred labels: every K gets as many. With --ship the table goes
into dlmech/results, where the notebooks read it.
"""
import argparse

from dlmech.run import base, DlmechError, RESULTS, write_csv
from dlmech.study.universality import describe_sweep, plan_sweep, sweep, sweep_claims, sweep_file


def options() -> argparse.Namespace:
    "What the command line asks for."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--arch', default='vgg6')
    p.add_argument('--dataset', default='cifar100')
    p.add_argument('--d', type=int, default=16)
    p.add_argument('--steps', type=int, default=11_130, help='of phase 1, for every K')
    p.add_argument('--Ks', type=int, nargs='+', default=[3, 5, 10, 20, 40, 60, 80, 100])
    p.add_argument('--draws', type=int, default=3)
    p.add_argument('--workers', type=int, default=0, help='processes side by side; 0: runs in turn')
    p.add_argument('--on', default='local', help='where: local, dask://HOST:PORT, or slurm')
    p.add_argument('--runs', default='runs')
    p.add_argument('--root', default='')
    p.add_argument('--device', default='auto')
    p.add_argument('--ship', action='store_true', help='put the table into the package, when all is done')
    return p.parse_args()


if __name__ == '__main__':
    a = options()
    asked = dict(arch=a.arch, dataset=a.dataset, d=a.d, runs=a.runs, root=a.root, device=a.device)
    try: table = sweep(a.Ks, a.draws, a.workers, steps=a.steps, on=a.on, **asked)
    except DlmechError as e: raise SystemExit(f'sweep: {e}') from None
    print(f'{describe_sweep(table)}\n{sweep_claims(table).to_string(index=False)}', flush=True)
    file = sweep_file(plan_sweep(a.Ks, a.draws, a.steps, **asked)[0], base()/a.runs, a.steps)
    if a.ship and (table.failed == '').all(): write_csv(RESULTS/file.name, table)
