"What the house asks of its own code; tests/house.py prints how it reads in numbers."
import ast, inspect, re, shutil, subprocess, sys
from pathlib import Path

import pytest

import dlmech
from helpers import run, TOP
from house import cells, definitions, modules, names_in, notebooks, public

BOOKS, MODULES = notebooks(), modules()
EXPORTED = [c for found in BOOKS.values() for c in found if c.exported]
CODE = [c for found in BOOKS.values() for c in found if c.kind == 'code' and c.lines]
SCRIPTS = sorted(p for folder in ('tests', 'bench', 'experiments', 'docs') for p in (TOP/folder).glob('*.py'))
# data flows down: a module imports from those above it
ORDER = '''parameters run ranks stats look.glossary figures datasets batches layers trunk arch pace model
           probe filter null measurement silence causal
           pruning.links pruning.afcc pruning.scores pruning.repair pruning.compact pruning.prune
           study.study study.compare study.sweeps study.universality study.controls study.claims
           study.dynamics look.views look.marks look.beside look.explore look.report
           cli __main__'''.split()


def sources():
    "Where code stands, and the code: every cell of a notebook, every test and script."
    for c in CODE: yield c.notebook, c.code
    for p in SCRIPTS: yield f'{p.parent.name}/{p.name}', p.read_text(encoding='utf-8')


def functions():
    "Every public function and method of the package, and its class or None."
    for module, tree in MODULES.items():
        shown, found = set(public(tree)), dict(definitions(tree))
        for name, node in found.items():
            whose, _, own = name.rpartition('.')
            if not isinstance(node, ast.FunctionDef) or not {whose, own} & shown: continue
            if own.startswith('_') and not own.startswith('__'): continue
            yield f'{module}.{name}', node, found.get(whose)


def imported_by(name: str, tree: ast.Module) -> set[str]:
    "The modules of the package that this one imports from, in functions too."
    package, found = ['dlmech', *name.split('.')[:-1]], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) + 1 - node.level] if node.level else []
            module = '.'.join([*above, *(node.module or '').split('.')]).strip('.')
            found |= {module, *(f'{module}.{a.name}' for a in node.names)}
    return {m.removeprefix('dlmech.') for m in found} & set(ORDER)


def test_there_is_a_house_to_ask():
    "None of the questions below is asked of nothing."
    assert len(BOOKS) >= 24
    assert len(MODULES) >= 20
    assert len(EXPORTED) > 250
    assert len(CODE) > 600
    assert len(SCRIPTS) > 20
    assert len(list(functions())) > 250
    assert sum(len(imported_by(name, tree)) for name, tree in MODULES.items()) > 60


# ---- cells and statements

@pytest.mark.parametrize('name', BOOKS)
def test_an_exported_cell_fits_on_a_screen(name):
    heights = {c.lines[0]: len(c.code.splitlines()) for c in BOOKS[name] if c.exported}
    assert {first: n for first, n in heights.items() if n > 30} == {}


def test_an_assertion_asks_one_thing():
    joined = [(where, ast.unparse(node)) for where, code in sources() for node in ast.walk(ast.parse(code))
              if isinstance(node, ast.Assert) and isinstance(node.test, ast.BoolOp)
              and isinstance(node.test.op, ast.And)]
    assert joined == []


def test_ruff_finds_nothing():
    done = run('ruff', 'check', 'nbs', 'dlmech', 'tests', 'bench', 'experiments', 'docs', 'setup.py',
               '--output-format', 'concise', cwd=TOP)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_imports_what_it_does_not_use():
    done = run('ruff', 'check', 'dlmech', '--isolated', '--select', 'F401,F811', '--exclude', '_modidx.py',
               cwd=TOP)
    assert done.returncode == 0, done.stdout + done.stderr


def imports(path: Path) -> list[tuple[str, ...]]:
    "What a file or notebook imports, in order."
    found = []
    codes = [c.code for c in cells(path) if c.kind == 'code'] if path.suffix == '.ipynb' else None
    for code in codes or [path.read_text(encoding='utf-8')]:
        nodes = [n for n in ast.walk(ast.parse(code)) if isinstance(n, (ast.Import, ast.ImportFrom))]
        for node in sorted(nodes, key=lambda n: n.lineno):
            module = getattr(node, 'module', None)
            found += [tuple(filter(None, (module, a.name, a.asname))) for a in node.names]
    return found


