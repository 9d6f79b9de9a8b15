"""Writes docs/reference from the docstrings: python docs/make_reference.py, or `make reference`.

The source is read, not run, so MPI is not needed. A page has the names that a package exports in `__all__`, or the
public names of a module: signature, docstring, and for a class its attributes and methods. What is inherited from a
class without a name in public is listed as the class's own.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from reference_pages import COMMON, EXTENSIONS, NOT_MADE, PAGES, Page

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"


@dataclass
class Entry:
    """A public name: what the source says of it."""

    name: str
    kind: str
    """class, function, method, property, attribute or module"""
    path: Path
    signatures: list[str]
    doc: str
    arguments: list[str] = field(default_factory=list)
    members: list[Entry] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)


# -- reading -------------------------------------------------------------------------------------------------------
@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def path_of(module: str) -> Path | None:
    """The file of a module, or of a package's `__init__`; None for what is neither."""
    below = ROOT.joinpath(*module.split("."))
    return next((path for path in (below / "__init__.py", below.with_suffix(".py")) if path.is_file()), None)


def public_names(module: str) -> list[str]:
    """`__all__`, in the order in which the package imports the names; of a module without it, what it defines."""
    path = path_of(module)
    assert path is not None, f"there is no module {module}"
    tree = tree_of(path)
    exported: list[str] | None = None
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = ast.literal_eval(node.value)
    if exported is None:
        defined = (node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef))
        return [node.name for node in defined if not node.name.startswith("_")]
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    imported = [alias.asname or alias.name for node in imports for alias in node.names]
    return sorted(exported, key=lambda name: imported.index(name) if name in imported else -1)


def is_overload(node: ast.ClassDef | ast.FunctionDef) -> bool:
    return any(ast.unparse(one) == "overload" for one in node.decorator_list)


