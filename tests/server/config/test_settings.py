"""Settings from flags, variables, the file and defaults, and invalid ones."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from support.server_command import read_config, resolved_settings, run_command
from twofold_server.config.schema import SETTINGS, build_config
from twofold_server.config.settings import Config, LimitSettings, TrainerSettings, is_loopback


@pytest.fixture
def file(tmp_path):
    """Write a settings file and return the flag that names it."""

    def written(text: str) -> list[str]:
        path = tmp_path / "server.toml"
        path.write_text(text, encoding="utf-8")
        return ["--config", str(path)]

    return written


def test_a_flag_wins_over_a_variable_over_the_file_over_a_default(file):
    """A flag takes precedence over a variable, the file and the default, and each setting knows its origin."""
    flags = file('max_texts = 5\nmax_requests = 6\nstore = "/etc/store"\ndrain_delay = 2\nplaintext = false')
    environment = {"TWOFOLD_MAX_TEXTS": "7", "TWOFOLD_STORE": "/srv/store", "TWOFOLD_PLAINTEXT": "yes"}

    actual = resolved_settings([*flags, "--max-texts", "9", "--device", "cuda"], environment)
    config, origins = actual.config, actual.origins

    assert (config.limits.max_texts, config.store) == (9, Path("/srv/store"))
    assert (config.listener.plaintext, config.engine.device) == (True, "cuda")
    assert (config.limits.max_requests, config.listener.drain_delay) == (6, 2.0)
    assert config.limits.max_characters == LimitSettings().max_characters
    assert read_config(["--no-plaintext"], environment).listener.plaintext is False
    assert (origins["max_texts"], origins["store"]) == ("flag --max-texts", "variable TWOFOLD_STORE")
    assert (origins["max_requests"], origins["max_characters"]) == (f"file {flags[1]}", "default")


def test_the_file_may_be_named_by_a_variable(file):
    """TWOFOLD_CONFIG names the file, a flag takes precedence, and an empty variable counts as unset."""
    _, path = file("max_texts = 5")

    assert read_config([], {"TWOFOLD_CONFIG": path}).limits.max_texts == 5
    assert read_config([], {"TWOFOLD_CONFIG": "", "TWOFOLD_MAX_TEXTS": ""}) == Config()
    assert "cannot be read" in refused(["--config", "no/such.toml"], {"TWOFOLD_CONFIG": path})


ANOTHER = {
    "database": "postgresql://db/jobs",
    "device": "cuda",
    "plaintext": True,
    "listen": "127.0.0.1:1",
    "metrics_listen": "127.0.0.1:1",
    "trace_endpoint": "http://127.0.0.1:1",
    "trainer_niceness": 5,
    **dict.fromkeys(
        (
            "trace_share",
            "shadow_share",
            "rollback_share",
            "rollback_max_error_rate",
            "rollback_min_agreement",
            "rollback_min_adapted_agreement",
        ),
        0.5,
    ),
}
# Each needs others, or is a choice.
ALONE = {"tls_certificate", "tls_key", "tls_client_ca", "metrics_tls", "precision", "log_level"}


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - ALONE))
def test_every_setting_has_a_flag_a_variable_and_a_key(file, name):
    """Flag, variable and key set the same setting to the same value."""
    setting = SETTINGS[name]
    default = setting.read(Config())
    value = ANOTHER.get(name, default + 3 if isinstance(default, int | float) else "elsewhere")
    text = str(value).lower()
    flag = [setting.flag] if value is True else [setting.flag, text]
    key = file(f"{name} = {text if isinstance(value, bool | int | float) else json.dumps(value)}")

    for config in (read_config(flag, {}), read_config([], {setting.variable: text}), read_config(key, {})):
        assert str(setting.read(config)) == str(value)
        assert setting.read(config) != default


BAD_FILES = [
    ("max_text = 5", "max_text is not a setting; did you mean max_texts?"),
    ("Max-Texts = 5", "Max-Texts is not a setting; did you mean max_texts?"),
    ("zebra = 5", "zebra is not a setting; docs/configuration.md lists them all"),
    ("[server]\nmax_texts = 5", "server is not a setting"),
    ('max_texts = "5"', "max_texts '5' must be a whole number, such as 256"),
    ("max_texts = true", "max_texts True must be a whole number"),
    ("max_texts = 1.5", "max_texts 1.5 must be a whole number"),
    ("drain_delay = inf", "drain_delay 'inf' must be a number, such as 0.0"),
    ("plaintext = 1", "plaintext 1 must be true or false"),
    ("store = 1", "store 1 must be a path"),
    ("store = [1]", "store [1] must be a path"),
    ('device = "abacus"', "device 'abacus' must be one of cpu, cuda"),
    ("max_texts = 0", "max-texts 0 must be at least 1 [max-texts: file "),
    ("max_texts = ", "is not TOML: Invalid value (at "),
    ("max_texts = 1\nmax_texts = 2", "is not TOML: Cannot overwrite a value"),
]


@pytest.mark.parametrize(("text", "says"), BAD_FILES)
def test_a_bad_file_is_refused_whole(file, text, says):
    """An error about the file names the file, the key, the value and the fix."""
    flags = file(text)

    message = refused(flags, {})
    assert says in message
    assert "server.toml" in message


NO_COMMAND = [
    ([], "commands:"),
    (["--listen", "127.0.0.1:1"], "--listen needs a command before it; write twofold-server serve --listen ..."),
    (["start"], "invalid choice: 'start' (choose from"),
    (["make-token", "me", "--scopes", "predict", "--store", "x"], "--store is not an option of make-token"),
]


@pytest.mark.parametrize(("arguments", "message"), NO_COMMAND)
def test_a_command_is_required(arguments, message, capsys):
    """Without a known command the usage is printed, and the exit code is 2."""
    with pytest.raises(SystemExit) as ended:
        run_command(*arguments)

    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_help_lists_every_command(capsys):
    """The help has one line for each command; the help of serve has every setting."""
    for arguments in (["--help"], ["serve", "--help"]):
        with pytest.raises(SystemExit) as ended:
            run_command(*arguments)
        assert ended.value.code == 0

    shown = capsys.readouterr().out
    for command in ("serve", "doctor", "print-config", "make-token"):
        assert re.search(rf"^ +{command}  +\w+", shown, re.MULTILINE)
    for setting in SETTINGS.values():
        assert f"  {setting.flag}" in shown
        assert str(setting.range) in " ".join(shown.split())


def test_a_file_that_is_no_text_is_refused(tmp_path):
    """Invalid UTF-8 and a directory are rejected as settings files."""
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff")

    assert "is not TOML" in refused(["--config", str(path)], {})
    assert "cannot be read: Is a directory" in refused(["--config", str(tmp_path)], {})


def test_a_stranger_among_the_variables_is_warned_of():
    """A warning names an unknown TWOFOLD_ variable and the nearest setting; other variables are ignored."""
    kubernetes = [
        "TWOFOLD_PORT",
        "TWOFOLD_PORT_8500_TCP_ADDR",
        "TWOFOLD_SERVICE_HOST",
        "TWOFOLD_METRICS_SERVICE_PORT_HTTP",
    ]
    fine = dict.fromkeys(["TWOFOLD_TARGET", "TWOFOLD_TOKEN", "PATH", *kubernetes], "x")

    actual = resolved_settings([], fine | {"TWOFOLD_MAX_TEXT": "5", "TWOFOLD_ZEBRA": "1"})

    assert actual.config == Config()
    assert actual.warnings == (
        "the variable TWOFOLD_MAX_TEXT is not a setting; did you mean TWOFOLD_MAX_TEXTS?",
        "the variable TWOFOLD_ZEBRA is not a setting; docs/configuration.md lists them all",
    )


def test_print_config_prints_a_file_of_settings(file, capsys, monkeypatch):
    """The output of print-config is TOML that gives the same settings, with the origin of each."""
    flags = file('trainer_python = "/opt/a \\"b\\"/python"\ndrain_delay = 2')
    monkeypatch.setenv("TWOFOLD_PLAINTEXT", "on")
    monkeypatch.setenv("TWOFOLD_STORR", "x")

    run_command("print-config", *flags, "--max-texts", "9")

    shown = capsys.readouterr()
    lines = dict(re.fullmatch(r"(?:# )?(\w+) .*?  # (.*)", line).groups() for line in shown.out.splitlines())
    assert lines.keys() == SETTINGS.keys()
    assert (lines["max_texts"], lines["plaintext"]) == ("flag --max-texts", "variable TWOFOLD_PLAINTEXT")
    assert (lines["drain_delay"], lines["tls_key"]) == (f"file {flags[1]}", "default")
    assert "did you mean TWOFOLD_STORE?" in shown.err
    again = read_config(file(shown.out), {})
    assert again == read_config(
        ["--max-texts", "9", "--plaintext", "--drain-delay", "2", "--trainer-python", '/opt/a "b"/python'], {}
    )


SECRETS = [
    ("postgresql://me:hidden@db:5432/jobs", "postgresql://me:***@db:5432/jobs"),
    (
        "postgresql+psycopg://me:hid@den:hidden@db/jobs?sslmode=require",
        "postgresql+psycopg://me:***@db/jobs?sslmode=require",
    ),
    ("postgresql://db/jobs?user=me&password=hidden&x=1", "postgresql://db/jobs?user=me&password=***&x=1"),
    ("sqlite:///jobs.db", "sqlite:///jobs.db"),
    ("127.0.0.1:8500", "127.0.0.1:8500"),
]


@pytest.mark.parametrize(("text", "shown"), SECRETS)
def test_no_print_shows_a_password(text, shown, capsys):
    """print-config, the settings' repr and errors hide the password of a URL."""
    run_command("print-config", "--trainer-python", text)

    assert json.dumps(shown) in capsys.readouterr().out
    assert shown in repr(build_config(trainer_python=text))
    assert shown in repr(TrainerSettings(python=text))
    assert "hidden" not in refused(["--device", text], {})


