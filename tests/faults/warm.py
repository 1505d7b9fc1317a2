"""Notebooks by papermill, hundreds of them: a process that has imported everything once forks one that is
papermill, and another that is its kernel; both are what they always are but for the time of their imports.
A process of its own, `python warm.py SOCKET`. `Warm` starts it, and runs notebooks by it."""
import json, os, random, signal, socket, subprocess, sys, threading, time, traceback
from pathlib import Path

import psutil

from helpers import ENV, NBS, wait_for

# what jupyter starts as a kernel: it asks for one, and lives as long as that
KERNEL = '''
import os, signal, socket, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)   # before it is told to end, it is interrupted
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(('["kernel", "%s", "%s"]' % (sys.argv[2], os.getcwd())).encode() + bytes([10]))
while s.recv(99): pass
'''


# ---- the process that forks

def be_kernel(there: socket.socket, connection: str, cwd: str) -> None:
    "An IPython kernel, until it is told to end, or the process that asked for it is no more."
    from ipykernel.kernelapp import IPKernelApp
    def watch():
        there.recv(1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.chdir(cwd)
    threading.Thread(target=watch, daemon=True).start()
    app = IPKernelApp.instance()
    app.initialize(['-f', connection, '--IPKernelApp.log_level=ERROR'])
    app.start()


def be_papermill(there: socket.socket, notebook: str, out: str, parameters: dict) -> None:
    "papermill of a notebook; what it says of itself goes to where it was asked for."
    import papermill
    there.sendall(f'{os.getpid()}\n'.encode())
    try:
        papermill.execute_notebook(notebook, out, parameters, kernel_name='warm', progress_bar=False,
                                   cwd=NBS.parent, request_save_on_cell_execute=False)
        there.sendall(b'done\n')
    except BaseException: there.sendall(traceback.format_exc().encode())


def serve(path: str) -> None:
    "Forks for everybody who asks."
    import matplotlib.pyplot, papermill
    from ipykernel import ipkernel, kernelapp
    import dlmech.measurement, dlmech.null
    from dlmech.model import start
    assert all((dlmech, papermill, ipkernel, kernelapp, matplotlib))
    start(arch='vgg6', dataset='digits', d=2, runs=f'{path}-warm')  # what is imported late is imported once
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)
        s.listen()
        while True:
            there, _ = s.accept()
            kind, *asked = json.loads(there.makefile().readline())
            if os.fork() == 0:
                s.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                dict(kernel=be_kernel, papermill=be_papermill)[kind](there, *asked)
                os._exit(0)
            there.close()


# ---- who asks

class Notebook:
    "One that papermill runs."
    def __init__(self, path: str, notebook: Path, out: Path, parameters: dict):
        self.there = socket.socket(socket.AF_UNIX)
        self.there.connect(path)
        self.there.sendall(json.dumps(['papermill', str(notebook), str(out), parameters]).encode() + b'\n')
        self.file = self.there.makefile()
        self.pid = int(self.file.readline())

    def ended(self) -> str:
        "What it said when it had ended: 'done', a traceback, or '' where it was killed."
        with self.there: return self.file.read().strip()

    def kill(self) -> bool:
        "Papermill and its kernel are killed; whether it was still at it."
        try: family = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess: family = []
        for process in family:
            try: process.kill()
            except psutil.NoSuchProcess: pass
        psutil.wait_procs(family, 60)
        return not self.ended()


class Warm:
    "The process that forks, in a `with`."
    def __init__(self, top: Path):
        self.top, self.socket, spec = top, str(top/'s'), top/'jupyter'/'kernels'/'warm'
        spec.mkdir(parents=True)
        argv = [sys.executable, '-S', '-c', KERNEL, self.socket, '{connection_file}']
        (spec/'kernel.json').write_text(json.dumps(dict(argv=argv, display_name='warm', language='python')),
                                             encoding='utf-8')
        env = {k: v for k, v in ENV.items() if k != 'MPLBACKEND'} | dict(JUPYTER_PATH=str(top/'jupyter'))
        env |= dict(TMPDIR=str(top/'tmp'), PYTHONPATH=os.pathsep.join([env['PYTHONPATH'], *sys.path[:2],
                                                                    str(Path(__file__).parent)]))
        (top/'tmp').mkdir()
        self.process = subprocess.Popen([sys.executable, __file__, self.socket], env=env)

    def __enter__(self) -> 'Warm':
        wait_for(Path(self.socket).exists, self.process)
        time.sleep(.1)
        return self

    def __exit__(self, *exc) -> None:
        self.process.kill()
        self.process.wait()

    def notebook(self, name: str, **parameters) -> Notebook:
        "A phase's notebook up to the cell that does the phase's work; what it shows and tests is left out."
        path = self.top/f'{name}.ipynb'
        if not path.exists(): path.write_text(json.dumps(until(name)), encoding='utf-8')
        out = self.top/'out'/f'{random.randbytes(8).hex()}.ipynb'
        out.parent.mkdir(exist_ok=True)
        return Notebook(self.socket, path, out, parameters)


WORK = {'01_model': 'train_or_load(', '02_probe': 'heads_for(', '03_filter': 'measure_run('}


def until(name: str) -> dict:
    "A notebook that ends with the first cell in which such a function is called."
    found = json.loads((NBS/f'{name}.ipynb').read_text(encoding='utf-8'))
    last = next(i for i, c in enumerate(found['cells']) if WORK[name] in ''.join(c['source']))
    return found | dict(cells=found['cells'][:last+1])


if __name__ == '__main__': serve(sys.argv[1])