def definition(module: str, name: str) -> tuple[str, ast.stmt | None]:
    """(the module that defines it, its node there); (its own name, None) for a module."""
    path = path_of(module)
    assert path is not None, f"there is no module {module}"
    for node in tree_of(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name and not is_overload(node):
            return module, node
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in (ast.unparse(target) for target in targets(node)):
            return module, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                home = node.module or ""
                if (alias.asname or alias.name) == name and home.startswith("parallel_dl") and home != module:
                    return definition(home, alias.name)
    if path_of(f"{module}.{name}") is not None:
        return f"{module}.{name}", None
    raise LookupError(f"{module} has no {name}")


def targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def entry(module: str, name: str) -> Entry:
    """What the source says of a name."""
    home, node = definition(module, name)
    path = path_of(home)
    assert path is not None
    if node is None:
        doc = ast.get_docstring(tree_of(path)) or ""
        members = [entry(home, below) for below in public_names(home)]
        for member in members:
            member.name = f"{name}.{member.name}"
            member.signatures = [f"{name}.{line}" for line in member.signatures]
        return Entry(name, "module", path, [], doc, members=members)
    if isinstance(node, ast.ClassDef):
        return class_entry(home, node, path)
    if isinstance(node, ast.FunctionDef):
        return function_entry(node, path, name)
    return Entry(name, "attribute", path, [ast.unparse(targets(node)[0])], text_after(tree_of(path).body, node))


def function_entry(node: ast.FunctionDef, path: Path, name: str, method: bool = False) -> Entry:
    """A function, or a method without its first argument."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    is_property = "property" in decorators
    if is_property:
        returns = f": {ast.unparse(node.returns)}" if node.returns else ""
        return Entry(name, "property", path, [f"{name}{returns}"], ast.get_docstring(node) or "")
    skipped = 1 if method and "staticmethod" not in decorators else 0
    kind = "method" if method else "function"
    return Entry(
        name, kind, path, [signature(name, node, skipped)], ast.get_docstring(node) or "", arguments(node, skipped)
    )


def signature(name: str, node: ast.FunctionDef, skipped: int, returns: bool = True) -> str:
    """The call as one writes it, with types and defaults; what an operation on tensors is made of returns more."""
    makes_operation = any(re.match("primitive|movement", ast.unparse(one)) for one in node.decorator_list)
    result = "Tensor" if makes_operation else node.returns and ast.unparse(node.returns)
    given = list(written_arguments(node.args, skipped))
    if makes_operation:  # on tensors, of a function on arrays
        given = [re.sub(r"\bArray\b", "Tensor", one) for one in given]
    return call(name, given, f" -> {result}" if returns and result else "")


def call(name: str, parts: list[str], result: str = "") -> str:
    """name(parts) -> result; a line for each part where it is long."""
    line = f"{name}({', '.join(parts)}){result}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(parts) + f",\n){result}"


def written_arguments(given: ast.arguments, skipped: int) -> Iterator[str]:
    """Each argument with its type and default."""
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + [*given.defaults]
    for place, (one, default) in enumerate(zip(positional, defaults)):
        if place >= skipped:
            yield typed(one, default)
        if place + 1 == len(given.posonlyargs):
            yield "/"
    if given.vararg:
        yield f"*{typed(given.vararg)}"
    elif given.kwonlyargs:
        yield "*"
    for one, default in zip(given.kwonlyargs, given.kw_defaults):
        yield typed(one, default)
    if given.kwarg:
        yield f"**{typed(given.kwarg)}"


def typed(one: ast.arg, default: ast.expr | None = None) -> str:
    kind = f": {ast.unparse(one.annotation)}" if one.annotation else ""
    value = "" if default is None else f" = {ast.unparse(default)}" if kind else f"={ast.unparse(default)}"
    return f"{one.arg}{kind}{value}"


def arguments(node: ast.FunctionDef, skipped: int) -> list[str]:
    given = node.args
    every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return [one.arg for one in every[skipped:] if one and not one.arg.startswith("_")]


def class_entry(module: str, node: ast.ClassDef, path: Path) -> Entry:
    """A class: how it is made, its public attributes, properties and methods."""
    made = Entry(node.name, "class", path, [], ast.get_docstring(node) or "")
    members: dict[str, Entry] = {}
    fields: dict[str, str] = {}
    constructor: ast.FunctionDef | None = None
    documented = {
        member.name
        for owner, _ in lineage(module, node)
        for member in owner.body
        if isinstance(member, ast.FunctionDef) and ast.get_docstring(member)
    }
    for owner, where in lineage(module, node):
        if owner is not node and owner.name in homes():
            made.bases.append(owner.name)
            constructor = constructor or own_constructor(owner)
            continue
        file = path_of(where)
        assert file is not None
        constructor = constructor or own_constructor(owner)
        for member in own_members(owner, file, fields):
            if member.doc or member.name not in documented:
                members.setdefault(member.name, member)
    is_data = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    if node.name in NOT_MADE:
        pass
    elif constructor is not None:
        made.signatures = [signature(node.name, constructor, 1, returns=False)]
        made.arguments = arguments(constructor, 1)
    elif is_data or "NamedTuple" in map(ast.unparse, node.bases):
        made.signatures, made.arguments = [call(node.name, list(fields.values()))], list(fields)
    else:
        made.signatures = [f"class {node.name}({', '.join(map(ast.unparse, node.bases))})"]
    made.members = list(members.values())
    return made


def lineage(module: str, node: ast.ClassDef) -> Iterator[tuple[ast.ClassDef, str]]:
    """The class and its bases in the package, nearest first, each with its module."""
    yield node, module
    for base in node.bases:
        if isinstance(base, ast.Name):
            try:
                home, found = definition(module, base.id)
            except LookupError:
                continue
            if isinstance(found, ast.ClassDef):
                yield from lineage(home, found)


def own_constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    found = (member for member in node.body if isinstance(member, ast.FunctionDef) and member.name == "__init__")
    return next(found, None)


def own_members(node: ast.ClassDef, path: Path, fields: dict[str, str]) -> Iterator[Entry]:
    """What a class defines without an underscore and with a docstring; annotated names go into `fields`."""
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
            yield function_entry(member, path, member.name, method=True)
        elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            name, written = member.target.id, ast.unparse(member).split("\n")[0]
            if not name.startswith("_") and "ClassVar" not in written:
                fields.setdefault(name, written)
                if text := text_after(node.body, member):
                    yield Entry(name, "attribute", path, [written.split(" = ")[0]], text)


def text_after(body: list[ast.stmt], node: ast.stmt) -> str:
    """The string that stands below an assignment, and says what it is."""
    place = body.index(node) + 1
    after = body[place] if place < len(body) else None
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
        return inspect.cleandoc(after.value.value)
    return ""


# -- writing -------------------------------------------------------------------------------------------------------
def markdown(doc: str) -> str:
    """A docstring as Markdown: stars that are no emphasis, and angle brackets, are escaped outside of code."""
    lines = []
    for line in doc.splitlines():
        if line.startswith(("    ", "|")):
            lines.append(line)
            continue
        parts = line.split("`")
        for place in range(0, len(parts), 2):
            part = re.sub(r"(?<![\w*\\])\*(\w(?:[^*\n]*\w)?)\*(?![\w*])", "\0\\1\0", parts[place])
            parts[place] = part.replace("*", "\\*").replace("\0", "*").replace("<", "&lt;")
        lines.append("`".join(parts))
    return "\n".join(lines)


def heading(text: str, level: int) -> str:
    return f"{'#' * level} {text}\n"


def written(one: Entry, level: int = 2) -> str:
    """An entry as Markdown."""
    source = one.path.relative_to(ROOT)
    parts = [heading(one.name, level)]
    if one.signatures:
        parts.append("```python\n" + "\n".join(one.signatures) + "\n```\n")
    if one.doc:
        parts.append(markdown(one.doc) + "\n")
    if one.kind == "module":
        return "\n".join([*parts, *(written(member, level + 1) for member in one.members)])
    if one.bases:
        links = ", ".join(f"[{base}]({homes()[base]}.md#{anchor(base)})" for base in dict.fromkeys(one.bases))
        parts.append(f"It also has the members of {links}.\n")
    for member in one.members:
        if member.doc:
            parts.append(bullet(member))
    parts.append(f"<sub>[{source.relative_to('parallel_dl')}](../../{source})</sub>\n")
    return "\n".join(parts)


def bullet(member: Entry) -> str:
    """A member of a class as an item of a list."""
    line = " ".join(line.strip() for line in member.signatures[0].splitlines()).replace("( ", "(").replace(", )", ")")
    text = markdown(member.doc).splitlines()
    return "\n".join([f"- `{line}`<br>", *(f"  {line}".rstrip() for line in text)]) + "\n"


def page(one: Page) -> str:
    """The text of a page."""
    path = path_of(one.module)
    assert path is not None
    entries = entries_of(one)
    about = ast.get_docstring(tree_of(path)) or ""
    if path.name == "__init__.py":  # the rest is an order to read its modules in
        about = about.split("\n\n")[0]
    contents = "\n".join(f"- [{each.name}](#{where}): {first_sentence(each)}" for each, where in anchored(entries))
    head = [heading(one.title, 1), f"`{one.module}`. {markdown(about)}\n", contents + "\n"]
    return "\n".join([*head, *(written(each) for each in entries), common(entries)])


def common(entries: list[Entry]) -> str:
    """The arguments that need no word in each docstring: those of this page."""
    used = {argument for one in entries for each in (one, *one.members) for argument in unnamed(each, one.doc)}
    rows = "\n".join(f"| `{name}` | {COMMON[name]} |" for name in sorted(used & COMMON.keys()))
    head = "## Common arguments\n\n| argument | meaning |\n|---|---|\n"
    return f"{head}{rows}\n" if rows else ""


def unnamed(one: Entry, context: str) -> list[str]:
    """The arguments that neither its docstring nor that of the class around it names, nor another that it refers to."""
    if re.search(r"\b([Ss]ee|[Aa]s) `", one.doc):
        return []
    own = {member.name for member in one.members if member.kind == "attribute" and member.doc}
    said = f"{one.doc} {context}"
    return [name for name in one.arguments if name not in own and not re.search(rf"(?<!\w){name}(?!\w)", said)]


@cache
def homes() -> dict[str, str]:
    """The file of the page on which each name is."""
    return {name: one.file for one in reversed(PAGES) for name in names_of(one)}


def names_of(one: Page) -> list[str]:
    return list(one.names) or [name for name in public_names(one.module) if name not in one.without]


def entries_of(one: Page) -> list[Entry]:
    return [entry(one.module, name) for name in names_of(one)]


def anchored(entries: list[Entry]) -> Iterator[tuple[Entry, str]]:
    """Each entry with the anchor that its heading gets: of two that differ in case alone the second is numbered."""
    seen: dict[str, int] = {}
    for one in entries:
        for name in (one.name, *(member.name for member in one.members if one.kind == "module")):
            where = anchor(name)
            number = seen[where] = seen.get(where, -1) + 1
            if name == one.name:
                yield one, f"{where}-{number}" if number else where


def anchor(name: str) -> str:
    return name.lower().replace(".", "")


def first_sentence(one: Entry) -> str:
    """What a docstring begins with, to its first full stop."""
    text = " ".join(one.doc.split("\n\n")[0].split())
    return markdown(re.split(r"\.(?= [A-Z`]|$)", text)[0])


def index() -> str:
    """The page that leads to the others."""
    rows = "\n".join(f"- [{one.title}]({one.file}.md): `{one.module}`" for one in PAGES)
    extensions = "\n".join(
        f"| {what} | [{name}]({file}.md#{anchor(name)}) | {needs} |" for what, file, name, needs in EXTENSIONS
    )
    return (
        "# API reference\n\nThe public API, with every argument. These pages are generated from the docstrings by "
        "`make reference`.\n\n"
        f"{rows}\n\n## Extension points\n\nWhat a program can add without changing the package:\n\n"
        f"| to add | start from | you write |\n|---|---|---|\n{extensions}\n"
    )


def pages() -> dict[str, str]:
    """File name -> text, of every page."""
    texts = {f"{one.file}.md": page(one) for one in PAGES} | {"README.md": index()}
    return {name: re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n" for name, text in texts.items()}


def main() -> None:
    """Writes all pages and removes others."""
    FOLDER.mkdir(exist_ok=True)
    texts = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