TEXT = 'read_text', 'write_text', 'open', 'fdopen', 'TemporaryFile', 'NamedTemporaryFile'


def says_no_encoding(call: ast.Call) -> bool:
    "Whether a call reads or writes text and leaves it to the locale how."
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, 'attr', '')
    given = [*call.args, *(k.value for k in call.keywords)]
    values = [str(a.value) for a in given if isinstance(a, ast.Constant)]
    modes = [v for v in values if re.fullmatch('[rwax]?b[+]?', v)]
    if name not in TEXT or name == 'open' and isinstance(call.func, ast.Attribute): return False
    if modes or {'encoding', None} & {k.arg for k in call.keywords}: return False
    return name in TEXT[:4] or bool(given)  # a temporary file is one of bytes unless it is told


def test_text_is_utf_8_in_every_locale():
    "Of the package, of benches, experiments and docs, and of what tests share."
    assert says_no_encoding(ast.parse("f.write_text('a')", mode='eval').body)
    assert not says_no_encoding(ast.parse("open(f, 'rb+')", mode='eval').body)
    shared = [p for p in (*SCRIPTS, *(TOP/'tests'/'faults').glob('*.py')) if not p.name.startswith('test_')]
    trees = MODULES | {p.name: ast.parse(p.read_text(encoding='utf-8')) for p in shared}
    left = [f'{name}:{node.lineno}' for name, tree in trees.items() for node in ast.walk(tree)
            if isinstance(node, ast.Call) and says_no_encoding(node)]
    assert left == []


def test_imports_are_in_order(tmp_path):
    "In that of ruff's isort, which would also lay them out, a name a line."
    for folder in ('nbs', 'tests', 'bench', 'experiments', 'docs'):
        shutil.copytree(TOP/folder, tmp_path/folder, ignore=shutil.ignore_patterns('__pycache__', '.*'))
    shutil.copy(TOP/'pyproject.toml', tmp_path)
    files = {p: imports(p) for p in [*tmp_path.glob('nbs/*.ipynb'), *tmp_path.rglob('*.py')]}
    assert sum(map(len, files.values())) > 500
    done = run('ruff', 'check', '.', '--config', 'lint.ignore = []', '--select', 'I001', '--fix',
               cwd=tmp_path)
    assert 'fixed' in done.stdout, done.stdout + done.stderr  # of the layout at least
    moved = [str(p.relative_to(tmp_path)) for p, before in files.items() if imports(p) != before]
    assert moved == []


def test_no_text_of_a_figure_is_smaller_than_8_points():
    sizes = [(where, float(n)) for where, code in sources()
             for n in re.findall(r'(?:font|label|title_font)size=(\d[\d.]*)', code)]
    assert len(sizes) > 5
    assert [(where, n) for where, n in sizes if n < 8] == []


# ---- modules

def test_no_name_is_exported_by_two_modules():
    where = {}
    for module, tree in MODULES.items():
        for name in public(tree): where.setdefault(name, []).append(module)
    assert len(where) > 250
    assert {name: found for name, found in where.items() if len(found) > 1} == {}


@pytest.mark.parametrize('name', MODULES)
def test_a_module_imports_from_those_above_it(name):
    assert name in ORDER, 'a new module gets its place in ORDER'
    below = set(ORDER[ORDER.index(name):])
    assert imported_by(name, MODULES[name]) & below == set()


def test_no_hook_is_made_by_hand():
    made = {name for name, tree in MODULES.items()
            if any(re.fullmatch('register_.*hook', n) for n in names_in(ast.unparse(tree)))}
    # arch: the hook that translates colours is the network's own; model: the optimizer's, for an average
    assert made == {'layers', 'arch', 'model'}


# ---- what a user types

def test_dlmech_shows_what_a_user_types():
    assert dir(dlmech) == list(dlmech.__all__)
    assert 10 <= len(dlmech.__all__) <= 20


@pytest.mark.parametrize('name', dlmech.__all__)
def test_each_has_an_example_and_no_module_hides_it(name):
    text = inspect.getdoc(getattr(dlmech, name)) or ''
    assert f'dlmech.{name}' in text, text
    for path in (TOP/'dlmech'/f'{name}.py', TOP/'dlmech'/name/'__init__.py'):
        assert not path.exists(), f'{path} would hide it once it is imported'


