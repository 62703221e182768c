import sys

import grpc
import pytest
from twofold.cli import __main__ as entry_point


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--target", "elsewhere:1", "model", "show"], 2, "give --tls or --ca FILE to encrypt, or --plaintext to send"),
        (["--certificate", __file__, "model", "show"], 2, "--certificate and --key go together; give both or none"),
        (["--tls", "--plaintext", "model", "show"], 2, "exclude each other"),
        (["--ca", "no/such.pem", "model", "show"], 1, "Error: no/such.pem: No such file or directory\n"),
        (["adapt", "--train", "no/such.jsonl", "--head", "ner"], 1, "Error: no/such.jsonl: No such file"),
        (["predict", "a", "--input", "b"], 2, "not both"),
        (["predict", "a", "--head", "parser"], 2, "'parser' is not one of 'classifier', 'ner'"),
        (["predict", "half \udc80"], 1, "Error: the input is not UTF-8"),
        (["roll-back"], 1, "Error: there is no previous checkpoint\n"),
    ],
)
def test_errors(run, args, code, message):
    """An error is one clear line on the standard error and a hint, with exit code 1, or 2 for a usage error."""
    result = run(*args)

    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""


def test_no_server(run):
    """A target that does not answer is named."""
    result = run("--target", "127.0.0.1:1", "--timeout", "2", "model", "show")

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: 127.0.0.1:1 does not answer:")


def test_server_that_is_not_ready(run, server):
    """The message of a server that is not ready is printed as it is."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE, message="no checkpoint is loaded", reason="NOT_READY", times=9)

    assert run("health").exit_code == 0
    assert run("roll-back").stderr.startswith("Error: no checkpoint is loaded\nNext: Wait until the server is ready")


def test_missing_extra(monkeypatch, capsys):
    """Without the cli extra the command says how to install it."""
    monkeypatch.setitem(sys.modules, "twofold.cli._app", None)
    monkeypatch.setitem(sys.modules, "click", None)
    monkeypatch.delitem(sys.modules, "twofold.cli._app")

    with pytest.raises(SystemExit) as exit_:
        entry_point.main()

    assert exit_.value.code == 1
    assert capsys.readouterr().err == "twofold: click is not installed; run: pip install 'twofold[cli]'\n"
