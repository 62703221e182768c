"""Config: flags, variables, defaults, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from twofold_server.config import Config, is_loopback, read_config


def test_a_flag_wins_over_a_variable_over_a_default():
    """The three sources, in their order."""
    environment = {"TWOFOLD_MAX_TEXTS": "7", "TWOFOLD_STORE": "/srv/store", "TWOFOLD_PLAINTEXT": "yes"}

    config = read_config(["--max-texts", "9", "--device", "cuda"], environment)

    assert (config.max_texts, config.store, config.plaintext) == (9, Path("/srv/store"), True)
    assert config.device == "cuda"
    assert config.max_requests == Config().max_requests
    assert read_config(["--no-plaintext"], environment).plaintext is False


WRONG = [
    ([], {"TWOFOLD_DEVICE": "abacus"}, "TWOFOLD_DEVICE 'abacus'"),
    ([], {"TWOFOLD_PLAINTEXT": "perhaps"}, "TWOFOLD_PLAINTEXT 'perhaps'"),
    ([], {"TWOFOLD_MAX_TEXTS": "many"}, "many"),
    (["--device", "abacus"], {}, "abacus"),
    (["--max-texts", "0"], {}, "max-texts 0 must be at least 1"),
    (["--threads", "-1"], {}, "threads -1 must not be negative"),
    (["--listen", "8500"], {}, "must be HOST:PORT"),
    (["--metrics-listen", "localhost:http"], {}, "must be HOST:PORT"),
    (["--listen", "0.0.0.0:8500"], {}, "--plaintext"),
    (["--tls-key", "key.pem"], {}, "belong together"),
    (["--tls-client-ca", "ca.pem"], {}, "needs tls-certificate"),
]


@pytest.mark.parametrize(("flags", "environment", "says"), WRONG)
def test_what_cannot_be_ends_with_usage(flags, environment, says, capsys):
    """A wrong setting ends with exit code 2, and says which and what to write."""
    with pytest.raises(SystemExit) as ended:
        read_config(flags, environment)

    assert ended.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("example.org:1", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(address, expected):
    """Addresses of loopback need no TLS; all others do."""
    assert is_loopback(address) is expected
