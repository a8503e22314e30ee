"""Readers that leave before all is told: real pipes."""

import os
import sys

import pytest
from rich.console import Console

from otkd.cli import streams
from otkd.cli.streams import lasting


@pytest.fixture
def pipe():
    """The writing end of a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        yield stream


def test_what_nobody_reads_is_dropped_and_told_once(pipe, capsys):
    stream = lasting(pipe)
    for _ in range(3):
        stream.write("line\n" * 10_000)
        stream.flush()
    Console(file=stream).print("and by rich, which would end the program")
    assert capsys.readouterr().err == streams.GONE
    assert os.path.samestat(os.fstat(pipe.fileno()), os.stat(os.devnull))


def test_where_stderr_has_gone_as_well_there_is_nobody_to_tell(pipe, monkeypatch):
    monkeypatch.setattr(sys, "stderr", pipe)
    stream = lasting(pipe)
    stream.write("line\n")
    stream.flush()
    assert os.path.samestat(os.fstat(pipe.fileno()), os.stat(os.devnull))


def test_while_somebody_reads_all_gets_there():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe, os.fdopen(reading) as reader:
        stream = lasting(pipe)
        stream.write("line\n")
        stream.flush()
        assert reader.readline() == "line\n"
        assert not stream.isatty()
