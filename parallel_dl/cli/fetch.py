"""`parallel-dl fetch`: a data set's files from the network, resumed and checked, into the user's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from parallel_dl.cli.terminal import console
from parallel_dl.errors import InputError, number_of, unknown_name

if TYPE_CHECKING:
    from rich.console import Console


def fetch(
    dataset: Annotated[str, typer.Argument(help="fashion-mnist.")],
    into: Annotated[str | None, typer.Option(help="Folder to put the files in. [default: the user's cache]")] = None,
    source: Annotated[str | None, typer.Option("--from", help="Mirror URL. [default: the official server]")] = None,
) -> None:
    """Download a data set, or resume a partial download.

    Files are verified by SHA-256 before they are moved into place.
    """
    from parallel_dl.datasets import fashion_mnist, places
    from parallel_dl.datasets.download import DownloadError
    from parallel_dl.datasets.fetch import fetch as fetch_files

    if dataset != fashion_mnist.NAME:
        raise unknown_name("data set to fetch", dataset, [fashion_mnist.NAME])
    files = fashion_mnist.FILES
    folder = str(places.cache(dataset)) if into is None else into
    if not folder:
        raise InputError("--into '': expected a folder")
    address = fashion_mnist.URL if source is None else source
    screen = console(stderr=True)

    def waiting(name: str) -> None:
        screen.print(f"parallel-dl: another fetch is downloading {name}: waiting for it", soft_wrap=True, markup=False)

    try:
        with _progress(screen, {name: size for name, (size, _) in files.items()}) as report:
            new = fetch_files(files, address, folder, report=report, waiting=waiting)
    except DownloadError as error:
        raise InputError(
            f"{error}; try again, use a mirror (--from), install Debian's package dataset-{dataset}, "
            "or pass a folder with the files as --data-dir"
        ) from error
    print(f"{dataset} is in {folder}: {number_of(len(new), 'file')} fetched, {len(files) - len(new)} already there")


@contextmanager
def _progress(screen: Console, sizes: Mapping[str, int]) -> Iterator[Callable[[str, int], None]]:
    """A bar per file on a terminal; gives the function `report` for datasets.fetch."""
    if not screen.is_terminal:
        yield lambda name, have: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        tasks = {}

        def report(name: str, have: int) -> None:
            if name not in tasks:  # with what an earlier try has left, which is no speed of this one
                tasks[name] = bar.add_task(name, total=sizes[name], completed=have)
            bar.update(tasks[name], completed=have)

        yield report
