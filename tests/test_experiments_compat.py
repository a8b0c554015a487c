"""The compatibility command as a user meets it."""

import pytest

from experiments.compat.__main__ import main


@pytest.mark.parametrize("arguments", [["--help"], ["sabre", "--help"], ["pensieve", "--help"]])
def test_help_is_at_hand(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert "usage: python -m experiments.compat" in capsys.readouterr().out
