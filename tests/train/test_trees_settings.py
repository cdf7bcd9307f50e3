"""`--set NAME=VALUE`: what it takes, what it refuses, and that the search and metrics see it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from flagger.errors import ConfigurationError
from train.cli import train
from train.fit import Hyperparameters, hyperparameters_from


def test_what_is_set_replaces_the_defaults_and_the_last_one_counts() -> None:
    found = hyperparameters_from(
        ["max_depth=5", "monotone=true", "reg_lambda=2", "colsample_bytree=0.4", "max_depth=4"]
    )
    assert found == Hyperparameters(
        max_depth=4, monotone=True, reg_lambda=2.0, colsample_bytree=0.4
    )
    assert hyperparameters_from([]) == Hyperparameters()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("depth=5", "one of the names max_depth, learning_rate"),
        ("max_depth", "a whole number from 1 to 16, not ''"),
        ("max_depth=5.5", "a whole number from 1 to 16, not '5.5'"),
        ("max_depth=17", "from 1 to 16"),
        ("subsample=0", "a number from 0.01 to 1"),
        ("learning_rate=nan", "a number from 0.0001 to 1"),
        ("reg_lambda=inf", "reg_lambda is a number"),
        ("gamma=-1", "gamma is a number"),
        ("monotone=yes", "true or false"),
    ],
)
def test_what_is_no_setting_is_refused(setting: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        hyperparameters_from([setting])


def test_every_setting_can_be_set() -> None:
    """A new one without a range would be a KeyError of the command."""
    for name, value in vars(Hyperparameters()).items():
        assert hyperparameters_from([f"{name}={value}"]) == Hyperparameters()


def test_the_command_refuses_before_it_reads_the_file() -> None:
    arguments = ["--data", "missing.parquet", "--out", "out", "--set", "max_depth=no"]
    error = CliRunner().invoke(train, arguments).exception
    assert isinstance(error, ConfigurationError)
    assert "max_depth is a whole number" in str(error)
