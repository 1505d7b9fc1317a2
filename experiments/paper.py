"""Train what the papers trained, and measure it as the papers do, in order of worth, within a number of
minutes.

    python experiments/paper.py --minutes 28 --runs runs --out out [--root DATA] [--jobs vgg6-cifar10 …]
    python experiments/paper.py --minutes 600 --recipe brief --heads exact

Phase 1 is `fast` with the epochs below (ours: 300 epochs of `paper` for each would take hours), or on CPUs
rather `brief` with few; phases 2 and 3 are the paper's recipe, 200 epochs of heads on every layer, or exact
heads, with the null; then the causal test of the last four layers. Each step is a process of its own that
says what it does and when it will be over, and that is ended when the time is up, or by Ctrl-C; what it had
done lies in its run's folder (a checkpoint each epoch), and the same command goes on from there. After every
step `out` holds, whole, what the finished networks state, their weights in half precision in parts of at most
16 MiB, and all tables; `experiments/claims.py` puts a measured network among the claims.
"""
import argparse, json, logging, os, shutil, signal, subprocess, sys, time
from dataclasses import dataclass
from pathlib import Path

PART = 16 * 2**20  # bytes


@dataclass(frozen=True)
class Job:
    "A network of the papers."
    arch: str
    dataset: str
    fast: int              # epochs of phase 1 by `fast`,
    brief: int             # and by `brief`
    d: int = 0             # filters of the first layer; 0: as the papers have it
    seed: int = 0


JOBS = {
    'vgg6-cifar10': Job('vgg6', 'cifar10', 60, 12),
    'vgg16-cifar10': Job('vgg16', 'cifar10', 60, 10),
    'avgg6-cifar10': Job('avgg6', 'cifar10', 60, 14),
    'vgg16-cifar100': Job('vgg16', 'cifar100', 80, 12),
    'avgg16-cifar10': Job('avgg16', 'cifar10', 60, 12),
    'avgg16-cifar10-d16': Job('avgg16', 'cifar10', 60, 12, d=16),
    'efficientnet_b0-cifar100': Job('efficientnet_b0', 'cifar100', 80, 4),
    **{f'vgg16-cifar10-d32-seed{n}': Job('vgg16', 'cifar10', 60, 10, d=32, seed=n) for n in (0, 1, 2)},
    'tiny': Job('vgg6', 'digits', 1, 1, d=4),  # to try the script itself
}


def given(job: Job, args: argparse.Namespace) -> dict:
    "The parameters that all phases of a job share."
    return dict(arch=job.arch, dataset=job.dataset, d=job.d, seed=job.seed, root=args.root, runs=args.runs)


def run_of_training(job: Job, args: argparse.Namespace):
    "The run of phase 1."
    from dlmech.model import start
    epochs = args.epochs or getattr(job, args.recipe)
    return start(**given(job, args), recipe=args.recipe, epochs=epochs, layer='all')


def run_of_measuring(job: Job, args: argparse.Namespace):
    "The run of phases 2 and 3: that of phase 1, or, with other heads, one that takes its weights."
    from dlmech.model import start
    if args.heads == 'exact': return run_of_training(job, args)
    weights = run_of_training(job, args).file('model.safetensors')
    return start(**given(job, args), heads=args.heads, layer='all', weights=str(weights.resolve()))


def keep_tables(run, name: str, args: argparse.Namespace) -> None:
    "Copies a run's tables to `out`."
    folder = Path(args.out)/name/args.heads
    folder.mkdir(parents=True, exist_ok=True)
    for f in run.path.glob('*.csv'): shutil.copy(f, folder)


def split(path: Path) -> None:
    "A file of weights as parts of at most `PART` bytes; put together again by `cat`."
    if path.stat().st_size <= PART: return
    data = path.read_bytes()
    for i in range(0, len(data), PART): path.with_name(f'{path.name}.{i//PART}').write_bytes(data[i:i+PART])
    path.unlink()


def seconds_before(step: str, name: str, args: argparse.Namespace) -> float:
    "What that step of a job has taken, all sittings together."
    return sum(row['seconds'] for row in read_log(args) if (row['job'], row['step']) == (name, step))


