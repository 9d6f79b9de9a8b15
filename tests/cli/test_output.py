"""--output: the results are printed first, whatever becomes of the file; an old file stays, or is replaced whole."""

import json
import os
import re
import stat

import pytest
from test_commands import PARALLEL_DL, call

from parallel_dl import checkpoint
from parallel_dl.launch.environment import is_hydra

LIMITED = ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", *PARALLEL_DL]  # files of at most 4 KB, or 8


@pytest.mark.parametrize("as_json", [True, False])
def test_a_file_that_cannot_grow(tmp_path, as_json):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")
    path.chmod(0o640)
    command = ("train", "mlp", "--steps", 2, "--output", path)
    status, out, err = call(*command, *(["--json"] if as_json else []), command=LIMITED)
    if is_hydra():  # MPICH shares memory in files even for one rank: refused before anything is computed
        assert (status, out, path.read_bytes()) == (2, "", b"old")
        assert re.fullmatch(r"parallel-dl: ulimit -f: \d+ KiB; MPI shares memory in files, which need \d+ KiB\n", err)
        return
    if as_json:
        assert len(json.loads(out)["losses"]) == 2
    else:
        assert "test accuracy" in out
    assert err == f"parallel-dl: --output {path}: cannot be written (File too large)\n"
    assert status == 2
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk(tmp_path, can_unshare, ranks):
    if not can_unshare:
        pytest.skip("needs root on Linux to mount a small disk")
    code = 'mount -t tmpfs -o size=16k tmpfs "$0" && echo old > "$0/w" && "$@"; echo "$? $(ls -A "$0") $(cat "$0/w")"'
    full = ["unshare", "-m", "sh", "-c", code, str(tmp_path), *PARALLEL_DL]
    _, out, err = call("train", "mlp", "--steps", 2, "--json", "--dp", ranks, "--output", tmp_path / "w", command=full)
    result, last = out.splitlines()
    assert len(json.loads(result)["losses"]) == 2
    assert last == "2 w old"
    assert err == f"parallel-dl: --output {tmp_path / 'w'}: cannot be written (No space left on device)\n"


def test_permissions(tmp_path):
    private = ["sh", "-c", 'umask 077; exec "$@"', "sh", *PARALLEL_DL]
    path = tmp_path / "w"
    command = ("train", "mlp", "--steps", 1, "--output", path)
    assert call(*command, command=private)[0] == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o664)
    assert call(*command, command=private)[0] == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    assert len(checkpoint.load(path)) == 6
    assert os.listdir(tmp_path) == ["w"]


def test_results_that_nobody_reads_cost_no_weights(tmp_path):
    """The reader has gone before there is anything to read."""
    gone = ["sh", "-c", '"$@" | true', "sh", *PARALLEL_DL]
    call("train", "mlp", "--steps", 1, "--json", "--output", tmp_path / "w", command=gone)
    assert len(checkpoint.load(tmp_path / "w")) == 6