def refused(flags, environment):
    """Return the error for an invalid setting."""
    message = io.StringIO()
    with pytest.raises(SystemExit) as ended, contextlib.redirect_stderr(message):
        resolved_settings(flags, environment)
    assert ended.value.code == 2
    return message.getvalue()


WRONG = [
    ([], {"TWOFOLD_DEVICE": "abacus"}, "TWOFOLD_DEVICE 'abacus'"),
    ([], {"TWOFOLD_PLAINTEXT": "perhaps"}, "TWOFOLD_PLAINTEXT 'perhaps'"),
    ([], {"TWOFOLD_MAX_TEXTS": "many"}, "TWOFOLD_MAX_TEXTS 'many' must be a whole number, such as 256"),
    (["--drain-delay", "nan"], {}, "--drain-delay 'nan' must be a number"),
    (["--max-text", "1"], {}, "--max-text is not a setting; did you mean --max-texts?"),
    (["--max_texts=1"], {}, "--max_texts is not a setting; did you mean --max-texts?"),
    (["store"], {}, "unexpected argument 'store'; write --SETTING VALUE"),
    (["--listen", "0.0.0.0:1"], {}, "[listen: flag --listen]"),
    (["--device", "abacus"], {}, "abacus"),
    (["--max-texts", "0"], {}, "max-texts 0 must be at least 1"),
    (["--threads", "-1"], {}, "threads -1 must be at least 0"),
    (["--trainer-niceness", "20"], {}, "trainer-niceness 20 must be from 0 to 19"),
    (["--listen", "8500"], {}, "must be HOST:PORT"),
    (["--metrics-listen", "localhost:http"], {}, "must be HOST:PORT"),
    (["--listen", "0.0.0.0:8500"], {}, "--plaintext"),
    (["--tls-key", "key.pem"], {}, "belong together"),
    (["--tls-client-ca", "ca.pem"], {}, "needs tls-certificate"),
    (["--metrics-tls"], {}, "metrics-tls needs tls-certificate and tls-key"),
]


@pytest.mark.parametrize(("flags", "environment", "says"), WRONG)
def test_invalid_settings_end_with_usage(flags, environment, says):
    """An invalid setting ends with exit code 2 and an error that names it and the fix."""
    assert says in refused(flags, environment)


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
    """Loopback addresses need no TLS; all others do."""
    assert is_loopback(address) is expected