def put_out(name: str, job: Job, args: argparse.Namespace, seconds: float) -> dict:
    "A trained network, what it states, and its layers' table if there is one, in `out`."
    import torch

    from dlmech.model import ship, train_or_load
    from dlmech.pace import describe_machine
    run = run_of_training(job, args)
    net = train_or_load(run)
    hardware = (torch.cuda.get_device_name() if run.device.type == 'cuda'
                else describe_machine().partition(', dlmech')[0])
    folder = Path(args.out)/name
    for old in folder.rglob('*.safetensors*'): old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    stated = ship(run, net, hardware, folder, hours=round(seconds / 3600, 2))
    split(next(folder.rglob('*.safetensors')))
    return stated


def train(name: str, job: Job, args: argparse.Namespace) -> None:
    "Phase 1 of a job, shipped to `out`."
    from dlmech.model import AIMS, train_or_load
    began = time.time()
    run = run_of_training(job, args)
    train_or_load(run)
    stated = put_out(name, job, args, seconds_before('train', name, args) + time.time() - began)
    aim = AIMS.get((job.arch, job.dataset, run.params.d), 'none')
    print(f'{name}: test SR {stated["test_success_rate"]:.4f}, aim {aim}', flush=True)


def measure(name: str, job: Job, args: argparse.Namespace) -> None:
    "Phases 2 and 3 of a job, the tables copied to `out`."
    from dlmech.measurement import measure_run
    run = run_of_measuring(job, args)
    print(measure_run(run).layers.round(3).to_string(), flush=True)
    keep_tables(run, name, args)
    put_out(name, job, args, seconds_before('train', name, args))


def silence(name: str, job: Job, args: argparse.Namespace) -> None:
    "The causal test of a job's last layers, the tables copied to `out` after each."
    from dlmech.causal import causal
    from dlmech.measurement import measure_run
    run = run_of_measuring(job, args)
    for layer in list(measure_run(run))[:-5:-1]:
        causal(layer, n=250)
        keep_tables(run, name, args)


STEPS = {'train': train, 'measure': measure, 'silence': silence}


def run_step(step: str, name: str, args: argparse.Namespace, seconds: float) -> int|str:
    "A step in a process of its own: its exit status, or why it was ended."
    command = [sys.executable, __file__, '--step', step, '--jobs', name, '--runs', args.runs,
               '--out', args.out, '--root', args.root, '--epochs', str(args.epochs), '--recipe', args.recipe,
               '--heads', args.heads]
    try: return subprocess.run(command, timeout=seconds).returncode
    except subprocess.TimeoutExpired: return 'time is up'
    except KeyboardInterrupt: return 'stopped'


def read_log(args: argparse.Namespace) -> list[dict]:
    "How the steps of all sittings ended."
    path = Path(args.out)/'log.json'
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else []


def run_jobs(args: argparse.Namespace) -> None:
    "The steps of all jobs in turn, each with what is left of the time; `out/log.json` says how each ended."
    end, log = time.time() + 60 * args.minutes, read_log(args)
    if hasattr(os, 'nice'): os.nice(args.nice)
    steps = [(step, name) for name in args.jobs for step in STEPS]
    for step, name in steps[:args.steps]:
        began = time.time()
        if end - began < 5: break
        ended = run_step(step, name, args, end - began)
        log.append(dict(job=name, step=step, seconds=round(time.time() - began, 1), ended=ended))
        Path(args.out).mkdir(parents=True, exist_ok=True)
        (Path(args.out)/'log.json').write_text(json.dumps(log, indent=1) + '\n', encoding='utf-8')
        if ended == 'stopped': break


def parser() -> argparse.ArgumentParser:
    "The command line."
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument('--minutes', type=float, default=28)
    p.add_argument('--steps', type=int, help='end after so many steps; a job has three')
    p.add_argument('--epochs', type=int, default=0, help="of phase 1, instead of the job's own")
    p.add_argument('--recipe', choices=['fast', 'brief'], default='fast', help='of phase 1')
    p.add_argument('--heads', default='paper', help='of phase 2')
    p.add_argument('--nice', type=int, default=10, help='a lower priority, so that other work goes on')
    p.add_argument('--runs', default='runs')
    p.add_argument('--out', default='out')
    p.add_argument('--root', default='')
    p.add_argument('--jobs', nargs='+', choices=JOBS, default=[name for name in JOBS if name != 'tiny'])
    p.add_argument('--step', choices=STEPS, help=argparse.SUPPRESS)
    return p


if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background are born deaf to it
    args = parser().parse_args()
    if args.step:
        name, = args.jobs
        logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s', datefmt='%a %H:%M')
        STEPS[args.step](name, JOBS[name], args)
    else: run_jobs(args)
