"""Start the `twofold` command."""

import sys


def main() -> None:
    """Run the command; if its libraries are not installed, print how to install them."""
    try:
        from twofold.cli._app import app  # noqa: PLC0415 - imported here to catch a missing extra
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        print(f"twofold: {error.name} is not installed; run: pip install 'twofold[cli]'", file=sys.stderr)
        sys.exit(1)
    app(prog_name="twofold")


if __name__ == "__main__":
    main()
