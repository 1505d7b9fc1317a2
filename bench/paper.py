"""Train what the papers trained, and measure it by the paper's recipe, in order of worth, within a number of minutes.

    python bench/paper.py --minutes 28 --runs runs --out out [--root DATA] [--jobs vgg6-cifar10 …]

Phase 1 is `fast` with the epochs below (ours: 300 epochs of `paper` for each would take hours); phases 2 and 3 are the paper's recipe,
200 epochs of heads on every layer. Each step is a process of its own that is ended when the time is up; what it had done lies in its
run's folder (a checkpoint each epoch), and the same command goes on from there. After every step `out` holds, whole, what the
finished networks state, their weights in half precision in parts of at most 16 MiB, and all tables.
"""
import argparse, json, shutil, subprocess, sys, time
from pathlib import Path

# arch, dataset, epochs of phase 1, aim of the test SR (the papers' or, for CIFAR-100, none)
JOBS = {'vgg6-cifar10': ('vgg6', 'cifar10', 60, .92), 'vgg16-cifar10': ('vgg16', 'cifar10', 60, .94),
        'avgg6-cifar10': ('avgg6', 'cifar10', 60, .936), 'vgg16-cifar100': ('vgg16', 'cifar100', 80, None),
        'avgg16-cifar10': ('avgg16', 'cifar10', 60, .955),
        'efficientnet_b0-cifar100': ('efficientnet_b0', 'cifar100', 80, None),
        'tiny': ('vgg6', 'digits', 1, None)}  # the last to try the script itself
PART = 16 * 2**20


def train(job: str, args) -> None:
    "Phase 1 of a job, shipped to `out`."
    from dlmech.model import ship, start, trained
    run = start(**given(job, args), recipe='fast', epochs=JOBS[job][2])
    net = trained(run)
    import torch
    hardware = torch.cuda.get_device_name() if run.device.type == 'cuda' else 'CPU'
    folder = Path(args.out)/job
    folder.mkdir(parents=True, exist_ok=True)
    stated = ship(run, net, hardware, folder)
    split(next(folder.glob('*.safetensors')))
    print(f'{job}: test SR {stated["test_success_rate"]:.4f}, aim {JOBS[job][3]}', flush=True)


def measure(job: str, args) -> None:
    "Phases 2 and 3 of a job by the paper's recipe, the tables copied to `out`."
    from dlmech.filter import filtered
    from dlmech.model import asked_layers, start
    weights = start(**given(job, args), recipe='fast', epochs=JOBS[job][2]).file('model.safetensors')
    run = start(**given(job, args), recipe='fast' if job == 'tiny' else 'paper', layer='all',
                weights=str(weights.resolve()))
    print(filtered(run, asked_layers(run)).round(3).to_string(), flush=True)
    folder = Path(args.out)/job/'paper'
    folder.mkdir(parents=True, exist_ok=True)
    for f in run.path.glob('*.csv'): shutil.copy(f, folder)


def given(job: str, args) -> dict:
    arch, dataset, _, _ = JOBS[job]
    return dict(arch=arch, dataset=dataset, root=args.root, runs=args.runs,
                **(dict(d=4) if job == 'tiny' else {}))


def split(path: Path) -> None:
    "A file of weights as parts of at most `PART` bytes; put together again by `cat`."
    if path.stat().st_size <= PART: return
    data = path.read_bytes()
    for i in range(0, len(data), PART): path.with_name(f'{path.name}.{i//PART}').write_bytes(data[i:i+PART])
    path.unlink()


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--minutes', type=float, default=28)
    p.add_argument('--runs', default='runs')
    p.add_argument('--out', default='out')
    p.add_argument('--root', default='')
    p.add_argument('--jobs', nargs='+', choices=JOBS, default=[j for j in JOBS if j != 'tiny'])
    p.add_argument('--step', choices=['train', 'measure'], help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.step:
        globals()[args.step](args.jobs[0], args)
        return 0
    end, log = time.time() + 60 * args.minutes, []
    for step, job in ((s, j) for j in args.jobs for s in ('train', 'measure')):
        began = time.time()
        if end - began < 5: break
        command = [sys.executable, __file__, '--step', step, '--jobs', job, '--runs', args.runs, '--out',
                   args.out, '--root', args.root]
        try: code = subprocess.run(command, timeout=end - began).returncode
        except subprocess.TimeoutExpired: code = 'time is up'
        log.append(dict(job=job, step=step, seconds=round(time.time() - began, 1), ended=code))
        Path(args.out).mkdir(parents=True, exist_ok=True)
        (Path(args.out)/'log.json').write_text(json.dumps(log, indent=1) + '\n')
    return 0


if __name__ == '__main__': sys.exit(main())
