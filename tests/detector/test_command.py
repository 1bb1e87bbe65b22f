"""What all commands share: the reader of what they print may go away at any time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from detector import command

LINES = "import sys; from detector import command\nparser = command.Parser('x', 'y')\n"


def piped(code: str, *options: str) -> tuple[int, str]:
    """Exit status and standard error of ``code`` whose reader goes after the first bytes."""
    words = [sys.executable, *options, "-c", LINES + code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, text=True, **pipes) as process:
        process.stdout.read(1)
        process.stdout.close()
        process.stdin.close()  # only now does the code go on
        said = process.stderr.read()
    return process.returncode, said


@pytest.mark.parametrize("options", [(), ("-u",)])
@pytest.mark.parametrize("lines", [2, 100_000])
def test_a_reader_that_has_read_enough_is_no_error(lines, options):
    """Few lines wait in a buffer until the end; many fail while they are printed."""
    code = f"""
def table(arguments):
    print('first', flush=True)
    sys.stdin.read()
    for line in range({lines}):
        print('a line of a table')
sys.exit(command.run(table, parser, []))"""
    assert piped(code, *options) == (command.NO_READER, "")


def test_a_broken_pipe_between_processes_stays_an_error():
    def talk(arguments):
        reader, writer = os.pipe()
        os.close(reader)
        try:
            os.write(writer, b"x")
        finally:
            os.close(writer)

    with pytest.raises(BrokenPipeError):
        command.run(talk, command.Parser("x", "y"), [])


def test_a_command_that_is_read_keeps_its_exit_status(capsys):
    assert command.run(lambda arguments: print("all"), command.Parser("x", "y"), []) == 0
    assert command.run(lambda arguments: 2, command.Parser("x", "y"), []) == 2
    assert capsys.readouterr().out == "all\n"
