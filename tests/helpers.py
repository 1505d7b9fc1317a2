"What several tests share: places, small networks and images, notebooks by papermill, processes."
import os, shutil, signal, subprocess, sys, time
from collections.abc import Callable
from pathlib import Path

import pytest, torch, torch.nn.functional as F
from torch import nn

TOP = Path(__file__).resolve().parent.parent
NBS = TOP/'nbs'
TINY = dict(arch='vgg6', dataset='digits', d=2, epochs=1)  # the smallest run
# of processes: the checkout first, this interpreter's own commands, one thread
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg',
       'PYTHONPATH': os.pathsep.join([str(TOP), *os.environ.get('PYTHONPATH', '').split(os.pathsep)]),
       'PATH': os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])}


# ---- images and networks

def blobs(n: int, K: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    "Noisy images (n, 3, 16, 16) of K kinds, and their labels."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % K
    return torch.randn(n, 3, 16, 16, generator=g) + 3 * F.one_hot(y, 16).float()[:, None, :, None], y


def small_net(K: int = 4) -> nn.Module:
    "Two convolutions and an FC layer for `blobs`, untrained; its layers are 3 and 5."
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                         nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8*25, K))


def linked_net(K: int = 4) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A network with every kind of link (two convolutions, a flattened map, nodes; layers 3, 6, 9), and its
    images; trained a little, so that it has clusters."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
                        nn.MaxPool2d(4), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
                        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12*4, 20), nn.ReLU(), nn.Linear(20, K))
    x, y = blobs(120, K)
    opt = torch.optim.SGD(net.parameters(), .02, momentum=.9)
    for _ in range(12):
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
    return net.eval(), (x, y)


def state(net: nn.Module) -> list:
    "All that could have been changed in a network: modes, hooks, weights, gradients, buffers; flat."
    modules = [(name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
               for name, m in net.named_modules()]
    weights = [(name, p.device, p.requires_grad, p.stride(), p.detach().clone(),
                None if p.grad is None else p.grad.clone()) for name, p in net.named_parameters()]
    buffers = [(name, b.clone()) for name, b in net.named_buffers()]
    return [value for row in [*modules, *weights, *buffers] for value in row]


def same_state(a: list, b: list) -> bool:
    "Whether two states are equal to the bit."
    return len(a) == len(b) and all(torch.equal(u, v) if isinstance(u, torch.Tensor) else u == v
                                    for u, v in zip(a, b))


# ---- processes

def run(*command, timeout: float = 600, **changes) -> subprocess.CompletedProcess:
    "A command with its output, in the environment of tests."
    return subprocess.run(list(map(str, command)), **{'env': ENV, **changes}, capture_output=True,
                          encoding='utf-8', timeout=timeout)


def papermill(name: str, out: Path, *parameters: str, cwd: Path = TOP, timeout: float = 600
             ) -> subprocess.CompletedProcess:
    """The notebook of that name (or at that path) by papermill, written once it is done: saving it after
    every cell takes a quarter of the time."""
    given = [a for p in parameters for a in ('-p', *p.split('=', 1))]
    env = {k: v for k, v in ENV.items() if k != 'MPLBACKEND'}                   # a kernel shows its figures
    return run('papermill', NBS/f'{name}.ipynb', out, *given, '--no-progress-bar',
               '--no-request-save-on-cell-execute', cwd=cwd, timeout=timeout, env=env)


def python(code: str, *args) -> subprocess.Popen:
    "A process of Python that runs `code`, its output kept."
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], env=ENV, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, encoding='utf-8')


# goes before a process's own code, so that where it is killed hangs on what it did and not on when
KILL_AFTER = '''
def kill_after(n, module, name):
    "This process is killed as soon as `name` of `module` was called n times."
    import importlib, os, signal
    there, calls = importlib.import_module(module), []
    f = getattr(there, name)
    def counted(*args, **kwargs):
        result = f(*args, **kwargs)
        calls.append(0)
        if len(calls) == n: os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(there, name, counted)
'''


def killed(code: str, *args, after: tuple[int, str, str]) -> None:
    "Runs `code` in a process that is killed after the n-th call of a module's function."
    p = python(f'{KILL_AFTER}\nkill_after{after!r}\n{code}', *args)
    _, err = p.communicate(timeout=600)
    assert p.returncode == -signal.SIGKILL, f'it was not killed: {err}'


def wait_for(what: Callable[[], object], process: subprocess.Popen|None = None, limit: float = 600):
    """What `what()` says once it says anything, however slow the machine is.

    Raises an AssertionError if `process` ends without it, or after so many seconds."""
    end = time.time() + limit
    while not (found := what()):
        assert process is None or process.poll() is None, 'the process has ended'
        assert time.time() < end, f'nothing came in {limit} s'
        time.sleep(.02)
    return found


# ---- a browser

def find_chromium() -> str:
    "The path of a browser; where there is none, or no playwright, the test is skipped and says so."
    pytest.importorskip('playwright.sync_api',
                        reason='playwright is not installed, so no browser opens the page')
    path = shutil.which('chromium') or shutil.which('chromium-browser')
    if not path: pytest.skip('there is no chromium, so no browser opens the page')
    return path


def small_notebook(folder: Path) -> Path:
    "A notebook that has a file of results, and fails in a cell for seed 9 as long as there is a file `bad`."
    import nbformat
    cells = ["arch: str = 'vgg6'\nd: int = 2\nlayer: str = 'last'\nseed: int = 0\nruns: str = 'runs'", f"""
from pathlib import Path
print('begun')
if seed == 9 and Path({str(folder/'bad')!r}).exists(): raise ValueError('no memory')
at = Path(runs)/f'vgg6-digits-d2-fast-seed{{seed}}'
at.mkdir(parents=True, exist_ok=True)
(at/'found.json').write_text('{{"ninth": ' + str(seed/9) + '}}')"""]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c.strip()) for c in cells])
    nb.cells[0].metadata['tags'] = ['parameters']
    nb.metadata['kernelspec'] = dict(name='python3', display_name='python3', language='python')
    nbformat.write(nb, folder/'small.ipynb')
    (folder/'bad').touch()
    return folder/'small.ipynb'
