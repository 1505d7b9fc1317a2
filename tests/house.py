"""How the house reads, in numbers: python tests/house.py [CHECKOUT …] prints a column for each."""
import ast, io, json, re, sys, tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np, pandas as pd

TOP = Path(__file__).resolve().parent.parent


@dataclass
class Cell:
    "A cell of a notebook."
    notebook: str  # its name
    kind: str      # code or markdown
    source: str
    tags: list[str]

    @property
    def exported(self) -> bool:
        "Whether it is part of a module."
        return self.kind == 'code' and bool(re.match(r'\s*#\|\s*export', self.source))

    @property
    def code(self) -> str:
        "The source without nbdev's directives."
        return '\n'.join(line for line in self.source.splitlines() if not line.startswith('#|')).strip('\n')

    @property
    def lines(self) -> list[str]:
        "The lines that are not empty."
        return [line for line in self.code.splitlines() if line.strip()]

    @property
    def defines(self) -> bool:
        "Whether it defines a function or a class."
        return any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in ast.parse(self.code).body)


def cells(notebook: Path) -> list[Cell]:
    "A notebook's cells, in order."
    return [Cell(notebook.stem, c['cell_type'], ''.join(c['source']), c['metadata'].get('tags', []))
            for c in json.loads(notebook.read_text(encoding='utf-8'))['cells']]


def notebooks(top: Path = TOP) -> dict[str, list[Cell]]:
    "All notebooks by name."
    return {p.stem: cells(p) for p in sorted((top/'nbs').glob('*.ipynb'))}


def modules(top: Path = TOP) -> dict[str, ast.Module]:
    "The package's modules by name, as `pruning.afcc`, parsed; those that are made from notebooks."
    found = {'.'.join(p.relative_to(top/'dlmech').with_suffix('').parts): p
             for p in sorted((top/'dlmech').rglob('*.py')) if p.name not in ('__init__.py', '_modidx.py')}
    return {name: ast.parse(p.read_text(encoding='utf-8')) for name, p in found.items()}


def public(module: ast.Module) -> list[str]:
    "What stands in a module's `__all__`."
    values = [node.value for node in module.body if isinstance(node, ast.Assign)
              and getattr(node.targets[0], 'id', '') == '__all__']
    return [name for value in values for name in ast.literal_eval(value)]


def definitions(module: ast.Module, whose: ast.ClassDef|None = None) -> Iterator[tuple[str, ast.AST]]:
    "The functions, classes and methods of a module with their names."
    for node in (whose or module).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
        yield f'{whose.name}.{node.name}' if whose else node.name, node
        if isinstance(node, ast.ClassDef): yield from definitions(module, node)


def names_in(code: str) -> set[str]:
    "Every name, attribute and imported name of some code."
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name): found.add(node.id)
        elif isinstance(node, ast.Attribute): found.add(node.attr)
        elif isinstance(node, ast.ImportFrom): found |= {a.name for a in node.names}
    return found


def semicolons(code: str) -> int:
    "How many semicolons stand between statements."
    tokens = tokenize.generate_tokens(io.StringIO(code + '\n').readline)
    return sum(t.type == tokenize.OP and t.string == ';' for t in tokens)


def lengths(sources: list[str]) -> dict[str, str]:
    "How long the lines of some sources are, and how many semicolons they hold."
    n = np.array([len(line) for source in sources for line in source.splitlines() if line.strip()])
    signs = sum(map(semicolons, sources))
    return {'lines: p90 / over 120 / over 140': f'{np.percentile(n, 90):.0f} / {(n > 120).mean():.1%} / '
                                                f'{(n > 140).mean():.1%}',
            '`;` per 1,000 lines': f'{1000 * signs / len(n):.0f}'}


def of_cells(books: dict[str, list[Cell]]) -> dict[str, str]:
    "How long exported cells are, and how many that define something are followed by a demo."
    n = [len(c.lines) for found in books.values() for c in found if c.exported]
    followed = []
    for found in books.values():
        code = [c for c in found if c.kind == 'code' and c.lines]
        followed += [not after.exported for c, after in zip(code, code[1:]) if c.exported and c.defines]
        followed += [False] * bool(code and code[-1].exported and code[-1].defines)
    size = f'{np.median(n):.0f} / {np.percentile(n, 90):.0f} / {max(n)}'
    return {'exported cells': f'{len(n)}', 'exported cell: median / p90 / max lines': size,
            'exported cell followed by a demo': f'{np.mean(followed):.0%}'}


def of_names(books: dict[str, list[Cell]]) -> dict[str, str]:
    "How many functions and classes are public, and how many of these are used outside their notebook."
    names = {k: set().union(*(names_in(c.code) for c in found if c.kind == 'code'))
             for k, found in books.items()}
    outside, every, shown = 0, 0, 0
    for book, found in books.items():
        for c in found:
            for node in ast.parse(c.code).body if c.exported else ():
                if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
                every += 1
                if node.name.startswith('_'): continue
                shown += 1
                outside += any(node.name in names[other] for other in books if other != book)
    return {'functions and classes: public / all': f'{shown} / {every}',
            'public ones used outside their notebook': f'{outside} ({outside/shown:.0%})'}


def of_docstrings(top: Path) -> dict[str, str]:
    "How many public functions and classes have a docstring, and how much it says."
    texts = [ast.get_docstring(node) or '' for module in modules(top).values()
             for name, node in definitions(module) if name in public(module)]
    asked = {'docstrings': '.', 'docstrings beyond their first paragraph': r'\n\n',
             'docstrings that name an error': r'(?i)raise|error',
             'docstrings that name a source': r'\bP\d\b|\bours\b|et al|\b20\d\d\b'}
    return {what: f'{np.mean([bool(re.search(of, t)) for t in texts]):.0%}' for what, of in asked.items()}


def count(top: Path = TOP) -> dict[str, str]:
    "The house in numbers."
    books = notebooks(top)
    exported = [c.code for found in books.values() for c in found if c.exported]
    read = lambda folder: [p.read_text(encoding='utf-8') for p in sorted((top/folder).glob('*.py'))]
    scripts = {name: [text for folder in folders for text in read(folder)]
               for name, folders in (('tests', ['tests']), ('bench', ['bench', 'experiments']))}
    rows = lengths(exported)
    for name, sources in scripts.items(): rows |= {f'{name}, {k}': v for k, v in lengths(sources).items()}
    return rows | of_cells(books) | of_names(books) | of_docstrings(top)


if __name__ == '__main__':
    tops = [Path(a).resolve() for a in sys.argv[1:]] or [TOP]
    table = pd.DataFrame({top.name if len(tops) == 1 else str(top): count(top) for top in tops})
    print('| | ' + ' | '.join(table.columns) + ' |\n|---' + '|---' * len(table.columns) + '|')
    for name, row in table.iterrows(): print(f'| {name} | ' + ' | '.join(row) + ' |')
