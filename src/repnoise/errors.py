"""The one exception that means "the user can mend this"."""


class RepnoiseError(Exception):
    """A mistake in the input or the environment, told in one sentence that names the fix. The command line prints it
    without a traceback and exits with 2 (bad request) or 1 (the run failed)."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
