"""The one exception that a user of the project is meant to read."""


class UserError(Exception):
    """Something a user can mend: bad config, missing file, full disk, no network.

    The message names the culprit (file, key or value), what was expected and what to do.
    Jobs print it alone, without a traceback, and end with a non-zero exit code.
    """
