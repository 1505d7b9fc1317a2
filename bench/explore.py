"""How fast the explorer answers: a tick (a slider's new value, until the pictures that follow from it are
ready), and opening a finished run (controls, matrix and curves; the views with images follow, when the images
are read).

    OMP_NUM_THREADS=1 python bench/explore.py
    OMP_NUM_THREADS=1 python bench/explore.py RUN    the first cells of 06_explore, on a run, in a new Python;
                                                     the median of five, after one that is not counted

A run of K = 10 labels and 256 filters, and one of K = 1000 labels and 1,280 filters whose fields are made up
(10 GB in the temporary folder). A tick draws what follows a drag at once; what needs the network for many
images (maps over images, a silenced network) follows when the slider rests.
"""
import asyncio, json, os, platform, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np, pandas as pd, torch

from dlmech.arch import get_model, layers_of
from dlmech.datasets import Data, ImageSet
from dlmech.filter import filter_rows, find_clusters, layer_means, normalised
from dlmech.look.explore import Explorer
from dlmech.measurement import layer_row, Measurement, open_measurement
from dlmech.run import asked_by, read_json, tensor_in_parts, versions, write_csv, write_json, write_tensors

TICKS = 60


def made_up(folder: Path, K: int, d: int, n: int = 5) -> Path:
    "A finished run of vgg6 with made-up fields: every filter picks one to five labels, with noise."
    path, C, rng = folder/f'vgg6-K{K}', 8*d, np.random.default_rng(0)
    names, paths = [f'label {k}' for k in range(K)], layers_of('vgg6')
    write_json(path/'config.json', dict(arch='vgg6', dataset='digits', labels='all', d=d, seed=0,
                                        recipe='fast', epochs=0, K=K, names=names, layers=paths,
                                        versions=versions()))
    write_tensors(path/'model.safetensors', get_model('vgg6', K, d).state_dict())
    write_tensors(path/f'head-{n}.safetensors', dict(weight=torch.randn(K, C, 1, 1) / C**.5))
    write_tensors(path/f'top-{n}.safetensors', dict(field=torch.rand(C, 8).sort(1, True).values,
                                                    image=torch.randint(0, 100, (C, 8)),
                                                    output=torch.randint(0, K, (C, 8))))
    rows = []
    with tensor_in_parts(path/f'fields-{n}.safetensors', 'fields', (C, K, K)) as add:
        for f in range(C):
            M = rng.standard_normal((K, K), dtype=np.float32).astype(float) * .1
            for _ in range(rng.integers(1, 4)):
                labels = rng.choice(K, rng.integers(1, 6))
                M[np.ix_(labels, labels)] += 1
            add(M)
            M = torch.from_numpy(M)[None]
            rows.append(filter_rows(M, find_clusters(normalised(M)), torch.ones(1, K, dtype=torch.int64), f))
    filters = pd.concat(rows, ignore_index=True)
    write_csv(path/f'filters-{n}.csv', filters)
    row = layer_means(filters, K)
    write_csv(path/'layers.csv', pd.DataFrame([layer_row(n, paths[n-1], .5, row, {})]))
    return path


def opened(path: Path) -> Measurement:
    "The run's measurement, with as many made-up images as are asked for."
    m = open_measurement(path)
    images = ImageSet(torch.randint(0, 256, (2*m.K, 32, 32, 3), dtype=torch.uint8),
                      torch.arange(2*m.K) % m.K, m.names)
    m.source.run.data = Data(images, images, images)
    return m


FIRST_CELLS = """
import asyncio, json, sys, time, warnings
warnings.simplefilter('ignore')
t = time.perf_counter(), time.process_time()
import dlmech
from dlmech.look.explore import Explorer

spent = {}
def tick(what): spent[what] = time.perf_counter() - t[0], time.process_time() - t[1]
tick('imported')
run = dlmech.start(**json.loads(sys.argv[1]))
tick('started')
found = dlmech.measure_run(run)
tick('measured')
async def show(): return Explorer(found)
e = asyncio.run(show())
tick('matrix, curves, numbers')
e.soon.quick()
tick('images')
e.soon.slow()
tick('all pictures')
print(json.dumps(spent))
"""


def run_all(folder: Path, times: int = 5) -> pd.DataFrame:
    "Median seconds from a new Python to each step of the first cells of 06_explore, on a run that is there."
    asked = asked_by(read_json(folder/'config.json')) | dict(runs=str(folder.parent))
    numbers = [int(p.stem.split('-')[1]) for p in folder.glob('fields-*.safetensors')]
    asked['layer'] = max(numbers)
    def once() -> pd.DataFrame:
        done = subprocess.run([sys.executable, '-c', FIRST_CELLS, json.dumps(asked)], stdout=subprocess.PIPE,
                              encoding='utf-8', check=True)
        return pd.DataFrame(json.loads(done.stdout.splitlines()[-1]), index=['wall_s', 'cpu_s']).T
    once()  # which notes that the files of the images are as they were
    found = pd.concat([once() for _ in range(times)])
    return found.groupby(level=0, sort=False).median()


def measure(path: Path) -> dict:
    "Milliseconds of a tick of each slider, median and 95th percentile, and seconds to open."
    async def show():
        return Explorer(opened(path))                       # as in a kernel, whose loop draws the rest later
    t = time.perf_counter()
    e = asyncio.run(show())
    times = dict(open_s=time.perf_counter() - t)
    t = time.perf_counter()
    e.flush()
    times['rest_after_open_s'] = time.perf_counter() - t
    settle, e.soon.slow = e.soon.slow, lambda: None                        # at once: what a drag draws
    for v in range(100, 130): e.controls['filter'].value = v               # warm-up
    for control, values in (('filter', range(1, TICKS+1)), ('threshold', np.linspace(.2, .6, TICKS)),
                            ('image', [1, 0]*(TICKS//2))):
        ticks = []
        for v in values:
            t = time.perf_counter(), time.process_time()
            e.controls[control].value = v
            ticks.append(((time.perf_counter() - t[0]) * 1e3, (time.process_time() - t[1]) * 1e3))
        wall, cpu = zip(*ticks)  # on a busy machine the second says more
        times |= {f'{control}_median_ms': np.median(wall), f'{control}_p95_ms': np.percentile(wall, 95),
                  f'{control}_cpu_median_ms': np.median(cpu), f'{control}_cpu_p95_ms': np.percentile(cpu, 95)}
    t = time.perf_counter()
    settle()
    times['at_rest_ms'] = (time.perf_counter() - t) * 1e3
    return times


def tables(quick: bool = False) -> dict[str, pd.DataFrame]:
    "Milliseconds of a tick of each slider, and what it takes to open a run, by the size of the run."
    with tempfile.TemporaryDirectory() as tmp:
        found = {f'K = {K}, {8*d} filters': measure(made_up(Path(tmp), K, d))
                 for K, d in ([(4, 1)] if quick else [(10, 32), (1000, 160)])}
    return {'explore': pd.DataFrame(found).T.rename_axis('run').reset_index()}


if __name__ == '__main__':
    if len(sys.argv) > 1: print(run_all(Path(sys.argv[1])).round(2).to_string())
    else: print(tables()['explore'].set_index('run').T.round(1).to_string())
    print(f'median and 95th percentile of {TICKS} ticks; {os.cpu_count()} cores, {torch.get_num_threads()} '
          f'thread(s), load {os.getloadavg()[0]:.1f}; '
          f'torch {torch.__version__}, {platform.machine()}, Python {sys.version.split()[0]}')
