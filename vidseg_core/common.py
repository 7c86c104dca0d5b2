"""What every module may use: the label of void, and the exception for a wrong input."""

VOID = 255
"""Label of pixels that belong to no class."""


class InputError(ValueError):
    """A wrong input of the user. Its text is one or two sentences: the value, what was expected, and the remedy.

    The command line prints the text alone and exits with status 2; every other exception is a fault of the program.
    """
