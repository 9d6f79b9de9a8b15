"""Every file that a user names is read and written here; every error is one line that names the file.

Read in this order:

    reading.py   regular files only, not larger than allowed; bytes, text, the names in a folder
    tables.py    TOML and JSON: integers of 64 bits, limited nesting
    memory.py    how much there is, and what does not fit into it
    writing.py   a new file in place of an old one, atomically
"""

from parallel_dl.files.memory import bytes_of_memory, require_memory
from parallel_dl.files.reading import MOST_TEXT, listed, one_line, opened, read_text, require_regular
from parallel_dl.files.tables import as_written, read_table
from parallel_dl.files.writing import replacing, require_writable

__all__ = [
    "MOST_TEXT",
    "as_written",
    "bytes_of_memory",
    "listed",
    "one_line",
    "opened",
    "read_table",
    "read_text",
    "replacing",
    "require_memory",
    "require_regular",
    "require_writable",
]
