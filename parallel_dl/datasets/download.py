"""Downloads one file over HTTP, resuming a partial download.

That is why it is not pooch's: pooch 1.9 starts a download that broke off from the beginning.
"""

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, BinaryIO

from parallel_dl.errors import InputError
from parallel_dl.files import one_line

CHUNK = 1 << 16


class DownloadError(InputError):
    """A file did not come, not all of it, or another one; the one line begins with its address."""


def download(url: str, file: BinaryIO, size: int, report: Callable[[int], None], seconds: float) -> None:
    """Complete `file`, open for appending, to the `size` bytes at `url`; report(bytes) whenever there are more.

    The rest is asked for by an HTTP range (RFC 9110, section 14). A server that sends the whole file instead, or
    cannot satisfy the range, is taken from the start. `seconds` without a byte, and it is given up.

    Raises DownloadError. What has come by then is in `file`, and stays there.
    """
    have = file.seek(0, os.SEEK_END)
    if have > size:  # no beginning of this file
        file.truncate(have := 0)
    report(have)
    if have == size:
        return
    response = _ask(url, have, seconds)
    first = _first_byte(response, url, size)
    if have and first not in (0, have):
        response.close()
        response = _ask(url, 0, seconds)
        first = _first_byte(response, url, size)
    with response:
        if first not in (0, have):
            raise DownloadError(f"{url}: answers {response.status} {response.reason}, not the file")
        file.truncate(have := first)
        while have < size:
            try:
                chunk = response.read1(min(CHUNK, size - have))
                if not chunk:
                    raise ConnectionError("the connection was closed")
            except (OSError, http.client.HTTPException) as error:
                raise DownloadError(
                    f"{url}: broke off after {have} of {size} bytes ({one_line(error)}); they are kept"
                ) from error
            file.write(chunk)
            file.flush()
            have += len(chunk)
            report(have)


def _ask(url: str, start: int, seconds: float) -> Any:
    """The server's answer to a request for the bytes from `start` on; 416 (no such range) is one too."""
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        return urllib.request.urlopen(request, timeout=seconds)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        raise DownloadError(f"{url}: answers {error.code} {one_line(error.reason)}") from error
    except urllib.error.URLError as error:
        raise DownloadError(f"{url}: cannot be reached ({one_line(error.reason)})") from error
    except (OSError, ValueError, OverflowError, http.client.HTTPException) as error:  # or an odd address
        raise DownloadError(f"{url}: cannot be reached ({one_line(error)})") from error


def _first_byte(response: Any, url: str, size: int) -> int | None:
    """Where in the file the answer begins, None when it is no part of it; DownloadError for a file of another size."""
    if response.status == 200:
        first, total = 0, response.headers.get("Content-Length")
    elif response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found:
            return None
        first, total = int(found[1]), found[2]
    else:
        return None
    if total not in (None, "*", str(size)):
        response.close()
        raise DownloadError(f"{url}: has {total} bytes, expected {size}")
    return first
