"""Tokens: their file, their creation and their lookup."""

from __future__ import annotations

import hashlib

import pytest
from support.server_command import run_command
from twofold_server.security.tokens import find_grant, make_token, read_tokens

DIGEST = "0" * 64


def test_a_token_is_found_by_its_digest(tmp_path):
    """make_token() returns a line with the digest, and the file contains no secret."""
    token, line = make_token("checkout", ["adapt", "predict"], 12.5)
    (tmp_path / "tokens.toml").write_text(line, encoding="utf-8")

    grants = read_tokens(tmp_path / "tokens.toml")

    name, grant = find_grant(token, grants)
    assert (name, grant.scopes, grant.requests_per_second) == ("checkout", {"predict", "adapt"}, 12.5)
    assert grant.sha256 == hashlib.sha256(token.encode()).hexdigest()
    assert token.rpartition(".")[2] not in line


def test_lines_can_be_appended_and_explained(tmp_path):
    """The file has a line per token, and may have comments."""
    made = [make_token(name, ["predict"]) for name in ("one", "two")]
    text = "# Who may call.\n" + "".join(f"{line}\n" for _, line in made)
    (tmp_path / "tokens.toml").write_text(text, encoding="utf-8")

    grants = read_tokens(tmp_path / "tokens.toml")

    assert [find_grant(token, grants)[0] for token, _ in made] == ["one", "two"]


def test_no_two_tokens_are_the_same():
    """Two tokens of the same name have different secrets of 256 bits."""
    first, second = (make_token("checkout", ["predict"])[0] for _ in range(2))

    assert first != second
    assert len(first.rpartition(".")[2]) == 43


@pytest.mark.parametrize(
    "change",
    [
        lambda token: "",
        lambda token: "twofold",
        lambda token: "twofold.checkout",
        lambda token: token[:-1],
        lambda token: token + "A",
        lambda token: token.upper(),
        lambda token: token.replace("twofold.", "", 1),
        lambda token: token.replace("checkout", "other", 1),
        lambda token: token.replace("checkout", "nobody", 1),
        lambda token: token + "é\ud800",
    ],
)
def test_a_changed_token_is_not_found(change, tmp_path):
    """A token with any changed, missing or additional character is not found."""
    made = [make_token(name, ["predict"]) for name in ("checkout", "other")]
    (tmp_path / "tokens.toml").write_text("\n".join(line for _, line in made), encoding="utf-8")
    grants = read_tokens(tmp_path / "tokens.toml")

    assert find_grant(made[0][0], grants)
    assert find_grant(change(made[0][0]), grants) is None


WRONG = [
    ("checkout", "tokens.toml: "),
    ("checkout = 1", "tokens.toml: checkout: Expected `object`, got `int`"),
    ('a = { scopes = ["predict"] }', "a: Object missing required field `sha256`"),
    (f'a = {{ sha256 = "{DIGEST}", scopes = ["predct"] }}', "a: Invalid enum value 'predct' - at `$.scopes[0]`"),
    (f'a = {{ sha256 = "{DIGEST}", scopes = [] }}', "a: Expected `array` of length >= 1 - at `$.scopes`"),
    (f'a = {{ sha256 = "{DIGEST}", scopes = ["predict"], rate = 1 }}', "a: Object contains unknown field `rate`"),
    (f'a = {{ sha256 = "{DIGEST[1:]}", scopes = ["predict"] }}', "a: Expected `str` matching regex"),
    (
        f'a = {{ sha256 = "{DIGEST}", scopes = ["predict"], requests_per_second = 0 }}',
        "a: Expected `float` > 0.0 - at `$.requests_per_second`",
    ),
    (f'"a b" = {{ sha256 = "{DIGEST}", scopes = ["predict"] }}', "name 'a b' must be 1 to 64 letters"),
    (f'a = {{ sha256 = "{DIGEST}", scopes = ["predict"] }}\n' * 2, "Cannot overwrite a value"),
]


@pytest.mark.parametrize(("text", "says"), WRONG)
def test_a_wrong_file_is_refused_with_its_line(text, says, tmp_path):
    """An error about an invalid file names the file, the token, the field and the fix."""
    (tmp_path / "tokens.toml").write_text(text, encoding="utf-8")

    with pytest.raises(ValueError, match="make-token") as caught:
        read_tokens(tmp_path / "tokens.toml")

    assert says in str(caught.value)


def test_make_token_prints_the_line_and_the_token_separately(capsys, tmp_path):
    """The line for the file goes to stdout, and the token to stderr, once."""
    run_command("make-token", "checkout", "--scopes", "predict,admin", "--requests-per-second", "5")

    printed = capsys.readouterr()
    (tmp_path / "tokens.toml").write_text(printed.out, encoding="utf-8")
    name, grant = find_grant(printed.err.split()[-1], read_tokens(tmp_path / "tokens.toml"))
    assert (name, grant.scopes, grant.requests_per_second) == ("checkout", {"predict", "admin"}, 5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a b", "--scopes", "predict"], "name 'a b' must be"),
        (["a", "--scopes", "predict,all"], "scope 'all' is unknown; use some of predict,adapt,admin"),
        (
            ["a", "--scopes", "predict", "--requests-per-second", "0"],
            "requests-per-second 0.0 must be a number above 0",
        ),
        (["a", "--scopes", "predict", "--requests-per-second", "inf"], "requests-per-second inf must be"),
        (["a"], "--scopes"),
    ],
)
def test_make_token_rejects_invalid_arguments(arguments, says, capsys):
    """An invalid argument ends with exit code 2, and no token is created."""
    with pytest.raises(SystemExit) as ended:
        run_command("make-token", *arguments)

    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert says in printed.err
