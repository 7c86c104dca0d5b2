"""The one exception that means «the input is wrong, and here is what to do»."""


class InputError(ValueError):
    """A wrong input of the user. Its text is one or two sentences: the value, what was expected, and the remedy.

    The command line prints the text alone and exits with status 2; every other exception is a fault of the program.
    """
