"""Errors whose message is written for the user: what was found, what was expected, what to do."""


class UserError(Exception):
    """The input, a file or a setting cannot be used. The command line prints the message and exits with 2."""


class OperationError(Exception):
    """Right use, but the work did not succeed. The command line prints the message and exits with 1."""


def missing_package(package: str, purpose: str, extra: str) -> UserError:
    """The error for an optional package that is not installed, with the command that installs it."""
    return UserError(f"{purpose} needs the Python package '{package}': pip install 'sqsegv3_ros[{extra}]'")


def require(valid: bool, name: str, expected: str, found: object) -> None:
    """Raise UserError unless a setting is valid."""
    if not valid:
        raise UserError(f"{name} must be {expected}, found {found!r}")