def test_dlmech_is_imported_without_torch():
    code = 'import sys, dlmech; assert "torch" not in sys.modules; assert dlmech.__version__'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=TOP)


# ---- what docstrings say

def raises(node: ast.FunctionDef) -> bool:
    "Whether a function itself raises something new; functions in it speak for themselves."
    inside = list(node.body)
    while inside:
        n = inside.pop()
        if isinstance(n, ast.Raise) and n.exc is not None: return True
        if not isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Lambda)): inside += ast.iter_child_nodes(n)
    return False


def test_what_raises_says_so():
    raising = [(name, node, whose) for name, node, whose in functions() if raises(node)]
    assert len(raising) > 50
    silent = []
    for name, node, whose in raising:
        speaking = [node, whose] if node.name.startswith('__') else [node]  # a class speaks for __init__
        text = ' '.join(ast.get_docstring(n) or '' for n in speaking if n is not None)
        if not re.search('raise|error', text, re.I): silent.append(name)
    assert silent == []


SOURCE = r'\bP\d\b|\bours\b|et al|[A-Z]\w+ and [A-Z]\w+|\b20\d\d\b'
FORMULA = r'[=|*²√Σ∑·‖×~]|`[^`]*[-+/([][^`]*`'  # or an expression in backticks


def test_every_score_names_its_source_and_its_formula():
    from dlmech.pruning.scores import KERNELS, SCORES
    assert len(SCORES) + len(KERNELS) > 12
    texts = {f'{kind} by {name}': inspect.getdoc(score) or ''
             for kind, group in (('filters', SCORES), ('kernels', KERNELS)) for name, score in group.items()}
    assert len(set(texts.values())) >= len(SCORES), 'each speaks for itself'
    assert {name: text for name, text in texts.items() if not re.search(SOURCE, text)} == {}
    assert {name: text for name, text in texts.items() if not re.search(FORMULA, text)} == {}


def test_every_paper_that_is_named_is_in_the_list_of_references():
    entry = r'^\s*(?:[-*|]\s*)?\**\[?(P\d+)\b.*(?:https?://|arXiv|doi)'
    listed = {n for c in BOOKS['index'] for n in re.findall(entry, c.source, re.M)}
    named = {n for found in BOOKS.values() for c in found for n in re.findall(r'\bP\d+\b', c.source)}
    assert {'P1', 'P2', 'P3', 'P4', 'P5'} <= named
    assert named <= listed


# ---- names that went

GONE = '''Opened Loader Checked run_card open_finished asked_layers filtered probed Picks Facts ROOM Linked
          Asking keepers keep_best'''.split()
# these may stand in prose, or name a column
WORDS = 'facts measured pick sole turns goes together told trained'.split()


def said_in(code: str) -> tuple[set[str], set[str]]:
    "What some code defines and imports; the attributes that it asks for and the variables that it sets."
    made, asked = set(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): made.add(node.name)
        elif isinstance(node, ast.ImportFrom): made |= {a.name for a in node.names}
        elif isinstance(node, ast.Attribute): asked.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store): asked.add(node.id)
    return made, asked


def test_names_that_went_are_gone():
    said = [(where, *said_in(code)) for where, code in sources()]
    assert len(said) > 600
    assert len(set().union(*(made for _, made, _ in said))) > 700
    assert len(set().union(*(asked for _, _, asked in said))) > 700
    gone = {(where, name) for where, made, asked in said
            for name in (made | asked) & set(GONE) | made & set(WORDS)}
    assert gone == set()


def test_nothing_is_looked_up_in_the_names_of_a_module():
    assert [where for where, code in sources() if re.search(r'\bglobals\(\)\[', code)] == []


def test_prose_names_nothing_that_went():
    "Where text names code by backticks, in notebooks and in the README."
    texts = {name: '\n'.join(c.source for c in found) for name, found in BOOKS.items()}
    texts['README'] = (TOP/'README.md').read_text(encoding='utf-8')
    named = {name: {word for code in re.findall(r'`([^`\n]+)`', text) for word in re.findall(r'\w+', code)}
             for name, text in texts.items()}
    assert sum(map(len, named.values())) > 300
    assert {(name, word) for name, words in named.items() for word in words & set(GONE)} == set()
