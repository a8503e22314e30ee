import errno
import os

import pytest

from otkd.core.errors import StorageError
from otkd.core.layout import Layout, atomic, write_text


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_text(path, "old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"result\.json: No space left on device\. Free some space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_an_error_inside_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    write_text(path, "old")

    def interrupted():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_trial_is_done_once_its_result_is_there(tmp_path):
    folder = Layout(tmp_path).trial("abc")
    assert not folder.done
    write_text(folder.result, "{}")
    assert folder.done
